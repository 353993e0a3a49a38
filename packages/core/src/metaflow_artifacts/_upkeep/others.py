"""What a gc removes besides chunks: objects that nothing needs any more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from metaflow_artifacts._format.keys import Attempt, attempt_of
from metaflow_artifacts._layout import CHECKPOINTS, CHOICES, HUB, SURVEYS, TOMBSTONES, checkpoint_prefix
from metaflow_artifacts._storage import ObjectInfo, Storage
from metaflow_artifacts._store.listing import checkpoints, tombstones
from metaflow_artifacts._store.store import Store
from metaflow_artifacts._transfer.gc_marks import old_marks
from metaflow_artifacts.errors import StorageError

__all__ = ["Others", "find_others", "keeps_versions"]

_CHOICES = checkpoint_prefix(CHECKPOINTS, CHOICES)


@dataclass(frozen=True)
class Others:
    """Objects to remove that are not chunks."""

    temporary: tuple[ObjectInfo, ...]
    """Temporary objects of writers and of upkeep flows that were killed."""
    tombstones: tuple[ObjectInfo, ...]
    """Tombstones of checkpoints that do not exist, which keep no number from being drawn again."""
    choices: tuple[ObjectInfo, ...]
    """Old choices of gangs."""
    marks: tuple[ObjectInfo, ...]
    """Marks of earlier gc runs."""

    @property
    def all(self) -> tuple[ObjectInfo, ...]:
        """All of them."""
        return (*self.temporary, *self.tombstones, *self.choices, *self.marks)


def find_others(store: Store, begin: float, limit: float) -> Others:
    """What a gc removes besides chunks; `begin` and `limit` are those of `begin_gc`. Raises StorageError."""
    storage = store.storage
    old = min(limit, begin - 2 * store.refresh_after)
    surveys = (info for info in storage.list(SURVEYS) if info.modified < old)
    return Others(
        temporary=(*(info for info in storage.leftovers() if info.modified < limit), *surveys),
        tombstones=tuple(_orphans(storage, limit)),
        # A choice is needed while the nodes of its attempt start.
        choices=tuple(info for info in storage.list(_CHOICES) if info.modified < limit),
        marks=tuple(old_marks(storage, old)),
    )


def keeps_versions(storage: Storage) -> bool | None:
    """Whether the storage keeps removed objects as old versions; None if it does not tell."""
    try:
        return storage.keeps_versions()
    except StorageError:
        # The answer is only reported, and the question needs a permission that gc does not need otherwise.
        return None


def _orphans(storage: Storage, limit: float) -> Iterator[ObjectInfo]:
    """Old tombstones without their checkpoint, except those that keep a number from being drawn again."""
    for root in (CHECKPOINTS, HUB):
        found = list(tombstones(storage.list(checkpoint_prefix(root, TOMBSTONES))))
        attempts = {attempt_of(key) for key, info in found if info.modified < limit}
        if not attempts:
            continue
        highest: dict[Attempt, int] = {}
        there = set()
        for key, _ in checkpoints(storage.list(checkpoint_prefix(root))):
            # Of other attempts nothing is kept in memory: a store may have millions of checkpoints.
            if (attempt := attempt_of(key)) in attempts:
                there.add(key)
                highest[attempt] = max(highest.get(attempt, key.n), key.n)
        for key, _ in found:
            highest[attempt_of(key)] = max(highest.get(attempt_of(key), key.n), key.n)
        for key, info in found:
            if info.modified < limit and key not in there and key.n < highest[attempt_of(key)]:
                yield info
