"""Gives back the space of chunks that no artifact names, while saves may run.

`docs/format.md` has the algorithm and why it is safe beside saves. In short: what was written or renewed within the
grace period is left alone; a chunk is looked at once more right before it goes; and while that happens, a mark in
the store makes saves wait and look again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from metaflow_artifacts.check import ARTIFACT_PREFIXES, artifact_objects, chunk_objects, manifests
from metaflow_artifacts.errors import CorruptArtifact, InvalidReference, TransientStorageError
from metaflow_artifacts.keys import CHECKPOINTS, HUB
from metaflow_artifacts.manifest import Manifest
from metaflow_artifacts.progress import Transfer
from metaflow_artifacts.storage import ObjectInfo, Storage
from metaflow_artifacts.store import Store
from metaflow_artifacts.sweeps import Sweep, old_marks

__all__ = ["GRACE", "GcPlan", "GcStats", "execute_gc", "gc", "plan_gc"]

GRACE = 7 * 24 * 3600.0
"""Seconds for which everything is kept that was written, or needed again, by whatever save."""

_BATCH = 256
_MARKER_PREFIXES = tuple(f"{root}/checkpoints/not_latest/" for root in (CHECKPOINTS, HUB))


@dataclass(frozen=True)
class GcPlan:
    """What a gc would remove. It stays valid however much later it is executed."""

    root: str
    limit: float
    """Seconds since the epoch: what was written or renewed later than this stays."""
    artifacts: int
    """Manifests that were read; 0 where nothing is old enough for it to matter."""
    chunks: int
    """Chunks in the store."""
    stored: int
    """Bytes of all chunks."""
    garbage: Sequence[ObjectInfo]
    """Chunks that no artifact names and that are old enough to go."""
    temporary: Sequence[ObjectInfo]
    """Temporary objects that killed writers left behind."""
    markers: Sequence[ObjectInfo]
    """Markers of checkpoints that do not exist, and marks of earlier gc runs."""

    @property
    def size(self) -> int:
        """Bytes that would be given back."""
        return sum(info.size for info in (*self.garbage, *self.temporary, *self.markers))


@dataclass(frozen=True)
class GcStats:
    """What a gc did, or with a dry run would do."""

    dry_run: bool
    artifacts: int
    """Manifests that were read; 0 where nothing is old enough for it to matter."""
    chunks: int
    """Chunks in the store before."""
    stored: int
    """Bytes of all chunks before."""
    removed: int
    """Chunks that were removed."""
    temporary: int
    """Temporary objects of killed writers that were removed."""
    markers: int
    """Markers that were removed."""
    freed: int
    """Bytes given back."""
    spared: int
    """Chunks of the plan that were needed again, or removed by another, before they were reached."""


def gc(
    store: Store,
    *,
    grace: float = GRACE,
    exclusive: bool = False,
    dry_run: bool = True,
    progress: Transfer | None = None,
) -> GcStats:
    """Remove what no artifact needs and nothing has written or needed for `grace` seconds.

    Without `dry_run=False`, nothing is removed and the statistics tell what would be. Saves, loads, deletes and
    other gc runs may go on at the same time. Raises as `plan_gc` does.
    """
    plan = plan_gc(store, grace=grace, exclusive=exclusive)
    if not dry_run:
        return execute_gc(store, plan, progress=progress)
    return GcStats(
        dry_run=True,
        artifacts=plan.artifacts,
        chunks=plan.chunks,
        stored=plan.stored,
        removed=len(plan.garbage),
        temporary=len(plan.temporary),
        markers=len(plan.markers),
        freed=plan.size,
        spared=0,
    )


def plan_gc(store: Store, *, grace: float = GRACE, exclusive: bool = False) -> GcPlan:
    """Find what a gc may remove; nothing is changed.

    `grace`, in seconds, must be at least twice the `refresh_after` of this store and of all that save to it: a save
    relies on chunks that are that old. `exclusive` promises that nothing saves until the plan was executed; then
    any grace period will do. Raises InvalidReference for a grace period that is too short, CorruptArtifact where a
    manifest cannot be read (it may name any chunk), StorageError where the storage fails.
    """
    if grace < 0 or (not exclusive and grace < 2 * store.refresh_after):
        raise InvalidReference(
            f"grace period of {grace:g} s: at least {2 * store.refresh_after:g} s are needed while anything saves to "
            f"{store.root}; only when nothing does until the end, pass exclusive (--exclusive) to use a shorter one"
        )
    begin = time.time()
    limit = begin - grace
    storage = store.storage
    chunks = stored = 0
    candidates: dict[bytes, ObjectInfo] = {}
    for info, digest in chunk_objects(storage):
        chunks += 1
        stored += info.size
        if info.modified < limit:
            candidates[digest] = info
    artifacts = _discard_named(store, candidates) if candidates else 0
    old = max(grace, 2 * store.refresh_after)
    return GcPlan(
        root=store.root,
        limit=limit,
        artifacts=artifacts,
        chunks=chunks,
        stored=stored,
        garbage=tuple(candidates.values()),
        temporary=tuple(info for info in storage.leftovers() if info.modified < limit),
        markers=(*_orphans(storage, limit), *old_marks(storage, begin - old)),
    )


def _discard_named(store: Store, candidates: dict[bytes, ObjectInfo]) -> int:
    """Take what any artifact names out of `candidates`; the number of artifacts."""
    count = 0
    with ThreadPoolExecutor(store.storage.threads) as pool:
        for info, manifest in manifests(store, artifact_objects(store.storage), pool):
            if isinstance(manifest, CorruptArtifact):
                raise CorruptArtifact(
                    f"nothing was removed: {info.key} cannot be read, and it may need any chunk; upgrade "
                    f"metaflow-artifacts, restore it or delete it ({manifest})"
                )
            count += 1
            if isinstance(manifest, Manifest) and manifest.inline is None:
                for chunk in manifest.chunks:
                    candidates.pop(bytes.fromhex(chunk.sha256), None)
    return count


def _orphans(storage: Storage, limit: float) -> Iterator[ObjectInfo]:
    """Old markers without their checkpoint: one of them would hide a later checkpoint of the same key."""
    for prefix in _MARKER_PREFIXES:
        old = [info for info in storage.list(prefix) if info.modified < limit]
        if old:
            artifacts = prefix.replace("/not_latest/", "/artifacts/")
            assert artifacts in ARTIFACT_PREFIXES
            there = {info.key[len(artifacts) :] for info in storage.list(artifacts)}
            yield from (info for info in old if info.key[len(prefix) :] not in there)


def execute_gc(store: Store, plan: GcPlan, *, progress: Transfer | None = None) -> GcStats:
    """Remove what `plan_gc` found, but for what was needed again since. Raises StorageError."""
    if plan.root != store.root:
        raise InvalidReference(f"the plan was made for {plan.root}, not for {store.root}")
    transfer = progress or Transfer()
    transfer.start(sum(info.size for info in plan.garbage))
    storage = store.storage
    sweep = Sweep(storage)
    waiting = list(plan.garbage)
    removed: list[ObjectInfo] = []
    size = _BATCH
    while waiting:
        batch, waiting = waiting[:size], waiting[size:]
        with sweep.batch() as in_time, ThreadPoolExecutor(storage.threads) as pool:
            now = list(pool.map(lambda info: storage.stat(info.key), batch))
            doomed = [info for info in now if info is not None and info.modified < plan.limit]
            if not in_time():
                # Saves do not wait for this batch much longer: look again under a new mark, at fewer.
                if size == 1:
                    raise TransientStorageError(f"{store.root} answers too slowly for a gc beside saves; try later")
                waiting, size = doomed + waiting, size // 2
                continue
            storage.delete([info.key for info in doomed])
        removed += doomed
        transfer.add(sum(info.size for info in batch))
    freed = (*removed, *plan.temporary, *plan.markers)
    storage.delete([info.key for info in (*plan.temporary, *plan.markers)])
    return GcStats(
        dry_run=False,
        artifacts=plan.artifacts,
        chunks=plan.chunks,
        stored=plan.stored,
        removed=len(removed),
        temporary=len(plan.temporary),
        markers=len(plan.markers),
        freed=sum(info.size for info in freed),
        spared=len(plan.garbage) - len(removed),
    )
