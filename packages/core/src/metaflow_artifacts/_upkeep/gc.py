"""Removes chunks that no artifact names; saves may run at the same time.

`docs/format.md` has the algorithm and the proof that it is safe beside saves. In short: chunks that were written or
renewed within the grace period stay. The time of a chunk is checked again just before its removal. While that happens,
a gc mark in the store makes saves wait and check their chunks again.

A gc has two stages: what manifests name (`NamedChunks`), then each prefix by itself (`find_garbage`). `stages.py` has
the same stages as functions that can run on several machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from metaflow_artifacts._storage import ObjectInfo
from metaflow_artifacts._store.store import Store
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._upkeep.garbage import Waiting, find_garbage, remove_garbage
from metaflow_artifacts._upkeep.manifests import unreadable
from metaflow_artifacts._upkeep.named import NamedChunks
from metaflow_artifacts._upkeep.needs import refuse_unknown_needs
from metaflow_artifacts._upkeep.others import find_others, keeps_versions
from metaflow_artifacts._upkeep.survey import Strays, artifact_objects, outlines
from metaflow_artifacts.errors import CorruptArtifact, InvalidInput

__all__ = ["GRACE", "GcPlan", "GcStats", "begin_gc", "execute_gc", "gc", "plan_gc", "refuse_again"]

GRACE = 7 * 24 * 3600.0
"""Seconds for which every chunk is kept after a save has written or needed it."""


@dataclass(frozen=True)
class GcPlan:
    """What a gc would remove. It may be executed at any later time."""

    root: str
    limit: float
    """Seconds since the epoch, by the storage's clock: chunks that were written or renewed later stay."""
    artifacts: int
    """Manifests that were read."""
    chunks: int
    """Chunks in the store."""
    stored: int
    """Bytes of all chunks."""
    garbage: Sequence[ObjectInfo]
    """Chunks that no artifact names and that are older than `limit`."""
    waiting: Waiting
    """Chunks that no artifact names and that are not older than `limit`."""
    temporary: Sequence[ObjectInfo]
    """Temporary objects of writers and of upkeep flows that were killed."""
    tombstones: Sequence[ObjectInfo]
    """Tombstones of checkpoints that do not exist, which keep no number from being drawn again."""
    choices: Sequence[ObjectInfo]
    """Choices of gangs that are older than `limit`."""
    marks: Sequence[ObjectInfo]
    """Marks of earlier gc runs."""
    keeps_versions: bool | None
    """Whether the storage keeps removed objects as old versions; None if it does not tell."""
    ignore: Sequence[str] = ()
    """Prefixes below which objects that are not understood were ignored."""

    @property
    def size(self) -> int:
        """Bytes that would be freed."""
        return sum(info.size for info in chain(self.garbage, self.others))

    @property
    def others(self) -> tuple[ObjectInfo, ...]:
        """All objects to remove that are not chunks."""
        return (*self.temporary, *self.tombstones, *self.choices, *self.marks)


@dataclass(frozen=True)
class GcStats:
    """What a gc did, or would do if it is a dry run."""

    dry_run: bool
    artifacts: int
    """Manifests that were read."""
    chunks: int
    """Chunks in the store before."""
    stored: int
    """Bytes of all chunks before."""
    removed: int
    """Chunks that were removed."""
    temporary: int
    """Temporary objects of killed writers and upkeep flows that were removed."""
    tombstones: int
    """Tombstones that were removed."""
    choices: int
    """Choices of gangs that were removed."""
    marks: int
    """Marks of earlier gc runs that were removed."""
    freed: int
    """Bytes freed. If `keeps_versions` is true, they still take space as old versions."""
    spared: int
    """Chunks of the plan that a save needed again, or another gc removed, before this gc came to them."""
    waiting: Waiting
    """Chunks that no artifact names and that are younger than the grace period; they stay."""
    keeps_versions: bool | None
    """Whether the storage keeps removed objects as old versions, until a lifecycle rule expires them; None if it does
    not tell."""


def gc(
    store: Store,
    *,
    grace: float = GRACE,
    exclusive: bool = False,
    dry_run: bool = True,
    ignore: Sequence[str] = (),
    progress: Progress | None = None,
) -> GcStats:
    """Remove the chunks that no artifact needs and that no save has written or needed for `grace` seconds.

    Unless `dry_run` is False, nothing is removed, and the statistics tell what would be. Saves, loads, deletes and
    other gc runs may happen at the same time. Raises as `plan_gc` and `execute_gc` do.
    """
    plan = plan_gc(store, grace=grace, exclusive=exclusive, ignore=ignore, progress=progress)
    if not dry_run:
        return execute_gc(store, plan, progress=progress)
    return GcStats(
        dry_run=True,
        artifacts=plan.artifacts,
        chunks=plan.chunks,
        stored=plan.stored,
        removed=len(plan.garbage),
        temporary=len(plan.temporary),
        tombstones=len(plan.tombstones),
        choices=len(plan.choices),
        marks=len(plan.marks),
        freed=plan.size,
        spared=0,
        waiting=plan.waiting,
        keeps_versions=plan.keeps_versions,
    )


