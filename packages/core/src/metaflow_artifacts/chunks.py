"""Content-addressed chunks: from files into a storage, and from there into files, in parallel.

A chunk is an object named by the SHA-256 of its content, shared by all that is saved below a root. Memory is
bounded by the number of threads: each holds one block, and one chunk where the storage stages in memory.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from enum import Enum
from typing import Any

from metaflow_artifacts.errors import (
    ArtifactNotFound,
    CorruptArtifact,
    SourceError,
    TargetError,
    TransientStorageError,
)
from metaflow_artifacts.manifest import Chunk, FileEntry
from metaflow_artifacts.plan import Segment, is_packed, segments
from metaflow_artifacts.progress import Transfer
from metaflow_artifacts.scan import SourceFile
from metaflow_artifacts.storage.base import Reader, Storage
from metaflow_artifacts.sweeps import wait_for_sweeps

__all__ = [
    "CHUNKS",
    "REFRESH_AFTER",
    "are_lasting",
    "chunk_key",
    "fetch_chunks",
    "in_threads",
    "is_stored",
    "put_chunk",
    "read_chunk",
    "read_range",
    "save_chunks",
]

CHUNKS = "mf.artifacts/chunks/sha256/"
REFRESH_AFTER = 24 * 3600.0
"""Seconds after which a save that needs a chunk again renews its time, so that `gc` leaves it alone."""

_BLOCK = 512 << 10
"""Bytes that are read, hashed and written in one go: they stay in the processor's cache."""
_WHOLE = 64 << 20
"""Bytes of a file that are held in memory to be verified at once."""
_ATTEMPTS = 4
"""Tries for one chunk on load, where its bytes come wrong."""
_QUICK = 5.0
"""Seconds within which a chunk whose reading broke off is read anew. The storage has patience of its own: what it gave
up after long is not tried again."""


def chunk_key(sha256: str) -> str:
    """Where the chunk of this digest (hex) is stored."""
    return f"{CHUNKS}{sha256[:2]}/{sha256[2:]}"


