"""The numbers that the checkpoints of an attempt have in the store."""

from __future__ import annotations

from metaflow_artifacts._format.keys import CheckpointPlace
from metaflow_artifacts._layout import TOMBSTONES
from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._store.listing import checkpoints, tombstones

__all__ = ["highest_number"]


def highest_number(storage: Storage, place: CheckpointPlace, id: str, attempt: int) -> int:
    """The highest number that an attempt has given to a checkpoint, also a deleted one; -1 if it has given none.

    Deleting the checkpoint with the highest number leaves its tombstone. Two listings. Raises StorageError.
    """
    begin = f"{id}.{attempt}."
    found = (
        *checkpoints(storage.list(place.prefix() + begin)),
        *tombstones(storage.list(place.prefix(TOMBSTONES) + begin)),
    )
    return max((key.n for key, _ in found), default=-1)
