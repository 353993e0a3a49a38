"""The numbers of an attempt's checkpoints, as the store knows them."""

from __future__ import annotations

from collections.abc import Iterator

from metaflow_artifacts._format.keys import CheckpointKey, CheckpointPlace, parse_key
from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts.errors import InvalidReference

__all__ = ["highest_number"]


def highest_number(storage: Storage, place: CheckpointPlace, id: str, attempt: int) -> int:
    """The highest number that an attempt has given to a checkpoint, deleted ones included; -1 where it has given none.

    Deleting the checkpoint with the highest number leaves its marker. Two listings. Raises StorageError.
    """
    return max(_numbers(storage, place, id, attempt), default=-1)


def _numbers(storage: Storage, place: CheckpointPlace, id: str, attempt: int) -> Iterator[int]:
    for kind in ("artifacts", "not_latest"):
        for info in storage.list(f"{place.prefix(kind)}{id}.{attempt}."):
            try:
                key = parse_key(info.key.replace(f"/{kind}/", "/artifacts/", 1))
            except InvalidReference:
                continue
            if isinstance(key, CheckpointKey):
                yield key.n
