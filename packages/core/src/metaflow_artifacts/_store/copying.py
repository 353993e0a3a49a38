"""Artifacts from one store to another, with the same keys.

The order of writes is that of a save: the chunks first, then the manifest, by put-if-absent. The manifest is copied as
it is, byte by byte. The oldest artifacts are committed first, so that a copy that was interrupted is an older state.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import groupby
from typing import TYPE_CHECKING

from metaflow_artifacts._format.foreign import ForeignArtifact
from metaflow_artifacts._format.keys import CheckpointKey, parse_key
from metaflow_artifacts._format.manifest import MAX_BYTES, Chunk, decode
from metaflow_artifacts._layout import NEEDS, TOP_DIRECTORIES
from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._store.copy_foreign import convert, present
from metaflow_artifacts._store.copy_plan import Plan, Planned, in_waves
from metaflow_artifacts._store.copy_tombstones import Tombstones
from metaflow_artifacts._store.foreign import find
from metaflow_artifacts._store.references import Reference
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
    SourceError,
    StorageError,
    TransientStorageError,
    UnsupportedFormat,
)

if TYPE_CHECKING:
    from metaflow_artifacts._store.store import Store

__all__ = ["CopyOfArtifacts", "CopyResult", "copy_artifacts"]

_ATTEMPTS = 10
"""Most attempts to store the chunks of a batch, while a concurrent gc removes some of them, and to write a manifest."""
_BATCH = 64
"""How many artifacts are committed after one look for a gc."""
_BATCH_BYTES = 32 << 20
"""The bytes of manifests after which a batch is full."""
_BATCH_CHUNKS = 4096
_MANIFESTS = 8
"""How many manifests that are not small are read at once: each may need much memory."""
_LARGE_BYTES = 16 << 20
"""Bytes of an artifact of metaflow-checkpoint from which it is copied alone, many parts of it at once."""
_LOOK_AGAIN_S = 900.0
"""Seconds after which a chunk that an earlier batch has found is looked at again."""
_REMEMBERED = 100_000
"""Of how many chunks it is kept from one batch to the next when they were looked at."""
_SHOWN = 10


@dataclass(frozen=True)
class CopyResult:
    """What a copy has done."""

    copied: tuple[str, ...]
    """The keys of the artifacts that are new to the target, the oldest first (but last in their batch those that were
    deleted there during the copy)."""
    present: tuple[str, ...]
    """The keys of those that the target had already."""
    missing_parents: tuple[str, ...]
    """With `lineage`: the keys of ancestors that do not exist in the source any more."""
    sent: int
    """Bytes that passed this process: of chunks, and of manifests."""
    by_service: int
    """Bytes of chunks that the service or the file system has copied."""


@dataclass(frozen=True)
class CopyOfArtifacts:
    """How a copy has ended."""

    result: CopyResult
    failures: dict[str, ArtifactError]
    """Why artifacts were not copied, by their keys."""
    stopped: ArtifactError | None
    """Why the copy was not carried to its end, if it was not."""

    def raise_first(self) -> None:
        """Raise the first of the errors, if there is one; its message also names the keys of the others."""
        if self.stopped is not None:
            raise self.stopped
        for key, error in self.failures.items():
            others = [other for other in self.failures if other != key]
            if not others:
                raise error
            more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
            raise type(error)(f"{error}; these were not copied either: {', '.join(others[:_SHOWN])}{more}") from error


def copy_artifacts(
    source: Store,
    target: Store,
    references: Iterable[Reference],
    lineage: bool,
    verify: bool,
    progress: Progress,
    listed: Iterable[str] = (),
) -> CopyOfArtifacts:
    """As `Store.copy_to`, also of the keys that were `listed`, which are no failure if nothing is there any more.

    Does not raise for single artifacts, nor once something may have been copied.
    """
    _refuse_one_store(source.storage, target.storage)
    references = [*references]
    plan = Plan(source, frozenset(listed) - {one for one in references if isinstance(one, str)})
    plan.add([*references, *plan.listed], lineage)
    return _Copy(source, target, plan, verify, progress).run()


class _Outcome(Enum):
    COPIED = 1
    PRESENT = 2
    GONE = 3
    """It was there, and was deleted in the target during the copy."""


@dataclass(frozen=True)
class _Item:
    """An artifact of the source."""

    planned: Planned
    chunks: Sequence[Chunk]
    latest: bool
    """What the manifest says. The rest of it is not kept: parsed, it takes much more memory than its bytes."""
    data: bytes
    there: bool | None
    """Whether the target has it; None if nothing is at its key."""

    @property
    def key(self) -> str:
        return self.planned.key


class _Copy:
    def __init__(self, source: Store, target: Store, plan: Plan, verify: bool, progress: Progress) -> None:
        self._source = source
        self._target = target
        self._plan = plan
        self._verify = verify
        self._progress = progress
        # Several artifacts share one look at their chunks, so that the last one comes later after it than that of a
        # save.
        self._refresh_after = target.refresh_after / 2
        self._chunks = ChunkCopier(source.storage, target.storage, verify, progress, self._refresh_after)
        self._looked: dict[Chunk, float] = {}
        """When chunks were looked at in the target."""
        self._identity = target.storage.identity()
        self._lock = threading.Lock()
        self._copied: list[str] = []
        self._present: list[str] = []
        self._sent = 0
        self._size = 0

    def run(self) -> CopyOfArtifacts:
        artifacts = self._plan.in_order()
        if any(one.is_checkpoint for one in artifacts):
            # The key of a model is random: nobody else writes it.
            self._target.storage.require_put_if_absent()
        if artifacts:
            self._copy_needs()
        self._progress.start(sum(one.size for one in artifacts))
        stopped = None
        try:
            for batch in self._batches(artifacts):
                self._copy_batch(batch)
                if len(self._looked) > _REMEMBERED:
                    self._looked.clear()
        except ArtifactError as error:
            stopped = error
        result = CopyResult(
            tuple(self._copied),
            tuple(self._present),
            tuple(sorted(self._plan.missing)),
            self._sent + self._chunks.sent,
            self._chunks.by_service,
        )
        return CopyOfArtifacts(result, self._plan.failures, stopped)

    def _copy_needs(self) -> None:
        """Tell the target which features the source uses: what is copied may need any of them."""
        for info in self._source.storage.list(NEEDS):
            if self._target.storage.stat(info.key) is None:
                self._target.storage.put_if_absent(info.key, b"")

    def _batches(self, artifacts: Iterable[Planned]) -> Iterator[list[_Item]]:
        batch: list[_Item] = []
        for item in self._items(artifacts):
            batch.append(item)
            chunks = sum(len(one.chunks) for one in batch)
            size = sum(len(one.data) for one in batch)
            if len(batch) >= _BATCH or size >= _BATCH_BYTES or chunks >= _BATCH_CHUNKS:
                yield batch
                batch = []
        if batch:
            yield batch

    def _items(self, artifacts: Iterable[Planned]) -> Iterator[_Item]:
        for (small, large), group in groupby(artifacts, lambda one: (one.data is not None, _is_large(one))):
            # The parts of a large one are copied at once.
            items = map(self._read, group) if large else None
            for item in items or ordered(self._source.storage, self._read, group, None if small else _MANIFESTS):
                if item is not None:
                    yield item

    def _read(self, one: Planned) -> _Item | None:
        if one.foreign is not None:
            return self._read_foreign(one, one.foreign)
        try:
            manifest, data = self._source.manifest_and_bytes(one.key, one.data)
        except (ArtifactNotFound, CorruptArtifact) as error:
            self._plan.fail(one.key, error)
            return None
        return _Item(
            one._replace(data=None), manifest.chunks, manifest.latest, data, _holds(self._target.storage, one.key, data)
        )

    def _read_foreign(self, one: Planned, found: ForeignArtifact) -> _Item | None:
        """As `_read`, of an artifact of metaflow-checkpoint: its content is in the target then."""
        begin = self._target.storage.now()
        try:
            there = present(self._target, found, one.key)
        except (InvalidReference, CorruptArtifact):
            return _Item(one, (), True, b"", False)
        if there is not None:
            manifest, data = there
            return _Item(one, manifest.chunks, manifest.latest, data, True)
        try:
            # With `verify`, the chunks are looked at again, and counted then.
            progress = Progress() if self._verify else self._progress
            made = convert(self._source, self._target, found, one.key, self._refresh_after, progress)
        except (CorruptArtifact, SourceError) as error:
            is_gone = find(self._source.storage, found.key) is None
            self._plan.fail(one.key, ArtifactNotFound(self._deleted(found.key)) if is_gone else error)
            return None
        if not self._verify:
            self._looked.update(dict.fromkeys(made.manifest.chunks, begin))
        with self._lock:
            self._sent += made.sent
        return _Item(one, made.manifest.chunks, made.manifest.latest, made.data, None)

    def _copy_batch(self, batch: list[_Item]) -> None:
        self._size += sum(item.planned.size for item in batch)
        while batch:
            # What was deleted in the target meanwhile is copied as what was never there.
            batch = [replace(item, there=None) for item in self._copy_items(batch)]
        # What is inline, was there, or is a part of several artifacts.
        self._progress.add(max(0, self._size - self._progress.done))

    def _copy_items(self, batch: list[_Item]) -> list[_Item]:
        """Copy artifacts. Returns those that were there, and are there no more."""
        items = []
        for item in batch:
            if item.there is False:
                self._plan.fail(item.key, self._conflict(item))
            elif item.there is None or self._verify:
                items.append(item)
        asked = {item.key for item in items}
        whole = self._store_chunks(items)
        self._demand_same_store()
        ready = {item.key: item for item in batch if item.key in whole or (item.there and item.key not in asked)}
        outcomes: dict[str, _Outcome | ArtifactError] = {}
        try:
            self._commit(ready, outcomes)
        finally:
            # In the order of their age, also if another thread has failed.
            for key in ready:
                self._note(ready[key], outcomes.get(key))
        return [item for key, item in ready.items() if outcomes[key] is _Outcome.GONE]

    def _note(self, item: _Item, outcome: _Outcome | ArtifactError | None) -> None:
        if outcome is _Outcome.COPIED:
            self._copied.append(item.key)
            self._sent += len(item.data)
        elif outcome is _Outcome.PRESENT:
            self._present.append(item.key)
        elif isinstance(outcome, ArtifactError):
            self._plan.fail(item.key, outcome)

    def _store_chunks(self, items: list[_Item]) -> set[str]:
        """Store the chunks of artifacts in the target. Returns the keys of those whose chunks are all there."""
        for _ in range(_ATTEMPTS):
            failures = self._look_at({chunk for item in items for chunk in item.chunks})
            for item in [*items]:
                bad = next((chunk for chunk in item.chunks if chunk in failures), None)
                if bad is not None:
                    self._plan.fail(item.key, self._explain(item, failures[bad]))
                    items.remove(item)
            needed = {chunk for item in items for chunk in item.chunks}
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

    def _commit(self, items: dict[str, _Item], outcomes: dict[str, _Outcome | ArtifactError]) -> None:
        """Commit artifacts, several at once; what came of each is put into `outcomes`."""
        keys = (parse_key(key) for key in items)
        checkpoints = [key for key in keys if isinstance(key, CheckpointKey)]
        stones = Tombstones(self._source.storage, self._target.storage, checkpoints)
        stones.keep_numbers()

        def commit(one: Planned) -> None:
            item = items[one.key]
            outcome = self._put_manifest(item)
            key = parse_key(one.key)
            if outcome in (_Outcome.COPIED, _Outcome.PRESENT) and isinstance(key, CheckpointKey):
                there = stones.set(key, item.latest)
                if not there and item.there:
                    outcome = _Outcome.GONE
            outcomes[one.key] = outcome

        for wave in in_waves(item.planned for item in items.values()):
            for _ in ordered(self._target.storage, commit, wave):
                pass

    def _put_manifest(self, item: _Item) -> _Outcome | ArtifactError:
        storage = self._target.storage
        if item.there:
            return _Outcome.GONE if storage.stat(item.key) is None else _Outcome.PRESENT
        for _ in range(_ATTEMPTS):
            if storage.put_if_absent(item.key, item.data):
                return _Outcome.COPIED
            there = _holds(storage, item.key, item.data)
            if there is not None:
                return _Outcome.PRESENT if there else self._conflict(item)
        raise TransientStorageError(
            f"{self._target.root}: {item.key} was written and deleted by others while it was copied, {_ATTEMPTS} times "
            "in a row; copy again"
        )

    def _conflict(self, item: _Item) -> ArtifactError:
        where = f"cannot copy {item.key} from {self._source.root}: in {self._target.root}, "
        try:
            decode(self._target.storage.get(item.key, 0, MAX_BYTES + 1), item.key)
        except (UnsupportedFormat, ArtifactNotFound):
            pass
        except CorruptArtifact as error:
            return CorruptArtifact(
                f"{where}the manifest at this key is damaged; delete it there, and copy again ({error})"
            )
        return StorageError(f"{where}another artifact has this key; delete it there, or copy to another root")

    def _explain(self, item: _Item, error: ArtifactError) -> ArtifactError:
        if item.planned.foreign is not None:
            return TransientStorageError(
                f"{self._target.root}: a gc removed content of {item.key} while it was copied; copy again"
            )
        if self._source.storage.stat(item.key) is None:
            return ArtifactNotFound(f"{self._deleted(item.key)}, and a gc has removed its content")
        return type(error)(f"cannot copy {item.key} to {self._target.root}: {error}")

    def _deleted(self, key: str) -> str:
        return f"cannot copy {key} to {self._target.root}: it was deleted from {self._source.root} while it was copied"


def _is_large(one: Planned) -> bool:
    return one.foreign is not None and one.size > _LARGE_BYTES


def _holds(storage: Storage, key: str, data: bytes) -> bool | None:
    """Whether the object at a key has these bytes; None if there is none. Not more is read of one that is larger."""
    try:
        return storage.get(key, 0, len(data) + 1) == data
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
