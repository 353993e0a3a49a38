"""Artifacts from one store to another, with the same keys.

The order of writes is that of a save: the chunks first, then the manifest, by put-if-absent. The manifest is copied as
it is, byte by byte. The oldest artifact is committed first, so that a copy that was interrupted is an older state.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metaflow_artifacts._format.keys import CheckpointKey, CheckpointPlace, parse_key
from metaflow_artifacts._format.manifest import Chunk, Manifest
from metaflow_artifacts._format.reference import ModelArtifact
from metaflow_artifacts._layout import NEEDS, TOMBSTONES, TOP_DIRECTORIES
from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._store.references import ParsedReference, Reference
from metaflow_artifacts._transfer.chunks import are_safe_from_gc
from metaflow_artifacts._transfer.copying import ChunkCopier
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.threads import ordered
from metaflow_artifacts.errors import (
    ArtifactError,
    ArtifactNotFound,
    CorruptArtifact,
    InvalidInput,
    InvalidReference,
    StorageError,
    TransientStorageError,
)

if TYPE_CHECKING:
    from metaflow_artifacts._store.store import Store

__all__ = ["CopyResult", "copy_artifacts", "raise_first"]

_ATTEMPTS = 10
"""Most attempts to store the chunks of a batch, while a concurrent gc removes some of them."""
_BATCH = 64
"""How many artifacts are committed after one look for a gc."""
_BATCH_BYTES = 32 << 20
"""The bytes of manifests after which a batch is full."""
_BATCH_CHUNKS = 4096
_MANIFESTS = 8
"""How many manifests are read at once: each may need much memory."""
_LOOK_AGAIN_S = 900.0
"""Seconds after which a chunk that an earlier batch has found is looked at again."""
_SHOWN = 10


@dataclass(frozen=True)
class CopyResult:
    """What a copy has done."""

    copied: tuple[str, ...]
    """The keys of the artifacts that are new to the target, in the order of their commits: the oldest first."""
    present: tuple[str, ...]
    """The keys of those that the target had already."""
    missing_parents: tuple[str, ...]
    """With `lineage`: the keys of ancestors that do not exist in the source any more."""
    sent: int
    """Bytes that passed this process: of chunks, and of manifests."""
    by_service: int
    """Bytes of chunks that the service or the file system has copied."""


def copy_artifacts(
    source: Store, target: Store, references: Iterable[Reference], lineage: bool, verify: bool, progress: Progress
) -> tuple[CopyResult, dict[str, ArtifactError]]:
    """As `Store.copy_to`. Returns also why artifacts were not copied, by their keys, and does not raise for these."""
    _refuse_one_store(source.storage, target.storage)
    return _Copy(source, target, verify, progress).run(references, lineage)


def raise_first(failures: Mapping[str, ArtifactError]) -> None:
    """Raise the first of the errors, if there is one; its message also names the keys of the others."""
    for key, error in failures.items():
        others = [other for other in failures if other != key]
        if not others:
            raise error
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        raise type(error)(f"{error}; these were not copied either: {', '.join(others[:_SHOWN])}{more}") from error


@dataclass(frozen=True)
class _Item:
    """An artifact of the source."""

    manifest: Manifest
    data: bytes
    there: bool | None
    """Whether the target has it; None if nothing is at its key."""

    @property
    def key(self) -> str:
        return self.manifest.artifact["key"]


class _Copy:
    def __init__(self, source: Store, target: Store, verify: bool, progress: Progress) -> None:
        self._source = source
        self._target = target
        self._verify = verify
        self._progress = progress
        # The manifests of a batch are committed one after the other, so that the last one comes later after the look
        # at its chunks than that of a save.
        self._refresh_after = target.refresh_after / 2
        self._chunks = ChunkCopier(source.storage, target.storage, verify, progress, self._refresh_after)
        self._looked: dict[Chunk, float] = {}
        """When chunks were looked at in the target."""
        self._identity = target.storage.identity()
        self._tombstones: dict[tuple[str, CheckpointPlace], set[str]] = {}
        self._copied: list[str] = []
        self._present: list[str] = []
        self._missing: list[str] = []
        self._failures: dict[str, ArtifactError] = {}
        self._sent = 0
        self._size = 0

    def run(self, references: Iterable[Reference], lineage: bool) -> tuple[CopyResult, dict[str, ArtifactError]]:
        found = self._find([ParsedReference.of(reference) for reference in references])
        if lineage:
            self._add_ancestors(found)
        if any(artifact["type"] == "checkpoint" for artifact in found.values()):
            # The key of a model is random: nobody else writes it.
            self._target.storage.require_put_if_absent()
        if found:
            self._copy_needs()
        self._progress.start(sum(artifact["size"] for artifact in found.values()))
        for batch in self._batches(sorted(found.values(), key=_age)):
            self._copy_batch(batch)
        result = CopyResult(
            tuple(self._copied),
            tuple(self._present),
            tuple(sorted(self._missing)),
            self._sent + self._chunks.sent,
            self._chunks.by_service,
        )
        return result, self._failures

    def _find(self, wanted: Iterable[ParsedReference]) -> dict[str, ModelArtifact]:
        """The artifacts that exist, by their keys. The others become failures."""

        def read(parsed: ParsedReference) -> tuple[str, ModelArtifact | ArtifactError]:
            try:
                return parsed.key, self._source.info(parsed)
            except (ArtifactNotFound, CorruptArtifact) as error:
                return parsed.key, error

        found: dict[str, ModelArtifact] = {}
        distinct = {(one.key, one.artifact is None): one for one in wanted}
        for key, outcome in ordered(self._source.storage, read, distinct.values()):
            if isinstance(outcome, ArtifactError):
                self._failures[key] = outcome
            else:
                found[key] = outcome
        return found

    def _add_ancestors(self, found: dict[str, ModelArtifact]) -> None:
        """Add the ancestors that exist. Those that do not are noted, and fail nothing."""
        new = dict(found)
        seen = {*found, *self._failures}
        while new:
            wanted = []
            for parent in {parent for artifact in new.values() for parent in artifact.get("parents", [])} - seen:
                seen.add(parent)
                try:
                    wanted.append(ParsedReference.of(parent))
                except InvalidReference:
                    self._missing.append(parent)
            new = self._find(one for one in wanted if one.key not in found)
            for one in wanted:
                if isinstance(self._failures.get(one.key), ArtifactNotFound):
                    del self._failures[one.key]
                    self._missing.append(one.key)
            found.update(new)

    def _copy_needs(self) -> None:
        """Tell the target which features the source uses: what is copied may need any of them."""
        for info in self._source.storage.list(NEEDS):
            if self._target.storage.stat(info.key) is None:
                self._target.storage.put_if_absent(info.key, b"")

    def _batches(self, artifacts: Iterable[ModelArtifact]) -> Iterator[list[_Item]]:
        batch: list[_Item] = []
        for item in ordered(self._source.storage, self._read, artifacts, _MANIFESTS):
            if item is None:
                continue
            batch.append(item)
            chunks = sum(len(one.manifest.chunks) for one in batch)
            size = sum(len(one.data) for one in batch)
            if len(batch) >= _BATCH or size >= _BATCH_BYTES or chunks >= _BATCH_CHUNKS:
                yield batch
                batch = []
        if batch:
            yield batch

    def _read(self, artifact: ModelArtifact) -> _Item | None:
        key = artifact["key"]
        try:
            manifest, data = self._source.manifest_and_bytes(key)
        except (ArtifactNotFound, CorruptArtifact) as error:
            self._failures[key] = error
            return None
        return _Item(manifest, data, _holds(self._target.storage, key, data))

    def _copy_batch(self, batch: list[_Item]) -> None:
        items = []
        for item in batch:
            if item.there is False:
                self._failures[item.key] = self._conflict(item)
            elif item.there is None or self._verify:
                items.append(item)
        whole = self._store_chunks(items)
        self._demand_same_store()
        for item in batch:
            if item.key not in self._failures and (item.there or item.key in whole):
                self._commit(item)
        # What is inline, was there, or is a part of several artifacts.
        self._size += sum(item.manifest.size for item in batch)
        self._progress.add(max(0, self._size - self._progress.done))

    def _store_chunks(self, items: list[_Item]) -> set[str]:
        """Store the chunks of artifacts in the target. Returns the keys of those whose chunks are all there."""
        for _ in range(_ATTEMPTS):
            failures = self._look_at({chunk for item in items for chunk in item.manifest.chunks})
            for item in [*items]:
                bad = next((chunk for chunk in item.manifest.chunks if chunk in failures), None)
                if bad is not None:
                    self._failures[item.key] = self._explain(item, failures[bad])
                    items.remove(item)
            needed = {chunk for item in items for chunk in item.manifest.chunks}
            if not needed:
                break
            since = min(self._looked[chunk] for chunk in needed)
            if are_safe_from_gc(self._target.storage, [*needed], since, self._refresh_after):
                break
            for chunk in needed:
                del self._looked[chunk]
        else:
            raise TransientStorageError(
                f"{self._target.root}: chunks of this copy were deleted while it ran, {_ATTEMPTS} times in a row; is a "
                "gc running with a grace period that is shorter than a copy takes?"
            )
        return {item.key for item in items}

    def _look_at(self, chunks: set[Chunk]) -> dict[Chunk, ArtifactError]:
        """Store those of the chunks that were not looked at in the target lately. Returns why some are not there."""
        now = self._target.storage.now()
        old = {chunk for chunk in chunks if now - self._looked.get(chunk, 0.0) > _LOOK_AGAIN_S}
        failures = self._chunks.copy(old)
        self._looked.update((chunk, now) for chunk in old - failures.keys())
        return failures

    def _demand_same_store(self) -> None:
        """Raise StorageError if the target was replaced since the copy began, or since its first batch made it."""
        identity = self._target.storage.identity()
        if self._identity not in (None, identity):
            raise StorageError(f"{self._target.root}: the store was removed or replaced during the copy; copy again")
        self._identity = identity

    def _commit(self, item: _Item) -> None:
        storage = self._target.storage
        if item.there:
            self._present.append(item.key)
        elif storage.put_if_absent(item.key, item.data):
            self._sent += len(item.data)
            self._copied.append(item.key)
        elif _holds(storage, item.key, item.data):
            self._present.append(item.key)
        else:
            self._failures[item.key] = self._conflict(item)
            return
        self._set_tombstone(item)

    def _set_tombstone(self, item: _Item) -> None:
        """A search for the newest checkpoint finds in the target what it finds in the source."""
        key = parse_key(item.key)
        if not isinstance(key, CheckpointKey):
            return
        wanted = not item.manifest.latest or key.tombstone in self._tombstones_of(self._source, key.place)
        there = key.tombstone in self._tombstones_of(self._target, key.place)
        if wanted and not there:
            self._target.storage.put(key.tombstone, b"")
        elif there and not wanted:
            # The artifact was deleted in the target before it was copied again.
            self._target.storage.delete([key.tombstone])

    def _tombstones_of(self, store: Store, place: CheckpointPlace) -> set[str]:
        which = store.root, place
        if which not in self._tombstones:
            self._tombstones[which] = {info.key for info in store.storage.list(place.prefix(TOMBSTONES))}
        return self._tombstones[which]

    def _conflict(self, item: _Item) -> StorageError:
        return StorageError(
            f"cannot copy {item.key} from {self._source.root}: in {self._target.root}, another artifact has this key; "
            "delete it there, or copy to another root"
        )

    def _explain(self, item: _Item, error: ArtifactError) -> ArtifactError:
        if self._source.storage.stat(item.key) is None:
            return ArtifactNotFound(
                f"cannot copy {item.key} to {self._target.root}: it was deleted from {self._source.root} while it was "
                "copied, and a gc has removed its content"
            )
        return type(error)(f"cannot copy {item.key} to {self._target.root}: {error}")


def _age(artifact: ModelArtifact) -> tuple[str, int, int, str]:
    return artifact["created_on"], artifact["attempt"], artifact.get("version_id", 0), artifact["key"]


def _holds(storage: Storage, key: str, data: bytes) -> bool | None:
    """Whether the object at a key has these bytes; None if there is none. One of another size is not read."""
    info = storage.stat(key)
    if info is None:
        return None
    try:
        return info.size == len(data) and storage.get(key) == data
    except ArtifactNotFound:
        return None


def _refuse_one_store(source: Storage, target: Storage) -> None:
    """Raise InvalidInput if one of the two is the other one, or lies where the other one keeps its objects."""
    roots = [storage.root if "://" in storage.root else os.path.realpath(storage.root) for storage in (source, target)]
    identity = source.identity()
    one = roots[0] == roots[1] and _server(source) == _server(target)
    if one or (identity is not None and identity == target.identity()):
        raise InvalidInput(f"cannot copy from {source.root} to {target.root}: both are the same store")
    for inner, outer in (roots, roots[::-1]):
        if any(f"{inner}/".startswith(f"{outer.rstrip('/')}/{name}/") for name in TOP_DIRECTORIES):
            raise InvalidInput(
                f"cannot copy from {source.root} to {target.root}: one of them lies among the objects of the other; "
                "copy to another root"
            )


def _server(storage: Storage) -> str:
    return storage.server if "://" in storage.root else ""
