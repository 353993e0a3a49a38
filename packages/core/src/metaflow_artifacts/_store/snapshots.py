"""Snapshots: checkpoints that have the files of one state of a remote place, such as a commit of a repo.

They are found by the place and name of their checkpoints; snapshots of other places by the dedupe index. Content that
any of them has gets a second manifest, and is not transferred again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from metaflow_artifacts._format.keys import CheckpointKey, parse_key
from metaflow_artifacts._format.manifest import Manifest
from metaflow_artifacts._format.reference import ModelArtifact
from metaflow_artifacts._storage.base import ObjectInfo
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._store.dedupe_index import DedupeIndex
from metaflow_artifacts._store.ingestion import Ingested, ingest
from metaflow_artifacts._store.listing import checkpoints
from metaflow_artifacts._store.previous_snapshot import PreviousSnapshot
from metaflow_artifacts._store.streams import StreamedFile, StreamSource
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts.errors import ArtifactNotFound, CorruptArtifact, TransientStorageError

__all__ = ["SnapshotId", "Snapshots"]

_F = TypeVar("_F", bound=StreamedFile)

_CLOCK_RESOLUTION_S = 2.0
"""Storages may date objects in whole seconds: objects closer than this are compared by their manifests."""


@dataclass(frozen=True)
class SnapshotId:
    """What tells a snapshot from all others."""

    name: str
    """The name of its checkpoints."""
    group: str
    """All snapshots of the same remote place; part of a key."""
    entry: str
    """The snapshot within its group; part of a key."""
    metadata: Mapping[str, Any]
    """Where the content came from."""


class Snapshots:
    """The snapshots that one task finds and stores."""

    def __init__(self, writer: CheckpointWriter, prefix: str, label: str, warn: Callable[[str], None]) -> None:
        """`writer` saves the checkpoints; the dedupe index is below `prefix`. `label` becomes that of new snapshots.

        `warn` is called with one line for each snapshot that cannot be read.
        """
        self.store = writer.store
        self.index = DedupeIndex(writer.store, prefix)
        self._writer = writer
        self._label = label
        self._warn = warn

    def listed(self, name: str) -> list[ObjectInfo]:
        """The checkpoints of this name at the writer's place, newest first. None of them is read."""
        infos = self.store.storage.list(self._writer.place.prefix())
        found = [info for key, info in checkpoints(infos) if key.name == name]
        return sorted(found, key=lambda info: info.modified, reverse=True)

    def read(self, listed: Iterable[ObjectInfo], accept: Callable[[ModelArtifact], bool]) -> Iterator[Manifest]:
        """The manifests that can be read and that `accept` takes, in the order of `listed`, each read when needed."""
        for info in listed:
            try:
                manifest = self.store.manifest(info.key)
            except (ArtifactNotFound, CorruptArtifact) as error:
                self._warn(f"skipping a stored snapshot: {error}")
                continue
            if accept(manifest.artifact):
                yield manifest

    def newest(self, listed: list[ObjectInfo], accept: Callable[[ModelArtifact], bool]) -> Manifest | None:
        """The newest of them that can be read and that `accept` takes."""
        best = next(self.read(listed, accept), None)
        if best is None:
            return None
        # Of snapshots that were stored at almost the same time, the manifests say which is newest.
        times = {info.key: info.modified for info in listed}
        candidates = [info for info in listed if abs(info.modified - times[best.artifact["key"]]) < _CLOCK_RESOLUTION_S]
        return max(self.read(candidates, accept), key=lambda manifest: manifest.artifact["created_on"], default=best)

    def elsewhere(self, id: SnapshotId) -> Manifest | None:
        """The snapshot of this content that the index knows, from any place; None if there is none."""
        snapshot = self.index.snapshot(id.group, id.entry)
        return snapshot.manifest if snapshot is not None else None

    def is_here(self, manifest: Manifest) -> bool:
        """Whether a snapshot is one of the writer's place."""
        key = parse_key(manifest.artifact["key"])
        return isinstance(key, CheckpointKey) and key.place == self._writer.place

    def adopt(self, id: SnapshotId, manifest: Manifest) -> ModelArtifact | None:
        """A second manifest for the content of a snapshot, at the writer's place; None if some of it is gone."""
        try:
            return self._commit(id, Ingested(list(manifest.files), list(manifest.chunks), {}), manifest.inline)
        except TransientStorageError:
            return None

    def ingest(
        self,
        id: SnapshotId,
        source: StreamSource[_F],
        files: Sequence[_F],
        *,
        reuse: bool = True,
        target: str | None = None,
        progress: Progress | None = None,
    ) -> tuple[Ingested, ModelArtifact]:
        """Store a snapshot of `files` as they come from `source`. Arguments and errors are those of `ingest`."""
        newest = self.index.newest(id.group) if reuse else None
        previous = PreviousSnapshot(self.store.storage, newest) if newest is not None else None

        def run(target: str | None, progress: Progress | None) -> Ingested:
            return ingest(
                self.store,
                self.index,
                source,
                files,
                previous=previous,
                reuse=reuse,
                target=target,
                progress=progress,
            )

        content = run(target, progress)
        try:
            artifact = self._commit(id, content)
        except TransientStorageError:
            # A gc has removed chunks in the meantime. Only these are fetched again.
            again = run(None, None)
            again.downloaded += content.downloaded
            again.delivered = content.delivered
            content, artifact = again, self._commit(id, again)
        self.index.note_snapshot(id.group, id.entry, artifact["key"], content.ids)
        return content, artifact

    def save(self, id: SnapshotId, locations: Mapping[str, str], ids: Mapping[str, str]) -> ModelArtifact:
        """Store a snapshot of files on this disk: their locations by their paths. `ids` are those that are known."""
        artifact = self._writer.save(dict(locations), id.name, id.metadata, label=self._label)
        self.index.note_snapshot(id.group, id.entry, artifact["key"], ids)
        return artifact

    def _commit(self, id: SnapshotId, content: Ingested, inline: bytes | None = None) -> ModelArtifact:
        artifact = self.store.commit_checkpoint(
            content.files,
            content.chunks,
            self._writer.keys(id.name),
            self._writer.details(self._label, id.metadata),
            since=content.since,
            inline=inline,
        )
        self._writer.saved(artifact, latest=True)
        return artifact
