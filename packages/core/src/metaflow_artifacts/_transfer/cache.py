"""The node's cache: chunks of remote storages on a disk of this machine, so that its tasks fetch each of them once.

A chunk is found by its digest and verified whenever it is read, so the cache can be wrong, full or gone, and a load
still gives the right bytes: it fetches what the cache does not give. See `cache_files` for what lies where.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from metaflow_artifacts._format.manifest import Chunk
from metaflow_artifacts._text import size_text
from metaflow_artifacts._transfer.cache_files import CachedChunk, CacheFiles, NoPart, Part
from metaflow_artifacts._transfer.cache_room import Room
from metaflow_artifacts._transfer.chunks import drain
from metaflow_artifacts._transfer.target import NO_SPACE, is_path
from metaflow_artifacts.errors import InvalidInput, TargetError, warn

__all__ = ["CACHE", "CACHE_GB", "Cache", "Filling", "Patience", "cache_from"]

CACHE = "METAFLOW_ARTIFACTS_CACHE"
CACHE_GB = "METAFLOW_ARTIFACTS_CACHE_GB"

_GB = 1_000_000_000
_REST_S = 60.0
"""How long nothing is written to the cache after that failed."""
_PATIENCE_S = 30.0
"""How long a chunk that another process fetches may not grow before it is fetched here."""
_SLOWEST = 1_000_000
"""Bytes a second. A chunk that comes more slowly, after `_PATIENCE_S`, is fetched here."""


def cache_from(settings: Mapping[str, Any]) -> Cache | None:
    """The cache that the two settings name: `METAFLOW_ARTIFACTS_CACHE` and `METAFLOW_ARTIFACTS_CACHE_GB`.

    None where the first is missing or empty. Raises InvalidInput for a limit that is no number above 0, and a directory
    that cannot be one.
    """
    directory = settings.get(CACHE)
    if not directory:
        return None
    text = settings.get(CACHE_GB)
    limit = None
    if text is not None and text != "":
        try:
            value = float(text)
        except (TypeError, ValueError):
            value = math.nan
        if not 1 <= value * _GB < math.inf:
            raise InvalidInput(f"{CACHE_GB}: expected a number of gigabytes above 0, such as 50 or 0.5, found {text!r}")
        limit = int(value * _GB)
    path = os.path.expanduser(str(directory))
    # Else a directory of this name would be made below the working directory.
    if not is_path(path) or "://" in path or path.startswith("~"):
        raise InvalidInput(
            f"{CACHE}: expected the path of a directory on a disk of this machine, found {directory!r}; it is no URL, "
            "and a user whom ~ names must exist (./~ for a directory of that name)"
        )
    try:
        path = os.path.abspath(path)
    except OSError as error:
        raise InvalidInput(
            f"{CACHE}: {directory!r} is relative to the working directory, which is gone ({error.strerror}); "
            "set an absolute path"
        ) from error
    return cache_at(path, limit)


@functools.lru_cache(maxsize=16)
def cache_at(directory: str, limit: int | None) -> Cache:
    """The one `Cache` of this process for these settings."""
    return Cache(directory, limit)


class Cache:
    """The cache in one directory. Any number of threads, processes and users may use it at once.

    Nothing that is wrong with it is raised: there is one warning, and what it does not give is fetched.
    """

    def __init__(self, directory: str, limit: int | None = None) -> None:
        """`limit` is in bytes; None for 50 GB, or half of the free space where that is less."""
        self.directory = directory
        self._limit = limit
        self._files = CacheFiles(directory)
        self.room = Room(self._files, limit)
        self._open: dict[int, set[Filling]] = {}
        self._rests_until = -math.inf
        self._warned: dict[int, OSError] = {}
        """By process, the error that it has warned of."""
        self._small: dict[int, object] = {}
        """By process, a mark of the thread that has warned of a limit below a chunk."""

    def __repr__(self) -> str:
        return f"Cache({self.directory!r}, {self._limit!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return cache_at, (self.directory, self._limit)

    @property
    def fillings(self) -> set[Filling]:
        """What this process is writing. Its parent's are not its own."""
        return self._open.setdefault(os.getpid(), set())

    def holds(self, chunk: Chunk) -> bool:
        """Whether a chunk seems to be there. Only `read` tells."""
        return self._files.holds(chunk.sha256, chunk.size)

    def read(self, chunk: Chunk, take: Callable[[memoryview], None], restart: Callable[[], None]) -> bool:
        """Pass the blocks of a chunk to `take`, after a call of `restart`. Whether it was there, with its content.

        If not, what was passed to `take` is wrong. A file with other content is removed.
        """
        with self._files.reading(chunk.sha256, chunk.size) as file:
            if file is None:
                return False
            restart()
            try:
                found = drain(file, chunk.size, take)
            except TargetError:
                raise
            except OSError:
                return False
            if found != chunk.sha256:
                self._files.remove(chunk.sha256, os.fstat(file.fileno()))
                return False
        return True

    def read_part(self, chunk: Chunk, start: int, size: int) -> bytes | None:
        """`size` bytes of a chunk from `start`, not verified; None where they are not there."""
        with self._files.reading(chunk.sha256, chunk.size) as file:
            try:
                content = None if file is None else os.pread(file.fileno(), size, start)
            except OSError:
                return None
        return content if content is not None and len(content) == size else None

    def discard(self, chunk: Chunk) -> None:
        """Remove a chunk, whose content was found to be wrong."""
        self._files.remove(chunk.sha256)

    def fill(self, chunk: Chunk) -> Filling | None:
        """The right to fetch a chunk and put it here. None where another process or thread has it."""
        if self._files.is_blocked(chunk.sha256, chunk.size):
            return Filling()
        return self._filling(chunk.sha256, chunk.size)

    def fill_new(self, size: int) -> Filling:
        """A chunk of `size` bytes is put here whose digest is not known yet."""
        name = hashlib.sha256(uuid.uuid4().bytes).hexdigest()
        return self._filling(name, size) or Filling()

    def _filling(self, name: str, size: int) -> Filling | None:
        if self._limit is not None and size > self._limit:
            self._say_small(size, self._limit)
            return Filling()
        if time.monotonic() < self._rests_until or self.room.lacks(size):
            return Filling()
        try:
            part = self._files.part(name)
        except NoPart:
            return Filling()
        except OSError as error:
            self.failed(error)
            return Filling()
        if part is None:
            return None
        if not self.make_room(size):
            # Nobody waits for what is not kept.
            part.close()
            return Filling()
        filling = Filling(self, part, size)
        self.fillings.add(filling)
        if time.monotonic() < self._rests_until:
            filling.abandon()
        return filling

    def growth(self, chunk: Chunk) -> object:
        """A value that changes while another process fetches the chunk."""
        return self._files.progress(chunk.sha256)

    def make_room(self, size: int) -> bool:
        """Whether `size` bytes may be written. Chunks that were not used for long are removed for them."""
        try:
            return self.room.take(size)
        except OSError as error:
            self.failed(error)
            return False

    @contextlib.contextmanager
    def beside(self, directory: str, left: Callable[[], int]) -> Iterator[None]:
        """While the block runs, a load writes to `directory`: on the same disk, the cache leaves it the room.

        `left` says how many bytes it still has to write.
        """
        with contextlib.ExitStack() as stack:
            with self._failing():
                if self.room.is_beside(directory):
                    stack.enter_context(self.room.load(left))
                    self.room.make()
            yield
        with self._failing():
            self.room.settle()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failed(error)

    def give_way(self, directory: str) -> None:
        """The disk of `directory` is full: if it is the cache's too, remove all that can go. Raises nothing."""
        with contextlib.suppress(OSError):
            if self.room.is_beside(directory):
                self._empty()

    def _empty(self) -> None:
        self._rests_until = time.monotonic() + _REST_S
        for filling in list(self.fillings):
            filling.abandon()
        with contextlib.suppress(OSError):
            self._files.shrink(0)

    def limit(self, held: int) -> int:
        """The most bytes that the cache may hold, where it holds `held` of them now. Raises OSError.

        It does not take the last twentieth of the disk.
        """
        return self.room.limit(held)

    def chunks(self) -> Sequence[CachedChunk]:
        """What is there, least recently used first. Raises OSError."""
        return self._files.chunks()

    def clear(self) -> int:
        """Remove all that this user may remove, but what is being written. How many chunks. Raises OSError."""
        return self._files.shrink(-1)[1]

    def obstacle(self, chunk: CachedChunk) -> OSError | None:
        """Remove a chunk that `clear` has left; what was in the way, if it cannot be removed."""
        return self._files.obstacle(chunk.sha256)

    def reason(self, error: OSError) -> str:
        """Why the cache cannot be used, for a message. Raises nothing."""
        if os.path.lexists(self.directory) and not os.path.isdir(self.directory):
            what = "a link that leads to no directory" if os.path.islink(self.directory) else "no directory"
            return f"it is {what}; remove it, or set {CACHE} to another path"
        return error.strerror or str(error)

    def _say_small(self, size: int, limit: int) -> None:
        mark = object()
        # As in `failed`.
        if self._small.setdefault(os.getpid(), mark) is mark:
            warn(
                f"the cache in {self.directory!r} ({CACHE}) is not used for chunks larger than its limit of "
                f"{size_text(limit)}, such as one of {size_text(size)}; set {CACHE_GB} higher"
            )

    def failed(self, error: OSError) -> None:
        """Note that the cache could not be written to. The first time in a process, there is a warning."""
        self._rests_until = time.monotonic() + _REST_S
        # No lock: the caller may hold it, and this is atomic.
        if self._warned.setdefault(os.getpid(), error) is error:
            reason = self.reason(error)
            if error.errno in NO_SPACE:
                reason = f"{reason}; make room, or set {CACHE_GB} to a lower limit"
            warn(f"the cache in {self.directory!r} ({CACHE}) cannot be written to, loads go on without it: {reason}")
        if error.errno in NO_SPACE:
            # Loads need the disk more.
            self._empty()


