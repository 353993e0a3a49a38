"""Files of a pack read alone, where that is less than to read all of the pack."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from metaflow_artifacts._format.manifest import Chunk, FileEntry
from metaflow_artifacts._format.plan import Segment
from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._transfer.cache import Cache
from metaflow_artifacts._transfer.chunks import READ_ATTEMPTS, chunk_key, damaged, missing
from metaflow_artifacts.errors import ArtifactNotFound

__all__ = ["MAX_HELD_BYTES", "Run", "cached_run", "read_run", "runs"]

MAX_HELD_BYTES = 64 << 20
"""The most that is read into memory to be verified alone."""
_BYTES_A_REQUEST = 1 << 20
"""What one connection moves while it waits for the answer to another request, at 50 MB/s and 20 ms."""


@dataclass
class Run:
    """Files that stand one after the other in a chunk, and are read with one request."""

    start: int
    """The first of their bytes in the chunk."""
    files: list[int] = field(default_factory=list)
    """Their numbers in the artifact."""
    size: int = 0
    """Bytes."""


def runs(chunk: Chunk, parts: Sequence[Segment], files: Sequence[FileEntry], wanted: set[int]) -> list[Run] | None:
    """How to read only the wanted files of a pack; None where the whole chunk is to be read.

    That is so where a wanted part is not a whole file with a digest of its own, and where requests for the files alone
    would be so many more that the whole is as fast.
    """
    if len(parts) < 2 or all(part.file in wanted for part in parts):
        return None
    found: list[Run] = []
    at = 0
    for part in parts:
        file = files[part.file]
        if part.file in wanted:
            if file.sha256 is None or part.length != file.size:
                return None
            if not found or found[-1].start + found[-1].size != at:
                found.append(Run(at))
            found[-1].files.append(part.file)
            found[-1].size += part.length
        at += part.length
    saved = chunk.size - sum(run.size for run in found)
    held = max(run.size for run in found)
    return found if held <= MAX_HELD_BYTES and saved >= (len(found) - 1) * _BYTES_A_REQUEST else None


def cached_run(cache: Cache | None, chunk: Chunk, start: int, files: Sequence[FileEntry]) -> bytes | None:
    """As `read_run`, from the node's cache; None where that does not have the chunk."""
    content = cache.read_part(chunk, start, sum(file.size for file in files)) if cache is not None else None
    if cache is None or content is None:
        return None
    if _wrong(memoryview(content), files) is not None:
        cache.discard(chunk)
        return None
    return content


def read_run(storage: Storage, chunk: Chunk, start: int, files: Sequence[FileEntry]) -> bytes:
    """The contents of files that stand one after the other in a chunk, from its byte `start`; each is verified.

    Raises CorruptArtifact where the chunk is missing, or the content of a file is not that of its digest.
    """
    size = sum(file.size for file in files)
    found: dict[str, list[str]] = {}
    for _ in range(READ_ATTEMPTS):
        try:
            content = storage.get(chunk_key(chunk.sha256), start, size)
        except ArtifactNotFound as error:
            raise missing(storage, chunk) from error
        wrong = _wrong(memoryview(content), files)
        if wrong is None:
            return content
        path, digest = wrong
        found.setdefault(path, []).append(digest)
    path = max(found, key=lambda path: len(found[path]))
    raise damaged(storage, chunk, f"the content of {path!r} in this chunk", found[path])


def _wrong(content: memoryview, files: Sequence[FileEntry]) -> tuple[str, str] | None:
    """The first file whose content is wrong, and the digest of what is there; None where all are right."""
    at = 0
    for file in files:
        digest = hashlib.sha256(content[at : at + file.size]).hexdigest()
        if digest != file.sha256:
            return file.path, digest
        at += file.size
    return None
