"""The node's cache: chunks of remote storages on a disk of this machine, so that its tasks fetch each of them once.

A chunk is found by its digest and verified whenever it is read, so the cache can be wrong, full or gone, and a load
still gives the right bytes: it fetches what the cache does not give. See `cache_files` for what lies where.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from metaflow_artifacts._format.manifest import Chunk
from metaflow_artifacts._transfer.cache_files import CachedChunk, CacheFiles, Part
from metaflow_artifacts._transfer.chunks import drain
from metaflow_artifacts.errors import InvalidInput, TargetError, warn

__all__ = ["CACHE", "CACHE_GB", "Cache", "Filling", "Patience", "cache_from"]

CACHE = "METAFLOW_ARTIFACTS_CACHE"
CACHE_GB = "METAFLOW_ARTIFACTS_CACHE_GB"

_GB = 1_000_000_000
_DEFAULT_LIMIT = 50 * _GB
_SHARE = 16
"""A process may fill this part of the room that it found before it looks again: others fill the cache too."""
_REST_S = 60.0
"""How long nothing is written to the cache after that failed."""
_PATIENCE_S = 30.0
"""How long a chunk that another process fetches may not grow before it is fetched here."""


def cache_from(settings: Mapping[str, Any]) -> Cache | None:
    """The cache that the two settings name: `METAFLOW_ARTIFACTS_CACHE` and `METAFLOW_ARTIFACTS_CACHE_GB`.

    None where the first is missing or empty. Raises InvalidInput for a limit that is no number above 0.
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
        if not 0 < value < math.inf:
            raise InvalidInput(f"{CACHE_GB}: expected a number of gigabytes above 0, such as 50 or 0.5, found {text!r}")
        limit = int(value * _GB)
    return cache_at(os.path.abspath(os.path.expanduser(str(directory))), limit)


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
        self._locks: dict[int, threading.Lock] = {}
        self._allowance = 0
        """Bytes that may be written before the directory is looked at again."""
        self._rests_until = -math.inf
        self._warned: dict[int, OSError] = {}
        """By process, the error that it has warned of."""

    def __repr__(self) -> str:
        return f"Cache({self.directory!r}, {self._limit!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return cache_at, (self.directory, self._limit)

    @property
    def _lock(self) -> threading.Lock:
        # One for each process: a forked child must not wait for a thread that only its parent has.
        return self._locks.setdefault(os.getpid(), threading.Lock())

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
        """The right to fetch a chunk and put it here. None where another process or thread is at it."""
        return self._filling(chunk.sha256, chunk.size)

    def fill_new(self, size: int) -> Filling:
        """A chunk of `size` bytes is put here whose digest is not known yet."""
        name = hashlib.sha256(uuid.uuid4().bytes).hexdigest()
        return self._filling(name, size) or Filling()

    def _filling(self, name: str, size: int) -> Filling | None:
        if time.monotonic() < self._rests_until:
            return Filling()
        try:
            part = self._files.part(name)
        except OSError as error:
            self.failed(error)
            return Filling()
        return None if part is None else Filling(self, part, size)

    def growth(self, chunk: Chunk) -> object:
        """A value that changes while another process fetches the chunk."""
        return self._files.progress(chunk.sha256)

    def make_room(self, size: int) -> bool:
        """Whether `size` bytes may be written. Chunks that were not used for long are removed for them."""
        with self._lock:
            if self._allowance < size:
                try:
                    room = self._room(0)
                except OSError as error:
                    self.failed(error)
                    return False
                self._allowance = max(room // _SHARE, size if size <= room else 0)
            if self._allowance < size:
                return False
            self._allowance -= size
            return True

    def spare(self, directory: str, size: int) -> None:
        """Leave room for a load of `size` bytes into a directory, if that is on the same disk."""
        try:
            if os.stat(directory).st_dev == self._files.device() and self._files.free()[0] < 2 * size:
                with self._lock:
                    self._allowance = 0
                    self._room(size)
        except OSError as error:
            self.failed(error)

    def _room(self, taken: int) -> int:
        """How many bytes the cache may grow by, `taken` bytes of the disk being promised to somebody else.

        Above 15/16 of the limit, it first shrinks to 7/8.
        """
        held = self._files.size()
        limit = self.limit(held, taken)
        if held > limit - limit // 16:
            held, _ = self._files.shrink(limit - limit // 8)
        return max(0, limit - held)

    def limit(self, held: int, taken: int = 0) -> int:
        """The most bytes that the cache may hold, where it holds `held` of them now. Raises OSError.

        It does not take the last twentieth of the disk.
        """
        free, whole = self._files.free()
        room = max(0, free - taken + held)
        if self._limit is None:
            return min(_DEFAULT_LIMIT, room // 2)
        return max(0, min(self._limit, room - whole // 20))

    def chunks(self) -> Sequence[CachedChunk]:
        """What is there, least recently used first. Raises OSError."""
        return self._files.chunks()

    def clear(self) -> int:
        """Remove all that this user may remove, but what is being written. How many chunks. Raises OSError."""
        return self._files.shrink(-1)[1]

    def failed(self, error: OSError) -> None:
        """Note that the cache could not be written to. The first time in a process, there is a warning."""
        self._rests_until = time.monotonic() + _REST_S
        # No lock: the caller may hold it, and this is atomic.
        if self._warned.setdefault(os.getpid(), error) is error:
            reason = error.strerror or str(error)
            if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
                reason = f"{reason}; make room, or set {CACHE_GB} to a lower limit"
            warn(f"the cache in {self.directory!r} ({CACHE}) cannot be written to, loads go on without it: {reason}")


class Filling:
    """Writes one chunk to the cache while it is fetched or sent. It fails silently: the cache then lacks the chunk.

    Without a cache, it writes nothing.
    """

    def __init__(self, cache: Cache | None = None, part: Part | None = None, size: int = 0) -> None:
        self._to = None if cache is None or part is None else (cache, part)
        self._size = size
        self._writes = False

    def __enter__(self) -> Filling:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._to is not None:
            self._to[1].close()

    def restart(self) -> None:
        """The chunk's first block comes next."""
        if self._to is not None and (self._writes or self._to[0].make_room(self._size)):
            self._writes = True
            self._try(lambda part: part.restart())

    def write(self, block: memoryview) -> None:
        """Append a block."""
        if self._writes:
            self._try(lambda part: part.write(block))

    def _try(self, call: Callable[[Part], None]) -> None:
        assert self._to is not None
        cache, part = self._to
        try:
            call(part)
        except OSError as error:
            self._writes = False
            part.drop()
            cache.failed(error)

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

    def is_over(self, chunk: Chunk) -> bool:
        """Whether a chunk has not grown for so long that it is better fetched here too."""
        now, state = self._clock(), self._cache.growth(chunk)
        before, since = self._seen.setdefault(chunk.sha256, (state, now))
        if before != state:
            self._seen[chunk.sha256] = state, now
            return False
        return now - since > _PATIENCE_S
