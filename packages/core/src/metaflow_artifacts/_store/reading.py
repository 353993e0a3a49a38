"""Manifests, read: whole, or the first parts alone; and what metaflow-checkpoint has stored in place of one."""

from __future__ import annotations

from collections.abc import Callable

from metaflow_artifacts._format.chunk_rows import ChunkRows
from metaflow_artifacts._format.foreign import ForeignArtifact
from metaflow_artifacts._format.manifest import (
    FRONT_BYTES,
    MAX_BYTES,
    Front,
    Head,
    Manifest,
    Outline,
    begins_manifest,
    decode,
    decode_front,
    decode_head,
    decode_outline,
    demand_version,
)
from metaflow_artifacts._format.reference import ModelArtifact
from metaflow_artifacts._format.tar import BLOCK as TAR_BLOCK
from metaflow_artifacts._format.tar import is_tar
from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._store.foreign import find, foreign_manifest
from metaflow_artifacts._store.references import ParsedReference, Reference, demand_same
from metaflow_artifacts.errors import ArtifactNotFound, CorruptArtifact, UnsupportedFormat

__all__ = ["StoredManifests"]

_FIRST_BYTES = 1 << 20
"""Bytes that are read of a manifest at first; few have more."""
_LARGE_BYTES = 4 << 20
"""Bytes of the rows of chunks from which they are read and decoded in pieces of this size."""
_READ_ATTEMPTS = 10
"""Most reads of a manifest that is damaged, while its bytes differ between reads."""


