"""Artifacts of metaflow-checkpoint on their way to another store, where they become ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metaflow_artifacts._format.foreign import ForeignArtifact, ForeignManifest
from metaflow_artifacts._format.keys import CheckpointKey, parse_key
from metaflow_artifacts._format.manifest import Chunk, FileEntry, Manifest, encode
from metaflow_artifacts._format.plan import INLINE_LIMIT
from metaflow_artifacts._format.reference import ModelArtifact, normalise_metadata, parse_reference
from metaflow_artifacts._store.foreign import demand_unchanged, foreign_manifest, is_latest, refuse_partly
from metaflow_artifacts._transfer.foreign import read_part, store_chunks
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts.errors import ArtifactNotFound, InvalidReference

if TYPE_CHECKING:
    from metaflow_artifacts._store.store import Store

__all__ = ["Converted", "convert", "present"]


@dataclass(frozen=True)
class Converted:
    """An artifact of metaflow-checkpoint as one of ours, whose chunks are stored in the target."""

    manifest: Manifest
    data: bytes
    """The manifest, as it is to be written."""
    sent: int
    """Bytes of chunks that were new to the target."""


def convert(
    source: Store, target: Store, found: ForeignArtifact, key: str, refresh_after: float, progress: Progress
) -> Converted:
    """Store the content of an artifact in `target`, and make the manifest that is to be written at `key` there.

    Its members are those that a save would have written. Raises CorruptArtifact if the artifact cannot be loaded whole,
    SourceError if it has too many files, StorageError.
    """
    foreign = foreign_manifest(source.storage, found)
    refuse_partly(foreign, None)
    chunks: list[Chunk] = []
    digests: dict[int, str] = {}
    inline, sent = None, 0
    if foreign.size <= INLINE_LIMIT:
        inline = b"".join(
            read_part(source.storage, file, location, 0, file.size)
            for file, location in zip(foreign.files, foreign.locations, strict=True)
        )
    else:
        chunks, digests, sent = store_chunks(
            source.storage, foreign, target.storage, target.chunk_size, refresh_after, progress
        )
    demand_unchanged(source.storage, foreign, range(len(foreign.files)))
    files = [
        FileEntry(file.path, file.size, file.mode, file.offset, digests.get(number))
        for number, file in enumerate(foreign.files)
    ]
    artifact = _artifact(source, foreign, key)
    latest = is_latest(source.storage, found)
    manifest = Manifest(artifact, files, foreign.dirs, chunks, target.chunk_size, inline, latest)
    return Converted(manifest, encode(manifest), sent)


def present(target: Store, found: ForeignArtifact, key: str) -> tuple[Manifest, bytes] | None:
    """The manifest at `key` in `target`, if an earlier copy has made it of this artifact; None if there is none.

    Raises InvalidReference if another artifact is there, CorruptArtifact if the manifest is damaged.
    """
    try:
        manifest, data = target.manifest_and_bytes(key)
    except ArtifactNotFound:
        return None
    if any(manifest.artifact[name] != found.artifact[name] for name in ("created_on", "pathspec", "type")):
        raise InvalidReference(f"{key}: another artifact is stored there")
    return manifest, data


def _artifact(source: Store, foreign: ForeignManifest, key: str) -> ModelArtifact:
    old, parts = foreign.artifact, parse_key(key)
    members: dict[str, Any] = {
        "uuid": key.rpartition("/")[2],
        "type": old["type"],
        "pathspec": old["pathspec"],
        "attempt": old["attempt"],
        "created_on": old["created_on"],
        "metadata": normalise_metadata(old["metadata"]),
        "label": old["label"],
        "parents": list(old.get("parents", [])),
    }
    if isinstance(parts, CheckpointKey):
        members |= {"attempt": parts.attempt, "name": parts.name, "version_id": parts.n}
    return parse_reference({**members, "key": key, "size": foreign.size, "url": source.storage.url(old["key"])})