class Filling:
    """Writes one chunk to the cache while it is fetched or sent. It fails silently: the cache then lacks the chunk.

    Without a cache, it writes nothing.
    """

    def __init__(self, cache: Cache | None = None, part: Part | None = None, size: int = 0) -> None:
        """`size` bytes of the cache's room were taken for it."""
        self._to = None if cache is None or part is None else (cache, part)
        self._size = size
        self._unwritten = size
        self._writes = False
        self._is_over = False
        self._using = threading.Lock()

    def __enter__(self) -> Filling:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._to is not None:
            with self._using:
                self._stop()
                self._to[1].close()
            self._to[0].fillings.discard(self)

    def restart(self) -> None:
        """The chunk's first block comes next."""

        def begin(part: Part) -> None:
            self._count(self._unwritten - self._size)
            self._writes = True
            part.restart()

        self._try(begin)

    def write(self, block: memoryview) -> None:
        """Append a block."""

        def append(part: Part) -> None:
            if self._writes:
                part.write(block)
                self._count(min(len(block), self._unwritten))

        self._try(append)

    def abandon(self) -> None:
        """Write no more, and remove what was written. Any thread may call this."""
        with self._using:
            self._stop()

    def _count(self, written: int) -> None:
        assert self._to is not None
        self._unwritten -= written
        self._to[0].room.wrote(written)

    def _stop(self) -> None:
        if self._to is not None and not self._is_over:
            self._writes, self._is_over = False, True
            self._to[1].drop()
            self._count(self._unwritten)

    def _try(self, call: Callable[[Part], None]) -> None:
        if self._to is None:
            return
        failure = None
        with self._using:
            if self._is_over:
                return
            try:
                call(self._to[1])
            except OSError as error:
                failure = error
                self._stop()
        # It may abandon others, so no lock is held.
        if failure is not None:
            self._to[0].failed(failure)

    def beside(self, take: Callable[[memoryview], None]) -> Callable[[memoryview], None]:
        """A function that passes a block to `take`, and writes it."""
        if self._to is None:
            return take

        def both(block: memoryview) -> None:
            take(block)
            self.write(block)

        return both

    def commit(self, sha256: str) -> None:
        """What was written has this digest: it is the chunk."""
        with self._using:
            if self._writes and self._to is not None:
                self._writes = False
                # What is in its place may be another user's, who alone may replace it.
                with contextlib.suppress(OSError):
                    self._to[1].commit(sha256)


class Patience:
    """How long chunks are waited for that other processes fetch."""

    def __init__(self, cache: Cache, clock: Callable[[], float] = time.monotonic) -> None:
        self._cache = cache
        self._clock = clock
        self._seen: dict[str, tuple[object, float]] = {}
        self._first: dict[str, float] = {}

    def is_over(self, chunk: Chunk) -> bool:
        """Whether a chunk has not grown for so long, or comes so slowly, that it is better fetched here too."""
        now, state = self._clock(), self._cache.growth(chunk)
        if now - self._first.setdefault(chunk.sha256, now) > _PATIENCE_S + chunk.size / _SLOWEST:
            return True
        before, since = self._seen.setdefault(chunk.sha256, (state, now))
        if before != state:
            self._seen[chunk.sha256] = state, now
            return False
        return now - since > _PATIENCE_S