def in_threads(threads: int, calls: Iterator[Callable[[], None]]) -> None:
    """Run calls, at most `threads` at once; the first failure is raised, and what has not begun is dropped."""
    with ThreadPoolExecutor(threads, thread_name_prefix="metaflow-artifacts") as pool:
        running: set[Future[None]] = set()
        try:
            for call in calls:
                if len(running) >= 2 * threads:
                    running = _settle(running, whole=False)
                running.add(pool.submit(call))
            _settle(running, whole=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _settle(running: set[Future[None]], whole: bool) -> set[Future[None]]:
    done, pending = wait(running, return_when=FIRST_EXCEPTION if whole else "FIRST_COMPLETED")
    for future in done:
        future.result()
    return pending


def save_chunks(
    storage: Storage,
    files: Sequence[SourceFile],
    sizes: Sequence[int],
    transfer: Transfer,
    refresh_after: float = REFRESH_AFTER,
) -> tuple[list[Chunk], dict[int, str]]:
    """Store the content of `files`, cut into chunks of `sizes` bytes.

    Returns the chunks in order, and for each file that shares a chunk with others its own SHA-256 (hex) by its
    number. Raises SourceError where a file changed meanwhile, StorageError where the storage fails.
    """
    saver = _Saver(storage, files, transfer, refresh_after)
    chunks: list[Chunk | None] = [None] * len(sizes)

    def job(number: int, parts: list[Segment], size: int) -> Callable[[], None]:
        def run() -> None:
            chunks[number] = saver.save(parts, size)

        return run

    parts = segments([file.size for file in files], sizes)
    jobs = (job(number, part, size) for number, (part, size) in enumerate(zip(parts, sizes, strict=True)))
    in_threads(storage.threads, jobs)
    return [chunk for chunk in chunks if chunk is not None], saver.digests


class _Saver:
    def __init__(self, storage: Storage, files: Sequence[SourceFile], transfer: Transfer, refresh_after: float) -> None:
        self.storage = storage
        self.files = files
        self.transfer = transfer
        self.refresh_after = refresh_after
        self.digests: dict[int, str] = {}
        self._mine: set[str] = set()
        self._lock = threading.Lock()
        self._local = threading.local()
        # On disk, a chunk is written while it is hashed, in one pass, until one turns out to be there already and was
        # written in vain: from then on content is hashed first, until a chunk is missing.
        self._expect_new = True

    def _block(self) -> memoryview:
        block: memoryview | None = getattr(self._local, "block", None)
        if block is None:
            block = self._local.block = memoryview(bytearray(_BLOCK))
        return block

    def save(self, parts: list[Segment], size: int) -> Chunk:
        if not self._expect_new:
            digest = hashlib.sha256()
            for block in self._blocks(parts):
                digest.update(block)
            chunk = Chunk(digest.hexdigest(), size)
            if self._present(chunk):
                self.transfer.add(size)
                return chunk
            self._expect_new = True
        with self.storage.stage(size) as staged:
            digest = hashlib.sha256()
            for block in self._blocks(parts):
                digest.update(block)
                staged.write(block)
            chunk = Chunk(digest.hexdigest(), size)
            if self._present(chunk):
                self._expect_new = self.storage.stages_in_memory
                self.transfer.add(size)
            else:
                staged.commit(chunk_key(chunk.sha256), digest.digest())
                with self._lock:
                    self._mine.add(chunk.sha256)
                self.transfer.add(size, stored=size)
        return chunk

    def _present(self, chunk: Chunk) -> bool:
        with self._lock:
            if chunk.sha256 in self._mine:
                return True
        return is_stored(self.storage, chunk, self.refresh_after)

    def _blocks(self, parts: list[Segment]) -> Iterator[memoryview]:
        buffer = self._block()
        for part in parts:
            file = self.files[part.file]
            whole = part.length == file.size
            digest = hashlib.sha256() if whole and len(parts) > 1 else None
            try:
                # Not a file object: it asks the system for more than is needed, which 100,000 small files notice.
                source = os.open(file.location, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    at, end = part.start, part.start + part.length
                    while at < end:
                        count = os.preadv(source, [buffer[: min(end - at, _BLOCK)]], at)
                        if not count:
                            raise SourceError(f"{file.location!r} became shorter while it was saved; {_STILL}")
                        block = buffer[:count]
                        if digest is not None:
                            digest.update(block)
                        yield block
                        at += count
                    info = os.fstat(source)
                finally:
                    os.close(source)
            except SourceError:
                raise
            except OSError as error:
                raise SourceError(f"cannot read {file.location!r}: {error.strerror}") from error
            # A log that only grew is saved as far as it went; anything else may be half of one state and half of
            # another.
            if info.st_mtime_ns != file.mtime_ns and info.st_size <= file.size:
                raise SourceError(f"{file.location!r} was changed while it was saved; {_STILL}")
            if digest is not None:
                self.digests[part.file] = digest.hexdigest()


_STILL = "save it when nothing writes to it any more"


def is_stored(storage: Storage, chunk: Chunk, refresh_after: float = REFRESH_AFTER) -> bool:
    """Whether a chunk is stored with its size, and new enough that `gc` leaves it alone for long; an old one is
    renewed. A save that was told so may name the chunk in its manifest, if `are_lasting` agrees."""
    return _look(storage, chunk, refresh_after) is not _Found.NOT


class _Found(Enum):
    NOT = 0
    NEW = 1
    RENEWED = 2


def _look(storage: Storage, chunk: Chunk, refresh_after: float) -> _Found:
    info = storage.stat(chunk_key(chunk.sha256))
    if info is None or info.size != chunk.size:
        return _Found.NOT
    if time.time() - info.modified < refresh_after:
        return _Found.NEW
    return _Found.RENEWED if storage.touch(info.key) else _Found.NOT


def are_lasting(
    storage: Storage, chunks: Sequence[Chunk], since: float | None, refresh_after: float = REFRESH_AFTER
) -> bool:
    """Whether a manifest may name these chunks, each of which was stored, or found to be, after the time `since`
    (seconds since the epoch; None where it is not known).

    The last question before a commit. One listing, where no `gc` deletes at the same time and `since` is not
    long ago; else a look at each chunk. False where one is gone: its content is to be stored again.
    """
    distinct = list(dict.fromkeys(chunks))
    while since is None or wait_for_sweeps(storage, since) or time.time() - since > refresh_after:
        since = time.time()
        with ThreadPoolExecutor(storage.threads, thread_name_prefix="metaflow-artifacts") as pool:
            found = set(pool.map(lambda chunk: _look(storage, chunk, refresh_after), distinct))
        if _Found.NOT in found:
            return False
        # What was new before every batch that may still come is safe; what was renewed just now is looked at again.
        if _Found.RENEWED not in found:
            return True
    return True


def put_chunk(storage: Storage, data: bytes | memoryview, refresh_after: float = REFRESH_AFTER) -> tuple[Chunk, bool]:
    """Store content that is in memory as one chunk; False beside it where it was stored already."""
    digest = hashlib.sha256(data)
    chunk = Chunk(digest.hexdigest(), len(data))
    if is_stored(storage, chunk, refresh_after):
        return chunk, False
    with storage.stage(len(data)) as staged:
        staged.write(memoryview(data))
        staged.commit(chunk_key(chunk.sha256), digest.digest())
    return chunk, True


def read_chunk(storage: Storage, chunk: Chunk, take: Callable[[memoryview], None], restart: Callable[[], None]) -> None:
    """Give the blocks of a chunk to `take`, then make sure that they were right.

    `restart` is called before each new try; only when this returns may what was taken be used. Raises
    CorruptArtifact where the chunk is missing, of another size, or does not have the content of its name.
    """
    key = chunk_key(chunk.sha256)
    began = time.monotonic()
    for left in range(_ATTEMPTS - 1, -1, -1):
        restart()
        try:
            with storage.open(key) as reader:
                found = _drain(reader, chunk.size, take)
        except ArtifactNotFound as error:
            raise CorruptArtifact(f"{storage.url(key)}: a chunk of the artifact is missing; {_RESTORE}") from error
        except TransientStorageError:
            if not left or time.monotonic() - began > _QUICK:
                raise
            time.sleep(0.1 * (_ATTEMPTS - left))
            continue
        if found == chunk.sha256:
            return
    raise CorruptArtifact(
        f"{storage.url(key)}: a chunk of the artifact has changed (its content has SHA-256 {found}); {_RESTORE}"
    )


_RESTORE = "restore it, or delete the object and save the same content again"


def _drain(reader: Reader, size: int, take: Callable[[memoryview], None]) -> str:
    """The digest (hex) of what was taken; where that was not `size` bytes, a text that is no digest."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(min(_BLOCK, size + 1)))
    left = size
    while count := reader.readinto(block):
        # More than the manifest says is not taken: it would run into what lies behind.
        if count > left:
            return f"{digest.hexdigest()} over the first of more than {size} bytes"
        digest.update(block[:count])
        take(block[:count])
        left -= count
    return f"{digest.hexdigest()} over only {size - left} of {size} bytes" if left else digest.hexdigest()


def fetch_chunks(
    storage: Storage,
    files: Sequence[FileEntry],
    chunks: Sequence[Chunk],
    directory: str,
    wanted: set[int],
    transfer: Transfer,
) -> None:
    """Write the files with the numbers in `wanted` below `directory`, an empty directory of the caller's.

    Directories are there already. Every byte is verified before this returns; where it raises, what lies in
    the directory is not to be used.
    """
    parts = segments([file.size for file in files], [chunk.size for chunk in chunks])
    turns = {number: threading.Lock() for number in wanted}

    def job(chunk: Chunk, mine: list[Segment]) -> Callable[[], None]:
        def run() -> None:
            _Writer(files, mine, directory, turns).write(storage, chunk)
            transfer.add(sum(part.length for part in mine if part.file in wanted))

        return run

    jobs = (
        job(chunk, mine) for chunk, mine in zip(chunks, parts, strict=True) if any(part.file in wanted for part in mine)
    )
    in_threads(storage.threads, jobs)


def read_range(storage: Storage, chunks: Sequence[Chunk], file: FileEntry, start: int, end: int) -> bytes:
    """The bytes from `start` to `end` of a file, verified. Reads the file alone where its own digest is known,
    else the chunks that hold the range. Raises as `read_chunk` does."""
    content = bytearray()
    begin = 0
    for chunk in chunks:
        first, last = max(file.offset + start, begin), min(file.offset + end, begin + chunk.size)
        if first < last:
            alone = begin <= file.offset and file.offset + file.size <= begin + chunk.size
            if file.sha256 is not None and alone and file.size < min(chunk.size, _WHOLE):
                return _read_packed(storage, chunk, file, file.offset - begin)[start:end]
            piece = _Piece(first - begin, last - begin)
            read_chunk(storage, chunk, piece.take, piece.restart)
            content += piece.content
        begin += chunk.size
    return bytes(content)


class _Piece:
    """Keeps the bytes from `start` to `end` of what it is given, and no others."""

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.restart()

    def restart(self) -> None:
        self.content = bytearray()
        self._position = 0

    def take(self, block: memoryview) -> None:
        self.content += block[max(0, self.start - self._position) : max(0, self.end - self._position)]
        self._position += len(block)


def _read_packed(storage: Storage, chunk: Chunk, file: FileEntry, at: int) -> bytes:
    key = chunk_key(chunk.sha256)
    for _ in range(_ATTEMPTS):
        try:
            content = storage.get(key, at, file.size)
        except ArtifactNotFound as error:
            raise CorruptArtifact(f"{storage.url(key)}: a chunk of the artifact is missing; {_RESTORE}") from error
        if hashlib.sha256(content).hexdigest() == file.sha256:
            return content
    raise CorruptArtifact(f"{storage.url(key)}: the content of {file.path!r} in this chunk has changed; {_RESTORE}")


class _Writer:
    """Deals the blocks of one chunk out to the files whose parts it holds."""

    def __init__(
        self, files: Sequence[FileEntry], parts: list[Segment], directory: str, turns: dict[int, threading.Lock]
    ) -> None:
        """`turns` has a lock for each file that is wanted: Linux lets one thread at a time write to a file, and the
        others would spin until it is done, on cores that have something to hash."""
        self.files = files
        self.parts = parts
        self.directory = directory
        self.turns = turns
        self._restart()

    def write(self, storage: Storage, chunk: Chunk) -> None:
        try:
            read_chunk(storage, chunk, self._take, self._restart)
        finally:
            self._close()

    def _restart(self) -> None:
        self._close()
        self._next = iter(self.parts)
        self._left = 0

    _file: Any = None
    _turn: threading.Lock

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _take(self, block: memoryview) -> None:
        while block:
            if not self._left:
                self._close()
                part = next(self._next)
                self._left = part.length
                if part.file in self.turns:
                    self._turn = self.turns[part.file]
                    self._file = create(
                        os.path.join(self.directory, self.files[part.file].path), self.files[part.file].mode
                    )
                    self._file.seek(part.start)
            count = min(self._left, len(block))
            if self._file is not None:
                with self._turn:
                    write_all(self._file, block[:count])
            self._left -= count
            block = block[count:]


def create(location: str, mode: int) -> Any:
    """Open a file for writing, made with the execute bits of `mode` and what the umask leaves of the rest."""

    def opener(path: str, flags: int) -> int:
        return os.open(path, flags & ~os.O_TRUNC, 0o666 | (mode & 0o111))

    try:
        return open(location, "wb", buffering=0, opener=opener)
    except OSError as error:
        raise TargetError(f"cannot write {location!r}: {error.strerror}; {_ROOM}") from error


_ROOM = "make room and access there, or choose another path"


def write_all(file: Any, block: memoryview) -> None:
    """Write all of a block to an unbuffered file. Raises TargetError naming the file."""
    try:
        while block:
            block = block[file.write(block) :]
    except OSError as error:
        raise TargetError(f"cannot write {file.name!r}: {error.strerror}; {_ROOM}") from error


def packed_digests(files: Sequence[SourceFile], chunk_size: int, digests: dict[int, str]) -> list[str | None]:
    """For each file the digest that the manifest holds: its own where it is packed with others, else None."""
    return [digests.get(number) if is_packed(file.size, chunk_size) else None for number, file in enumerate(files)]
