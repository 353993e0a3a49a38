"""The tombstones that a copy writes and removes in the target."""

from __future__ import annotations

from collections.abc import Iterable

from metaflow_artifacts._format.keys import Attempt, CheckpointKey, CheckpointPlace, attempt_of
from metaflow_artifacts._layout import TOMBSTONES
from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._store.listing import tombstones
from metaflow_artifacts._transfer.threads import ordered

__all__ = ["Tombstones"]


class Tombstones:
    """The tombstones of the places of some checkpoints, in both stores, as they were at the begin."""

    def __init__(self, source: Storage, target: Storage, checkpoints: Iterable[CheckpointKey]) -> None:
        self._target = target
        self._checkpoints = [*checkpoints]
        places = dict.fromkeys(key.place for key in self._checkpoints)
        self._source_has = _listed(source, places)
        self._target_has = _listed(target, places)

    def keep_numbers(self) -> None:
        """Write the tombstone of the highest number that each attempt has one for in the source.

        Otherwise the target would give the number of a deleted checkpoint again, and what was made from that one
        would name another.
        """
        highest: dict[Attempt, CheckpointKey] = {}
        attempts = {attempt_of(key) for key in self._checkpoints}
        for key in self._source_has:
            attempt = attempt_of(key)
            if attempt in attempts and (attempt not in highest or highest[attempt].n < key.n):
                highest[attempt] = key
        for key in self._target_has:
            if attempt_of(key) in highest and highest[attempt_of(key)].n <= key.n:
                del highest[attempt_of(key)]
        copied = set(self._checkpoints)
        for _ in ordered(self._target, self._keep_number, [key for key in highest.values() if key not in copied]):
            pass

    def _keep_number(self, key: CheckpointKey) -> None:
        # A checkpoint that exists keeps its number, and must not be hidden from searches.
        if self._target.stat(str(key)) is None:
            self._target.put(key.tombstone, b"")

    def set(self, key: CheckpointKey, latest: bool) -> bool:
        """Let a search for the newest checkpoint find in the target what it finds in the source.

        `latest` is what the manifest says. False if the checkpoint was deleted in the target meanwhile.
        """
        wanted = not latest or key in self._source_has
        if wanted and key not in self._target_has:
            self._target.put(key.tombstone, b"")
        elif key in self._target_has and not wanted:
            # The checkpoint was deleted in the target before it was copied again, or is being deleted now.
            if self._target.stat(str(key)) is None:
                return False
            self._target.delete([key.tombstone])
            if self._target.stat(str(key)) is None:
                self._target.put(key.tombstone, b"")
                return False
        return True


def _listed(storage: Storage, places: Iterable[CheckpointPlace]) -> set[CheckpointKey]:
    def listed(place: CheckpointPlace) -> list[CheckpointKey]:
        return [key for key, _ in tombstones(storage.list(place.prefix(TOMBSTONES)))]

    return {key for found in ordered(storage, listed, places) for key in found}
