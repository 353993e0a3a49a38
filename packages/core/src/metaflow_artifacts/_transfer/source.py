"""Reading files that others may write to: each file is saved in one state that it had.

A file is read from one descriptor. When all is read, its size and times must still be those that the walk found. A
write within the same tick of the kernel's clock as the previous one does not change the time. So a file is not read
before that tick has passed, or small content is read twice. Some writes are not detected: those through a memory map to
pages that were dirty before, and those that a network file system hides (see `docs/format.md`).
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from metaflow_artifacts._transfer.holes import is_zero
from metaflow_artifacts._transfer.scan import Source, SourceFile, look_again
from metaflow_artifacts.errors import SourceError

__all__ = [
    "BLOCK_BYTES",
    "FILE_ATTEMPTS",
    "Changed",
    "MemorySource",
    "OpenSource",
    "any_young",
    "has_grown",
    "is_unchanged",
    "keeps_changing",
    "open_for_reading",
    "opened_source",
    "read_inline",
    "read_whole",
    "unreadable",
    "wait_for_tick",
]

BLOCK_BYTES = 512 << 10
"""How much is read, hashed and written at a time: so little that it stays in the processor's cache."""
FILE_ATTEMPTS = 4
"""How often a file is read before it is refused because it changed during each read."""
_TICK_NS = 10_000_000
"""How far a file's time may lag behind the clock: one tick of a kernel at 100 Hz."""
_COARSE_NS = 2_000_000_000
"""The same on file systems that keep whole seconds; FAT keeps even ones."""

# O_NONBLOCK: if a pipe has replaced the file, opening it must not wait for a writer. It has no effect on files.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


class _Timed(Protocol):
    @property
    def mtime_ns(self) -> int: ...