def plan_gc(
    store: Store,
    *,
    grace: float = GRACE,
    exclusive: bool = False,
    ignore: Sequence[str] = (),
    progress: Progress | None = None,
) -> GcPlan:
    """Find what a gc may remove; nothing is changed.

    `grace`, in seconds, must be at least twice the `refresh_after` of this store and of every process that saves to it,
    because a save relies on chunks that are as old as that. With `exclusive`, the caller promises that nothing is saved
    until the plan was executed; then any grace period is allowed. `ignore` lists keys, or first parts of keys; objects
    there that are not understood are ignored. `progress` counts the manifests that are read.

    Raises InvalidInput for a grace period that is too short, CorruptArtifact if a manifest cannot be read (it may name
    any chunk), and StorageError if the store needs a later version, if an object below the artifacts' prefixes is not
    understood, or if the storage fails.
    """
    storage = store.storage
    strays = Strays(storage, ignore)
    begin, limit = begin_gc(store, grace, exclusive)
    named = NamedChunks()
    artifacts = _collect_named(store, named, strays, progress)
    found = find_garbage(storage, named.of, begin, limit)
    others = find_others(store, begin, limit)
    return GcPlan(
        root=store.root,
        limit=limit,
        artifacts=artifacts,
        chunks=found.chunks,
        stored=found.stored,
        garbage=found.garbage,
        waiting=found.waiting,
        temporary=others.temporary,
        tombstones=others.tombstones,
        choices=others.choices,
        marks=others.marks,
        keeps_versions=keeps_versions(storage),
        ignore=tuple(ignore),
    )


def begin_gc(store: Store, grace: float, exclusive: bool) -> tuple[float, float]:
    """The time now, and the time before which chunks must have been written or renewed to be removed.

    Both are in seconds since the epoch, by the storage's clock. Raises as `plan_gc` does.
    """
    if grace < 0 or (not exclusive and grace < 2 * store.refresh_after):
        raise InvalidInput(
            f"grace period of {grace:g} s: at least {2 * store.refresh_after:g} s are needed while anything saves to "
            f"{store.root}; only when nothing does until the end, pass exclusive (--exclusive) to use a shorter one"
        )
    begin = store.storage.now()
    refuse_unknown_needs(store.storage)
    # With `exclusive`, nothing is saved from `begin` on. So an object whose time equals `begin`, within the resolution
    # of the storage's clock, was written before it.
    return begin, begin - grace + (store.storage.resolution if exclusive else 0)


def _collect_named(store: Store, named: NamedChunks, strays: Strays, progress: Progress | None) -> int:
    """Add the chunks that any artifact names to `named`; returns the number of artifacts."""
    count = 0
    objects = artifact_objects(store.storage, strays=strays)
    for info, outline in outlines(store, objects, strays, progress):
        if isinstance(outline, CorruptArtifact):
            raise CorruptArtifact(unreadable(info.key, outline))
        if outline is not None:
            count += 1
            named.add(outline.chunks)
    strays.refuse()
    return count


def execute_gc(store: Store, plan: GcPlan, *, progress: Progress | None = None) -> GcStats:
    """Remove what `plan_gc` found, except chunks that were needed again since.

    Raises InvalidInput for the plan of another store, and StorageError if the storage fails, or if an object that
    `plan_gc` refuses was written since.
    """
    if plan.root != store.root:
        raise InvalidInput(f"the plan was made for {plan.root}, not for {store.root}; make one for it with plan_gc")
    refuse_again(store, plan.ignore)
    progress = progress or Progress()
    progress.start(sum(info.size for info in plan.garbage))
    removed = remove_garbage(store, plan.garbage, plan.limit, progress)
    store.storage.delete([info.key for info in plan.others])
    return GcStats(
        dry_run=False,
        artifacts=plan.artifacts,
        chunks=plan.chunks,
        stored=plan.stored,
        removed=removed.chunks,
        temporary=len(plan.temporary),
        tombstones=len(plan.tombstones),
        choices=len(plan.choices),
        marks=len(plan.marks),
        freed=removed.size + sum(info.size for info in plan.others),
        spared=len(plan.garbage) - removed.chunks,
        waiting=plan.waiting,
        keeps_versions=plan.keeps_versions,
    )


def refuse_again(store: Store, ignore: Sequence[str]) -> None:
    """Raise StorageError if an object that is not understood was written since the manifests were read."""
    refuse_unknown_needs(store.storage)
    strays = Strays(store.storage, ignore)
    for _ in artifact_objects(store.storage, strays=strays):
        pass
    strays.refuse()
