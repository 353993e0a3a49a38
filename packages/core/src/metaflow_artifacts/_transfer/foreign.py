"""Files of artifacts that metaflow-checkpoint has stored: parts of objects, which no digest verifies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from metaflow_artifacts._format.foreign import ForeignManifest, Location
from metaflow_artifacts._format.manifest import Chunk, FileEntry
from metaflow_artifacts._format.plan import Segment, plan, segments
from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._storage.job import check
from metaflow_artifacts._transfer.chunks import READ_BYTES, put_chunk
from metaflow_artifacts._transfer.current_engine import engine
from metaflow_artifacts._transfer.engine import Call
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.target import create, seek, write_all
from metaflow_artifacts._transfer.width import Width, width_of
from metaflow_artifacts.errors import ArtifactNotFound, CorruptArtifact

__all__ = ["fetch_files", "read_part", "store_chunks"]

_PIECE_BYTES = 16 << 20
"""Bytes of a file that one request reads; a large file is read by several at once."""
_BLOCK_BYTES = 512 << 10

File = tuple[FileEntry, Location]


def fetch_files(storage: Storage, files: Sequence[File], directory: str, progress: Progress) -> None:
    """Write files below `directory`, whose directories exist, several at once.

    Raises CorruptArtifact where an object has fewer bytes than it should, or is gone; TargetError, StorageError.
    """
    width = width_of(storage, "load")
    engine().run(_calls(storage, files, directory, progress, width), width)


def _calls(storage: Storage, files: Iterable[File], directory: str, progress: Progress, width: Width) -> Iterator[Call]:
    for file, location in files:
        # An empty file is made too.
        for start in range(0, max(1, file.size), _PIECE_BYTES):
            part = Segment(0, start, min(_PIECE_BYTES, file.size - start))
            yield READ_BYTES, partial(_fetch, storage, file, location, part, directory, progress, width)


def _fetch(
    storage: Storage,
    file: FileEntry,
    location: Location,
    part: Segment,
    directory: str,
    progress: Progress,
    width: Width,
) -> None:
    with create(os.path.join(directory, file.path), file.mode) as out:
        seek(out, part.start)
        for block in _blocks(storage, file, location, part):
            check()
            width.moved(len(block))
            write_all(out, block)
            progress.add(len(block))


def _blocks(storage: Storage, file: FileEntry, location: Location, part: Segment) -> Iterator[memoryview]:
    left = part.length
    if not left:
        return
    block = memoryview(bytearray(min(_BLOCK_BYTES, left)))
    try:
        with storage.open_any(location.key, location.start + part.start, left) as reader:
            while left and (count := reader.readinto(block[:left])):
                left -= count
                yield block[:count]
    except ArtifactNotFound:
        raise CorruptArtifact(
            f"{storage.url(location.key)}: {file.path!r} was removed since it was listed; restore it"
        ) from None
    if left:
        raise CorruptArtifact(f"{storage.url(location.key)}: {left} bytes of {file.path!r} are missing; restore it")


def read_part(storage: Storage, file: FileEntry, location: Location, start: int, end: int) -> bytes:
    """The bytes from `start` to `end` of a file. Raises as `fetch_files`."""
    return b"".join(bytes(block) for block in _blocks(storage, file, location, Segment(0, start, end - start)))


def store_chunks(
    source: Storage,
    manifest: ForeignManifest,
    target: Storage,
    chunk_size: int,
    refresh_after: float,
    progress: Progress,
) -> tuple[list[Chunk], dict[int, str], int]:
    """Store the content of an artifact in another storage, cut into chunks as a save would cut it.

    Returns the chunks in order; for each file that shares a chunk with others its SHA-256 (hex), by its number; and the
    bytes that were new to the target. Raises CorruptArtifact where content is missing, StorageError.
    """
    files = manifest.files
    sizes = plan([(file.path, file.size) for file in files], chunk_size)
    chunks: list[Chunk | None] = [None] * len(sizes)
    new = [0] * len(sizes)
    digests: dict[int, str] = {}
    width = width_of(target, "copy")

    def store(number: int, parts: list[Segment]) -> None:
        content = bytearray()
        for part in parts:
            begin = len(content)
            for block in _blocks(source, files[part.file], manifest.locations[part.file], part):
                check()
                width.moved(len(block))
                content += block
            if len(parts) > 1:
                digests[part.file] = hashlib.sha256(memoryview(content)[begin:]).hexdigest()
        chunks[number], is_new = put_chunk(target, memoryview(content), refresh_after)
        new[number] = len(content) if is_new else 0
        progress.add(len(content), stored=new[number])

    parts = segments([file.size for file in files], sizes)
    # The content, and what the storage holds of it while it is sent.
    engine().run(
        (
            (2 * size + READ_BYTES, partial(store, n, mine))
            for n, (size, mine) in enumerate(zip(sizes, parts, strict=True))
        ),
        width,
    )
    return [chunk for chunk in chunks if chunk is not None], digests, sum(new)
