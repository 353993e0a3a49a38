"""Removes chunks that no artifact names; saves may run at the same time.

`docs/format.md` has the algorithm and the proof that it is safe beside saves. In short: chunks that were written or
renewed within the grace period stay. The time of a chunk is checked again just before its removal. While that happens,
a gc mark in the store makes saves wait and check their chunks again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from metaflow_artifacts._layout import CHECKPOINTS, CHOICES, HUB, TOMBSTONES, checkpoint_prefix
from metaflow_artifacts._storage import ObjectInfo, Storage
from metaflow_artifacts._store.listing import checkpoints, tombstones
from metaflow_artifacts._store.store import Store
from metaflow_artifacts._transfer.gc_marks import GcMarks, old_marks
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.threads import ordered
from metaflow_artifacts._upkeep.needs import refuse_unknown_needs
from metaflow_artifacts._upkeep.survey import Strays, artifact_objects, chunk_objects, outlines
from metaflow_artifacts.errors import (
    CorruptArtifact,
    InvalidInput,
    StorageError,
    TransientStorageError,
)

__all__ = ["GRACE", "GcPlan", "GcStats", "Waiting", "execute_gc", "gc", "plan_gc"]

GRACE = 7 * 24 * 3600.0
"""Seconds for which every chunk is kept after a save has written or needed it."""

_BATCH = 256
_CHOICES = checkpoint_prefix(CHECKPOINTS, CHOICES)


@dataclass(frozen=True)
class Waiting:
    """Chunks that no artifact names and that the grace period keeps."""

    chunks: int
    size: int
    """Bytes of them."""
    first: float | None
    """Seconds since the epoch: when the grace period of the oldest ends. None where there is no such chunk."""
    last: float | None
    """The same for the youngest."""


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
    """Temporary objects of writers that were killed."""
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
        return sum(info.size for info in (*self.garbage, *self.others))

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
    """Temporary objects of killed writers that were removed."""
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
    if grace < 0 or (not exclusive and grace < 2 * store.refresh_after):
        raise InvalidInput(
            f"grace period of {grace:g} s: at least {2 * store.refresh_after:g} s are needed while anything saves to "
            f"{store.root}; only when nothing does until the end, pass exclusive (--exclusive) to use a shorter one"
        )
    storage = store.storage
    strays = Strays(storage, ignore)
    begin = storage.now()
    refuse_unknown_needs(storage)
    # With `exclusive`, nothing is saved from `begin` on. So an object whose time equals `begin`, within the resolution
    # of the storage's clock, was written before it.
    limit = begin - grace + (storage.resolution if exclusive else 0)
    unneeded = {digest: info for info, digest in chunk_objects(storage)}
    chunks, stored = len(unneeded), sum(info.size for info in unneeded.values())
    artifacts = _discard_named(store, unneeded, strays, progress)
    old = max(grace, 2 * store.refresh_after)
    return GcPlan(
        root=store.root,
        limit=limit,
        artifacts=artifacts,
        chunks=chunks,
        stored=stored,
        garbage=tuple(info for info in unneeded.values() if info.modified < limit),
        waiting=_waiting([info for info in unneeded.values() if info.modified >= limit], begin - limit),
        temporary=tuple(info for info in storage.leftovers() if info.modified < limit),
        tombstones=tuple(_orphans(storage, limit)),
        # A choice is needed while the nodes of its attempt start.
        choices=tuple(info for info in storage.list(_CHOICES) if info.modified < limit),
        marks=tuple(old_marks(storage, begin - old)),
        keeps_versions=_keeps_versions(storage),
        ignore=tuple(ignore),
    )


def _keeps_versions(storage: Storage) -> bool | None:
    try:
        return storage.keeps_versions()
    except StorageError:
        # The answer is only reported, and the question needs a permission that gc does not need otherwise.
        return None


def _waiting(chunks: list[ObjectInfo], grace: float) -> Waiting:
    times = [info.modified + grace for info in chunks]
    return Waiting(len(chunks), sum(info.size for info in chunks), min(times, default=None), max(times, default=None))


def _discard_named(store: Store, chunks: dict[bytes, ObjectInfo], strays: Strays, progress: Progress | None) -> int:
    """Remove the chunks that any artifact names from `chunks`; returns the number of artifacts."""
    count = 0
    objects = artifact_objects(store.storage, strays=strays)
    for info, outline in outlines(store, objects, strays, progress):
        if isinstance(outline, CorruptArtifact):
            raise CorruptArtifact(
                f"nothing was removed: {info.key} cannot be read, and it may need any chunk; upgrade "
                f"metaflow-artifacts, restore it or delete it ({outline})"
            )
        if outline is None:
            continue
        count += 1
        for chunk in outline.chunks:
            chunks.pop(bytes.fromhex(chunk.sha256), None)
    strays.refuse()
    return count


def _orphans(storage: Storage, limit: float) -> Iterator[ObjectInfo]:
    """Old tombstones without their checkpoint, except those that keep a number from being drawn again."""
    for root in (CHECKPOINTS, HUB):
        found = list(tombstones(storage.list(checkpoint_prefix(root, TOMBSTONES))))
        if not any(info.modified < limit for _, info in found):
            continue
        there = {key for key, _ in checkpoints(storage.list(checkpoint_prefix(root)))}
        highest: dict[tuple[object, ...], int] = {}
        for key in (*there, *(key for key, _ in found)):
            attempt = key.place, key.id, key.attempt
            highest[attempt] = max(highest.get(attempt, key.n), key.n)
        for key, info in found:
            if info.modified < limit and key not in there and key.n < highest[key.place, key.id, key.attempt]:
                yield info


def execute_gc(store: Store, plan: GcPlan, *, progress: Progress | None = None) -> GcStats:
    """Remove what `plan_gc` found, except chunks that were needed again since.

    Raises InvalidInput for the plan of another store, and StorageError if the storage fails, or if an object that
    `plan_gc` refuses was written since.
    """
    if plan.root != store.root:
        raise InvalidInput(f"the plan was made for {plan.root}, not for {store.root}")
    refuse_unknown_needs(store.storage)
    strays = Strays(store.storage, plan.ignore)
    for _ in artifact_objects(store.storage, strays=strays):
        pass
    strays.refuse()
    removed = _remove_garbage(store, plan, progress or Progress())
    store.storage.delete([info.key for info in plan.others])
    return GcStats(
        dry_run=False,
        artifacts=plan.artifacts,
        chunks=plan.chunks,
        stored=plan.stored,
        removed=len(removed),
        temporary=len(plan.temporary),
        tombstones=len(plan.tombstones),
        choices=len(plan.choices),
        marks=len(plan.marks),
        freed=sum(info.size for info in (*removed, *plan.others)),
        spared=len(plan.garbage) - len(removed),
        waiting=plan.waiting,
        keeps_versions=plan.keeps_versions,
    )


def _remove_garbage(store: Store, plan: GcPlan, transfer: Progress) -> list[ObjectInfo]:
    transfer.start(sum(info.size for info in plan.garbage))
    storage = store.storage
    marks = GcMarks(storage)
    waiting = list(plan.garbage)
    removed: list[ObjectInfo] = []
    size = _BATCH
    while waiting:
        batch, waiting = waiting[:size], waiting[size:]
        with marks.batch() as in_time:
            now = list(ordered(storage, lambda info: storage.stat(info.key), batch))
            doomed = [info for info in now if info is not None and info.modified < plan.limit]
            if not in_time():
                # Saves will not wait for this batch much longer. Check again under a new mark, in a smaller batch.
                if size == 1:
                    raise TransientStorageError(f"{store.root} answers too slowly for a gc beside saves; try later")
                waiting, size = doomed + waiting, size // 2
                continue
            storage.delete([info.key for info in doomed])
        removed += doomed
        transfer.add(sum(info.size for info in batch))
    return removed
