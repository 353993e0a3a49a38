"""One of many does the work: a lease in the store, by put-if-absent, that a holder who is killed cannot keep.

A lease is a row of generations, `<name>/0`, `<name>/1`, …; whoever wrote the highest holds it, and rewrites it
while at work. Who waits takes the next generation when the highest has not changed for `ttl` seconds by its own
clock, so that no two clocks are compared; or at once, where the holder was a process of this machine that is
gone. A holder that was only slow and goes on beside its successor does harm to nobody: what they do may be done
twice.
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

from metaflow_artifacts.plugin import ArtifactNotFound, Storage, StorageError

__all__ = ["TTL", "Lease", "single_flight"]

T = TypeVar("T")

TTL = 30.0
"""Seconds without a sign of life after which a holder counts as gone."""
_FIRST_POLL = 0.1
_LONGEST_POLL = 2.0


def single_flight(
    storage: Storage,
    name: str,
    find: Callable[[], T | None],
    work: Callable[[], T],
    waiting: Callable[[str], None],
    who: str,
    ttl: float = TTL,
    patience: float | None = None,
) -> T:
    """What `find` finds, once one of all the callers with this `name` has done the `work` that makes it be found.

    `waiting` is called once, with the `who` of the holder, when there is something to wait for. Where the work
    raises, it is this caller's error, and the next one tries. Who has waited for `patience` seconds waits no longer
    and does the work too: for work that is small, and fails slowly where it fails.
    """
    lease = Lease(storage, name, who, ttl)
    began = time.monotonic()
    poll = _FIRST_POLL
    told = False
    while True:
        with lease.tried() as held:
            # Also when it is held: the last holder may have finished just before.
            found = find()
            if found is not None:
                return found
            if held:
                return work()
        if patience is not None and time.monotonic() - began > patience:
            return work()
        if not told:
            told = True
            waiting(lease.holder)
        time.sleep(poll)
        poll = min(_LONGEST_POLL, 1.5 * poll)


class Lease:
    """A try after another for one lease."""

    def __init__(self, storage: Storage, name: str, who: str, ttl: float = TTL) -> None:
        """`name` is a key without a slash at its end; `who` is shown to those who wait."""
        self._storage = storage
        self._name = name
        self._who = who
        self._ttl = ttl
        self._seen: tuple[int, bytes] | None = None
        self._seen_at = 0.0
        self.holder = ""
        """The `who` of the holder that was met last."""

    @contextmanager
    def tried(self) -> Iterator[bool]:
        """Try to take the lease; whether it is held for the block."""
        generation = self._take()
        if generation is None:
            yield False
            return
        stop = threading.Event()
        beating = threading.Thread(target=self._beat, args=(generation, stop), daemon=True)
        beating.start()
        try:
            yield True
        finally:
            stop.set()
            beating.join()
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
            # Released just now: the next try will see.
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
            # The worst that comes of it is that somebody else does the work too.
            with suppress(StorageError):
                self._storage.put(self._key(generation), self._sign(beat))

    def _release(self, generation: int) -> None:
        # One that stays behind holds the next ones up for `ttl`, and no longer.
        with suppress(StorageError):
            self._storage.delete([self._key(number) for number in range(generation + 1)])


def _parse(content: bytes) -> dict[str, object]:
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _process(pid: int) -> dict[str, object]:
    """What tells this process from every other one on every machine."""
    return {"host": socket.gethostname(), "space": _pid_space(), "pid": pid, "start": _start_of(pid)}


def _is_gone(holder: dict[str, object]) -> bool:
    """Whether the holder is known to be gone: a process of this machine, and not there any more."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or holder.get("space") != _pid_space() or not isinstance(pid, int):
        return False
    if not holder.get("start"):
        return False
    return _start_of(pid) != holder["start"]


def _pid_space() -> str:
    """The machine's start and the namespace in which process ids count, where there is /proc."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """When a process started, as the kernel counts; empty where it is not there, or cannot be known."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            # The second field, in parentheses, may hold spaces. A process that has ended and not been waited for
            # has the state Z.
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
