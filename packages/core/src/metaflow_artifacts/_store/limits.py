"""Refuses what would make a manifest that is too large to be read, before anything of it is stored."""

from __future__ import annotations

from typing import cast

from metaflow_artifacts._format.manifest import MAX_BYTES, Chunk, Manifest, encode
from metaflow_artifacts._format.plan import plan_groups
from metaflow_artifacts._format.reference import ModelArtifact
from metaflow_artifacts._transfer.saving import file_entries
from metaflow_artifacts._transfer.scan import Source

__all__ = ["demand_readable"]

_ROW_BYTES = 200
"""At least as many as a row of a file needs besides its path, or a row of a chunk."""
_ESCAPED_BYTES = 12
"""At most so many bytes stand for a character of a path."""


def demand_readable(source: Source, chunk_size: int) -> None:
    """Raise SourceError if the manifest of these files would be larger than readers accept.

    What the head adds is not counted: a save that is at the limit may still be refused at its end.
    """
    rows = len(source.files) + source.size // chunk_size
    if rows * _ROW_BYTES + _ESCAPED_BYTES * sum(len(file.path) for file in source.files) < MAX_BYTES // 2:
        return
    digest = "0" * 64
    chunks: list[Chunk] = []
    digests: dict[int, str] = {}
    for group in plan_groups([(file.path, file.size) for file in source.files], chunk_size):
        chunks += [Chunk(digest, size) for size in group.sizes]
        if len(group.files) > 1:
            digests.update(dict.fromkeys(group.files, digest))
    artifact = cast(ModelArtifact, {"key": "save", "size": source.size, "metadata": {}})
    encode(Manifest(artifact, file_entries(source.files, digests), source.dirs, chunks, chunk_size))
