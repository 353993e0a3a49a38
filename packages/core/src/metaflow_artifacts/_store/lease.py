"""Single-flight across machines: an expiring lease object in the store, acquired with put-if-absent.

The objects of a lease are its generations, `<name>/0`, `<name>/1`, …. The process that wrote the highest generation
holds the lease, and rewrites that object while it works. A process that waits takes the next generation when the
highest one has not changed for `ttl` seconds by its own clock, so that no two clocks are compared. It takes it at once
if the holder was a process of the same machine and has ended.

A holder that was only slow may continue while its successor works. The work must therefore be safe to do twice.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from metaflow_artifacts._storage import Storage
from metaflow_artifacts.errors import ArtifactNotFound, StorageError

__all__ = ["TTL_S", "Lease", "single_flight"]

T = TypeVar("T")

TTL_S = 30.0
"""Seconds without a heartbeat after which a lease has expired."""
_FIRST_POLL_S = 0.1
_LONGEST_POLL_S = 2.0
"""Seconds between two looks at a lease that another process holds: the first interval, and the longest."""


def single_flight(
    storage: Storage,
    name: str,
    find: Callable[[], T | None],
    work: Callable[[], T],
    on_wait: Callable[[str], None],
    who: str,
    ttl: float = TTL_S,
    max_wait: float | None = None,
) -> T:
    """Let one of all callers with this `name` do the `work`; the others wait, and return what `find` then finds.

    `find` returns None until the work is done. `on_wait` is called once, with the `who` of the holder, if there is a
    holder to wait for. If `work` raises, this caller raises the error, and the next caller does the work. A caller that
    has waited for `max_wait` seconds does the work too, without the lease; that is for work that is small, and slow
    only if it fails.
    """
    lease = Lease(storage, name, who, ttl)
    began = time.monotonic()
    poll = _FIRST_POLL_S
    has_called = False
    while True:
        with lease.attempt() as held:
            # Also if this process holds the lease: the previous holder may just have finished.
            found = find()
            if found is not None:
                return found
            if held:
                return work()
        if max_wait is not None and time.monotonic() - began > max_wait:
            return work()
        # The holder is not known where another process was faster, or has just finished.
        if not has_called and lease.holder:
            has_called = True
            on_wait(lease.holder)
        time.sleep(poll)
        poll = min(_LONGEST_POLL_S, 1.5 * poll)


class Lease:
    """One process's attempts to acquire a lease."""

    def __init__(self, storage: Storage, name: str, who: str, ttl: float = TTL_S) -> None:
        """`name` is a key without a slash at its end. `who` is what the processes that wait are shown."""
        self._storage = storage
        self._name = name
        self._who = who
        self._ttl = ttl
        self._seen: tuple[int, bytes] | None = None
        self._seen_at = 0.0
        self.holder = ""
        """The `who` of the holder that the last attempt found."""

    @contextmanager
    def attempt(self) -> Iterator[bool]:
        """Try to acquire the lease, and yield whether this process holds it during the block."""
        generation = self._take()
        if generation is None:
            yield False
            return
        stop = threading.Event()
        heartbeat = threading.Thread(target=self._beat, args=(generation, stop), daemon=True)
        heartbeat.start()
        try:
            yield True
        finally:
            stop.set()
            heartbeat.join()
            self._release(generation)

    def _take(self) -> int | None:
        highest = max(self._generations(), default=-1)
        if highest >= 0 and self._is_alive(highest):
            return None
        generation = highest + 1
        self._storage.require_put_if_absent()
        return generation if self._storage.put_if_absent(self._key(generation), self._sign(0)) else None

    def _is_alive(self, generation: int) -> bool:
        try:
            content = self._storage.get(self._key(generation))
        except ArtifactNotFound:
            # It was released just now. The next attempt finds out.
            return True
        if self._seen != (generation, content):
            self._seen, self._seen_at = (generation, content), time.monotonic()
        holder = _parse(content)
        self.holder = str(holder.get("who", ""))
        return time.monotonic() - self._seen_at < self._ttl and not _is_gone(holder)

    def _generations(self) -> list[int]:
        numbers = (info.key.rpartition("/")[2] for info in self._storage.list(self._name + "/"))
        return [int(number) for number in numbers if number.isdecimal()]

    def _key(self, generation: int) -> str:
        return f"{self._name}/{generation}"

    def _sign(self, beat: int) -> bytes:
        return json.dumps({"who": self._who, "beat": beat, **_process(os.getpid())}).encode()

    def _beat(self, generation: int, stop: threading.Event) -> None:
        beat = 0
        while not stop.wait(self._ttl / 3):
            beat += 1
            # If the heartbeat fails, another process may do the work as well, which is safe.
            with suppress(StorageError):
                self._storage.put(self._key(generation), self._sign(beat))

    def _release(self, generation: int) -> None:
        # A lease that cannot be deleted makes others wait until it has expired, and no longer.
        with suppress(StorageError):
            self._storage.delete([self._key(number) for number in range(generation + 1)])


def _parse(content: bytes) -> dict[str, object]:
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _process(pid: int) -> dict[str, object]:
    """What identifies this process among all processes of all machines."""
    return {"host": socket.gethostname(), "space": _pid_space(), "pid": pid, "start": _start_of(pid)}


def _is_gone(holder: dict[str, object]) -> bool:
    """Whether the holder is known to have ended: a process of this machine that no longer exists."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or holder.get("space") != _pid_space() or not isinstance(pid, int):
        return False
    if not holder.get("start"):
        return False
    return _start_of(pid) != holder["start"]


def _pid_space() -> str:
    """The id of the machine's boot, and the namespace of its process ids; empty without /proc."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """When a process started, in the kernel's clock ticks; empty if there is no such process, or no /proc."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            # The second field, in parentheses, may contain spaces. A process that has ended, and whose parent has
            # not waited for it, has the state Z.
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