class StoredManifests:
    """What a store reads about artifacts."""

    storage: Storage

    def manifest(self, reference: Reference) -> Manifest:
        """The manifest of an artifact; of one that metaflow-checkpoint has stored, a ForeignManifest.

        Raises InvalidReference for a malformed key, ArtifactNotFound if nothing is stored there, CorruptArtifact if the
        manifest is damaged, StorageError if the datastore fails.
        """
        parsed = ParsedReference.of(reference)
        try:
            return self.manifest_and_bytes(parsed)[0]
        except (ArtifactNotFound, UnsupportedFormat) as error:
            found = self.foreign_artifact(parsed, error)
            manifest = foreign_manifest(self.storage, found)
        manifest.artifact["url"] = self.storage.url(parsed.key)
        return manifest

    def foreign_artifact(self, parsed: ParsedReference, error: ArtifactNotFound | UnsupportedFormat) -> ForeignArtifact:
        """The artifact of metaflow-checkpoint at a key; if there is none, this raises `error`.

        `error` says why there is none of these packages. An object that is no tar may be a damaged manifest, whatever
        JSON is beside it.
        """
        is_other = isinstance(error, ArtifactNotFound) or self._holds_tar(parsed.key)
        found = find(self.storage, parsed.key) if is_other else None
        if found is None:
            raise error
        demand_same(parsed, found.artifact)
        return found

    def _holds_tar(self, key: str) -> bool:
        try:
            return is_tar(self.storage.get(key, 0, TAR_BLOCK))
        except ArtifactNotFound:
            return False

    def manifest_and_bytes(self, reference: Reference, read: bytes | None = None) -> tuple[Manifest, bytes]:
        """As `manifest`, of an artifact of these packages, with the bytes that are stored.

        `read` is what was read of all of them before.
        """
        parsed = ParsedReference.of(reference)
        key = parsed.own_key
        manifest, data = self._decoded(key, read)
        if manifest.artifact["key"] != key:
            raise CorruptArtifact(
                f"{key}: the manifest stored there is that of {manifest.artifact['key']!r}; load that, or save again"
            )
        demand_same(parsed, manifest.artifact)
        return manifest, data

    def _decoded(self, key: str, read: bytes | None) -> tuple[Manifest, bytes]:
        data = self._whole(key) if read is None else read
        for _ in range(_READ_ATTEMPTS):
            try:
                return decode(data, key), data
            except CorruptArtifact:
                # Corruption in transit differs between reads; corruption at rest does not.
                again = self._whole(key)
                if again == data:
                    raise
                data = again
        return decode(data, key), data

    def _whole(self, key: str) -> bytes:
        """All of a manifest. Of a large object that is none, only the begin: it may be a tar of many gigabytes."""
        data = self._read(key, _FIRST_BYTES)
        if len(data) < _FIRST_BYTES or not begins_manifest(data):
            return data
        return self._read(key, MAX_BYTES + 1)

    def _read(self, key: str, length: int, start: int = 0) -> bytes:
        try:
            return self.storage.get(key, start, length)
        except ArtifactNotFound as error:
            raise ArtifactNotFound(
                f"nothing is stored at {self.storage.url(key)}: it was deleted, or it was saved in another datastore"
            ) from error

    def head(self, reference: Reference) -> Head:
        """The head of an artifact's manifest, of which only the first bytes are read. Raises as `manifest` does."""
        parsed = ParsedReference.of(reference)
        try:
            head = self.head_at(parsed.own_key)
        except (ArtifactNotFound, UnsupportedFormat) as error:
            head = Head(self.foreign_artifact(parsed, error).artifact, True)
            head.artifact["url"] = self.storage.url(parsed.key)
        demand_same(parsed, head.artifact)
        return head

    def head_at(self, key: str) -> Head:
        """As `head`, for a key that a listing gave and that is not checked again."""
        data, front = self._front(key, lambda front: front.head)
        head = None if front is None else decode_head(data, front)
        if head is None or head.artifact["key"] != key:
            manifest, _ = self.manifest_and_bytes(key)
            head = Head(manifest.artifact, manifest.latest)
        # The store may have been moved since the save, or has another URL here.
        head.artifact["url"] = self.storage.url(key)
        return head

    def outline_at(self, key: str) -> Outline:
        """As `head_at`, with the chunks that the artifact needs; the rows of files are not read."""
        data, front = self._front(key, lambda front: front.head if _is_large(front) else front.chunks)
        if front is None:
            outline = None
        elif _is_large(front):
            outline = self._large_outline(key, data, front)
        else:
            outline = decode_outline(data, front)
        if outline is None or outline.artifact["key"] != key:
            manifest, _ = self.manifest_and_bytes(key)
            outline = Outline(manifest.artifact, manifest.latest, manifest.chunks)
        return outline

    def _large_outline(self, key: str, data: bytes, front: Front) -> Outline | None:
        """As `decode_outline`; the rows of chunks are read in pieces."""
        head = decode_head(data, front)
        if head is None:
            return None
        rows = ChunkRows(front)
        for start in range(front.chunks.start, front.chunks.stop, _LARGE_BYTES):
            rows.feed(self._read(key, min(_LARGE_BYTES, front.chunks.stop - start), start))
        chunks = rows.chunks(head.artifact["size"])
        return None if chunks is None else Outline(head.artifact, head.latest, chunks)

    def _demand_manifest(self, key: str, data: bytes) -> None:
        """Raise UnsupportedFormat if the first bytes are no manifest's, so that a large object is not read for it."""
        try:
            demand_version(data, key)
        except CorruptArtifact:
            if self._read(key, FRONT_BYTES)[: len(data)] == data[:FRONT_BYTES]:
                raise

    def _front(self, key: str, part: Callable[[Front], slice]) -> tuple[bytes, Front | None]:
        """The first bytes of a manifest, to the end of the part that `part` selects. At most two reads.

        Raises UnsupportedFormat or CorruptArtifact if they are no manifest's.
        """
        data = self._read(key, FRONT_BYTES)
        front = decode_front(data)
        if front is not None and part(front).stop > len(data) == FRONT_BYTES:
            data = self._read(key, part(front).stop)
        if front is None:
            self._demand_manifest(key, data)
        return data, front

    def info(self, reference: Reference) -> ModelArtifact:
        """The reference to an artifact, from its key. Raises as `manifest` does."""
        return self.head(reference).artifact


def _is_large(front: Front) -> bool:
    return bool(front.chunks.stop - front.chunks.start > _LARGE_BYTES)
