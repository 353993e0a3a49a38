"""Files read while others may write to them: what is saved of each is one state that it had.

A file is read from one descriptor. Before that is closed, size and times of change must be what the walk found. A write
in the same tick of the kernel's clock as the last one does not change the time, so nothing is read before that tick has
passed, or small content is read twice. Not seen are writes through a memory map to pages that were changed before, and
what a network file system hides; `docs/format.md` says so.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from metaflow_artifacts._transfer.scan import Source, SourceFile, look_again
from metaflow_artifacts.errors import SourceError

__all__ = ["BLOCK", "ROUNDS", "Changed", "OpenSource", "is_young", "keeps_changing", "read_inline", "wait_for_tick"]

BLOCK = 512 << 10
"""Bytes that are read, hashed and written in one go: they stay in the processor's cache."""
ROUNDS = 4
"""How often a file that changes while it is read is read in all."""
_TICK_NS = 10_000_000
"""By how much a file's time may lag behind the clock: one tick of a kernel at 100 Hz, in nanoseconds."""
_COARSE_NS = 2_000_000_000
"""The same on file systems that keep whole seconds; FAT keeps even ones."""

# Not to wait for a writer where a pipe takes the place of the file; files are not concerned.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


class Changed(Exception):
    """The file was changed while it was read: read it again."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def keeps_changing(file: SourceFile) -> SourceError:
    """The error for a file that was changed in every round."""
    return SourceError(
        f"{file.location!r} was changed while it was saved, {ROUNDS} times in a row; save it when nothing writes to "
        "it, or save a copy"
    )


_NO_LOCK = nullcontext()


class OpenSource:
    """One file, open for as long as parts of it are read, by any threads.

    `parts` is how many parts will be read; after the last one, or at `close`, the file is closed. With `may_grow`, a
    file that is appended to all the time is taken as far as the walk found it, if these bytes read the same twice.
    """

    __slots__ = ("_digests", "_fd", "_file", "_lock", "_may_grow", "_number", "_parts")

    def __init__(self, file: SourceFile, number: int, parts: int = 1, *, may_grow: bool = False) -> None:
        self._file = file
        self._number = number
        self._parts = parts
        self._may_grow = may_grow
        self._digests: dict[int, tuple[int, str]] = {}
        # Small files have one part, and there may be 100,000 of them.
        self._lock: AbstractContextManager[Any] = threading.Lock() if parts > 1 else _NO_LOCK
        self._fd = -1

    def blocks(self, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        """The bytes of one part, block by block, each in `buffer`. Raises Changed, or SourceError."""
        if self._fd < 0:
            with self._lock:
                if self._fd < 0:
                    self._open()
        at, end = start, start + length
        while at < end:
            try:
                count = os.preadv(self._fd, [buffer[: min(end - at, len(buffer))]], at)
            except OSError as error:
                raise self._unreadable(error) from error
            if not count:
                raise Changed(self._number)
            yield buffer[:count]
            at += count

    def finish(self, start: int, length: int, sha256: str) -> None:
        """One part was read and has this digest (hex). After the last one, raises Changed unless all parts are of one
        state."""
        with self._lock:
            self._digests[start] = length, sha256
            if len(self._digests) < self._parts:
                return
        try:
            self._demand_same()
        finally:
            self.close()

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _open(self) -> None:
        try:
            self._fd = os.open(self._file.location, _READ)
        except FileNotFoundError as error:
            raise Changed(self._number) from error
        except OSError as error:
            raise self._unreadable(error) from error

    def _demand_same(self) -> None:
        file = self._file
        try:
            now = os.fstat(self._fd)
        except OSError as error:
            raise self._unreadable(error) from error
        if now.st_ino != file.inode:
            # Another file took its place before it was opened.
            raise Changed(self._number)
        if self._may_grow and now.st_size > file.size:
            self._demand_same_beginning()
            return
        same = now.st_size == file.size and now.st_mtime_ns == file.mtime_ns
        # Another name, or another file under this name: the open one stays as it is, and only this time moves.
        renamed = now.st_nlink != file.links
        if not same or (now.st_ctime_ns != file.ctime_ns and not renamed):
            raise Changed(self._number)

    def _demand_same_beginning(self) -> None:
        """What was read of a file that grew, such as a log, must still be there."""
        buffer = memoryview(bytearray(BLOCK))
        for start, (length, sha256) in self._digests.items():
            digest = hashlib.sha256()
            for block in self.blocks(start, length, buffer):
                digest.update(block)
            if digest.hexdigest() != sha256:
                raise Changed(self._number)

    def _unreadable(self, error: OSError) -> SourceError:
        return SourceError(f"cannot read {self._file.location!r}: {error.strerror}")


def _is_young(file: SourceFile, now_ns: int) -> bool:
    age = now_ns - file.mtime_ns
    return -_COARSE_NS < age < (_TICK_NS if file.mtime_ns % 1_000_000_000 else _COARSE_NS)


def is_young(file: SourceFile) -> bool:
    """Whether a write may still come that leaves the file's time as it is."""
    return _is_young(file, time.time_ns())


def wait_for_tick(files: Iterable[SourceFile]) -> None:
    """Return when every further write to `files` will change their times: at once for all but the youngest files,
    else after 10 ms; after 2 s where a file system keeps whole seconds."""
    end = time.monotonic() + 2 * _COARSE_NS / 1e9
    young = list(files)
    while (young := [file for file in young if _is_young(file, time.time_ns())]) and time.monotonic() < end:
        time.sleep(0.002)


def read_inline(source: Source, limit: int) -> bytes | None:
    """The content of all files, small enough to be held; None where they have become larger than `limit` bytes.

    A file that changed is looked at anew, and its entry in `source` replaced. Raises SourceError.
    """
    contents: dict[int, bytes] = {}
    rounds = [0] * len(source.files)
    while source.size <= limit:
        for number, file in enumerate(source.files):
            if number in contents:
                continue
            try:
                contents[number] = _read_whole(file, number, may_grow=rounds[number] == ROUNDS - 1)
            except Changed:
                rounds[number] += 1
                if rounds[number] == ROUNDS:
                    raise keeps_changing(file) from None
                source.files[number] = look_again(file, source)
                break
        else:
            return b"".join(contents[number] for number in range(len(source.files)))
    return None


def _read_whole(file: SourceFile, number: int, *, may_grow: bool) -> bytes:
    if file.gone:
        return b""
    opened = OpenSource(file, number, may_grow=may_grow)
    young = _is_young(file, time.time_ns())
    try:
        content = _read(opened, file.size)
        # A write now may leave the file's time as it is: a second read tells.
        if young and _read(opened, file.size) != content:
            raise Changed(number)
        opened.finish(0, file.size, hashlib.sha256(content).hexdigest())
    finally:
        opened.close()
    return content


def _read(opened: OpenSource, size: int) -> bytes:
    return b"".join(map(bytes, opened.blocks(0, size, memoryview(bytearray(size or 1)))))