class Changed(Exception):
    """The file was changed while it was read: read it again."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def keeps_changing(file: SourceFile) -> SourceError:
    """The error for a file that changed in every attempt."""
    return SourceError(
        f"{file.location!r} was changed while it was saved, {FILE_ATTEMPTS} times in a row; save it when nothing writes"
        " to it, or save a copy"
    )


def is_unchanged(file: SourceFile, now: os.stat_result) -> bool:
    """Whether a file has still the content that the walk found, by its status `now`."""
    same = now.st_size == file.size and now.st_mtime_ns == file.mtime_ns
    # A hard link, or a rename of another file to this path, changes ctime and not the content.
    renamed = now.st_nlink != file.links
    return same and (now.st_ctime_ns == file.ctime_ns or renamed)


def has_grown(file: SourceFile, now: os.stat_result) -> bool:
    """Whether it is the file that the walk found, and larger, as a log that is written to."""
    return now.st_size > file.size and now.st_ino == file.inode


def open_for_reading(file: SourceFile, number: int) -> int:
    """A descriptor of a file. Raises Changed where it is missing, SourceError where it cannot be read."""
    try:
        return os.open(file.location, _READ) if file.fd is None else os.dup(file.fd)
    except FileNotFoundError as error:
        raise Changed(number) from error
    except OSError as error:
        raise unreadable(file, error) from error


def unreadable(file: SourceFile, error: OSError) -> SourceError:
    """The error for a file that cannot be read."""
    return SourceError(f"cannot read {file.location!r}: {error.strerror}")


_NO_LOCK = nullcontext()


class OpenSource:
    """One file, open for as long as parts of it are read, by any threads.

    `parts` is how many parts will be read; after the last one, or at `close`, the file is closed. A part may be read
    several times before it is finished. With `may_grow`, a file that grows is accepted with the size that the walk
    found, if these bytes are the same in a second read.
    """

    __slots__ = ("_closed", "_digests", "_fd", "_file", "_lock", "_may_grow", "_number", "_parts", "_readers")

    def __init__(self, file: SourceFile, number: int, parts: int = 1, *, may_grow: bool = False) -> None:
        self._file = file
        self._number = number
        self._parts = parts
        self._may_grow = may_grow
        self._digests: dict[int, tuple[int, str]] = {}
        # Small files are read by one thread, and there may be 100,000 of them.
        self._lock: AbstractContextManager[Any] = threading.Lock() if file.size >= BLOCK_BYTES else _NO_LOCK
        self._fd = -1
        self._readers = 0
        self._closed = False

    def blocks(self, start: int, length: int, buffer: memoryview) -> Generator[memoryview, None, None]:
        """The bytes of one part, block by block, each in `buffer`: if the part fits, at its place, else at the begin.

        Raises Changed, or SourceError.
        """
        fits = length <= len(buffer)
        self._begin_reading()
        try:
            at, end = start, start + length
            while at < end:
                place = buffer[at - start : length] if fits else buffer[: end - at]
                try:
                    count = os.preadv(self._fd, [place], at)
                except OSError as error:
                    raise unreadable(self._file, error) from error
                if not count:
                    raise Changed(self._number)
                yield place[:count]
                at += count
        finally:
            self._end_reading()

    def _begin_reading(self) -> None:
        """Open the file, until `_end_reading`. A context manager would take as long as a small read."""
        with self._lock:
            if self._fd < 0:
                self._open()
            self._readers += 1

    def _end_reading(self) -> None:
        with self._lock:
            self._readers -= 1
            if self._closed and not self._readers:
                self._close()

    def is_zero(self, start: int, length: int) -> bool:
        """Whether the bytes of one part are zeros, as those of a hole. Raises as `blocks`."""
        self._begin_reading()
        try:
            return is_zero(self._fd, start, length)
        except OSError as error:
            raise unreadable(self._file, error) from error
        finally:
            self._end_reading()

    def finish(self, start: int, length: int, sha256: str) -> None:
        """Record that a part was read and has this digest (hex).

        After the last part, raises Changed unless all parts are from one state of the file.
        """
        with self._lock:
            self._digests[start] = length, sha256
            if len(self._digests) < self._parts:
                return
        try:
            self._demand_same()
        finally:
            self.close()

    def close(self) -> None:
        """Close the file, as soon as nobody reads it: a save that was interrupted leaves threads behind."""
        with self._lock:
            self._closed = True
            if not self._readers:
                self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _open(self) -> None:
        if self._closed:
            raise Changed(self._number)
        self._fd = open_for_reading(self._file, self._number)

    def _demand_same(self) -> None:
        file = self._file
        try:
            now = os.fstat(self._fd)
        except OSError as error:
            raise unreadable(self._file, error) from error
        if self._may_grow and has_grown(file, now):
            self._demand_same_beginning()
        elif not is_unchanged(file, now):
            raise Changed(self._number)

    def _demand_same_beginning(self) -> None:
        """Raise Changed unless what was read of a file that grew, such as a log, is still its beginning."""
        buffer = memoryview(bytearray(BLOCK_BYTES))
        for start, (length, sha256) in self._digests.items():
            digest = hashlib.sha256()
            for block in self.blocks(start, length, buffer):
                digest.update(block)
            if digest.hexdigest() != sha256:
                raise Changed(self._number)


class MemorySource:
    """Content in memory that nobody writes to, read as an `OpenSource` is."""

    __slots__ = ("_content",)

    def __init__(self, content: bytes | memoryview) -> None:
        self._content = memoryview(content)

    def blocks(self, start: int, length: int, buffer: memoryview) -> Generator[memoryview, None, None]:
        """The bytes of one part, in blocks of the length of `buffer`."""
        step = len(buffer) or 1
        for at in range(start, start + length, step):
            yield self._content[at : min(at + step, start + length)]

    def is_zero(self, start: int, length: int) -> bool:
        """As that of `OpenSource`."""
        return False

    def finish(self, start: int, length: int, sha256: str) -> None:
        """Nothing can have changed."""

    def close(self) -> None:
        """Nothing is open."""


def opened_source(
    file: SourceFile, number: int, parts: int = 1, *, may_grow: bool = False
) -> OpenSource | MemorySource:
    """The content of a file for reading; the arguments are those of `OpenSource`."""
    if file.content is not None:
        return MemorySource(file.content)
    return OpenSource(file, number, parts, may_grow=may_grow)


def read_whole(file: SourceFile, number: int, buffer: memoryview, *, may_grow: bool = False) -> None:
    """Read a small file into a buffer of its size.

    It does what an `OpenSource` with one part does, in a third of the time, since there may be 100,000 of them. Raises
    Changed, or SourceError.
    """
    if file.content is not None:
        buffer[:] = file.content
        return
    if may_grow:
        _read_growing(file, number, buffer)
        return
    fd = open_for_reading(file, number)
    try:
        count = 0
        while count < len(buffer):
            some = os.preadv(fd, [buffer[count:]], count)
            if not some:
                raise Changed(number)
            count += some
        if not is_unchanged(file, os.fstat(fd)):
            raise Changed(number)
    except OSError as error:
        raise unreadable(file, error) from error
    finally:
        os.close(fd)


def _read_growing(file: SourceFile, number: int, buffer: memoryview) -> None:
    opened = OpenSource(file, number, may_grow=True)
    try:
        for _ in opened.blocks(0, len(buffer), buffer):
            pass
        opened.finish(0, len(buffer), hashlib.sha256(buffer).hexdigest())
    finally:
        opened.close()


def _is_young(file: _Timed, now_ns: int) -> bool:
    age = now_ns - file.mtime_ns
    return -_COARSE_NS < age < (_TICK_NS if file.mtime_ns % 1_000_000_000 else _COARSE_NS)


def any_young(files: Sequence[SourceFile]) -> bool:
    """Whether a further write to one of these files might not change its time."""
    now_ns = time.time_ns()
    return any(_is_young(file, now_ns) for file in files)


def wait_for_tick(files: Iterable[_Timed]) -> None:
    """Return when every further write to `files` will change their times.

    This is at once for all but the youngest files, else after 10 ms; after 2 s where a file system keeps whole seconds.
    """
    end = time.monotonic() + 2 * _COARSE_NS / 1e9
    young = list(files)
    while (young := [file for file in young if _is_young(file, time.time_ns())]) and time.monotonic() < end:
        time.sleep(0.002)


def read_inline(source: Source, limit: int) -> bytes | None:
    """The content of all files, concatenated; None where they have become larger than `limit` bytes.

    A file that changes is read again, and its entry in `source` is replaced. Raises SourceError.
    """
    contents: dict[int, bytes] = {}
    rounds = [0] * len(source.files)
    while source.size <= limit:
        for number, file in enumerate(source.files):
            if number in contents:
                continue
            try:
                contents[number] = _read_for_inline(file, number, may_grow=rounds[number] == FILE_ATTEMPTS - 1)
            except Changed:
                rounds[number] += 1
                if rounds[number] == FILE_ATTEMPTS:
                    raise keeps_changing(file) from None
                source.files[number] = look_again(file)
                break
        else:
            return b"".join(contents[number] for number in range(len(source.files)))
    return None


def _read_for_inline(file: SourceFile, number: int, *, may_grow: bool) -> bytes:
    if file.gone:
        return b""
    opened = opened_source(file, number, may_grow=may_grow)
    young = _is_young(file, time.time_ns())
    try:
        content = _read(opened, file.size)
        # A write now might not change the file's time: compare with a second read.
        if young and _read(opened, file.size) != content:
            raise Changed(number)
        # Only what may grow is compared with its digest.
        opened.finish(0, file.size, hashlib.sha256(content).hexdigest() if may_grow else "")
    finally:
        opened.close()
    return content


def _read(opened: OpenSource | MemorySource, size: int) -> bytes:
    return b"".join(map(bytes, opened.blocks(0, size, memoryview(bytearray(size or 1)))))
