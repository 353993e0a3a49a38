"""Deleting artifacts: one, or many with few requests.

The order is that of `docs/format.md` (delete), so that a run that is killed leaves a whole store: tombstones that
keep numbers from being given twice come first, then the manifests go, and last the tombstones that nothing needs.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from metaflow_artifacts._format.keys import Attempt, CheckpointKey, ModelKey, attempt_of, parse_key
from metaflow_artifacts._layout import ARTIFACTS, MODEL_ARTIFACTS, TOMBSTONES, checkpoint_prefix
from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._store.listing import checkpoints, tombstones
from metaflow_artifacts._store.numbering import highest_number
from metaflow_artifacts._transfer.threads import ordered
from metaflow_artifacts.errors import ArtifactNotFound

__all__ = ["delete_artifact", "delete_artifacts", "stored_among"]

_BATCH = 1000
_FEW = 16
"""Up to how many models are asked for, or attempts listed, one by one. For more, what is around them is listed."""


def delete_artifact(storage: Storage, key: ModelKey | CheckpointKey, exists: bool) -> None:
    """Remove an artifact, of which the caller knows whether it exists. Raises ArtifactNotFound if it does not."""
    name = str(key)
    if not exists:
        raise ArtifactNotFound(f"nothing is stored at {storage.url(name)}: nothing was deleted")
    unneeded = [name]
    if isinstance(key, CheckpointKey):
        if highest_number(storage, *attempt_of(key)) == key.n:
            # A number is never given twice. The tombstone keeps this one from being drawn again.
            storage.put(key.tombstone, b"")
        else:
            unneeded.append(key.tombstone)
    storage.delete(unneeded)


def delete_artifacts(storage: Storage, keys: Iterable[str]) -> Iterator[str]:
    """Remove artifacts, up to 1,000 with one request; each key that was there, when it is gone, in the order given.

    Raises InvalidReference for a malformed key, before anything is removed, and StorageError if the storage fails.
    """
    parsed = {key: parse_key(key) for key in dict.fromkeys(keys)}
    found = _Found(storage, parsed)
    remaining = iter([key for key in parsed if key in found.keys])
    while batch := list(islice(remaining, _BATCH)):
        parts = [key for name in batch if isinstance(key := parsed[name], CheckpointKey)]
        last = [key for key in parts if found.highest[attempt_of(key)] == key.n]
        # A number is never given twice. The tombstones keep these from being drawn again.
        for _ in ordered(storage, lambda key: storage.put(key.tombstone, b""), last):
            pass
        storage.delete(batch)
        storage.delete({key.tombstone for key in parts} & found.tombstones - {key.tombstone for key in last})
        yield from batch


def stored_among(storage: Storage, keys: Iterable[str]) -> list[str]:
    """The keys that are there, in the order given. Raises as `delete_artifacts`."""
    parsed = {key: parse_key(key) for key in dict.fromkeys(keys)}
    found = _Found(storage, parsed)
    return [key for key in parsed if key in found.keys]


class _Found:
    """What is stored of some artifacts, and the highest number of each attempt."""

    def __init__(self, storage: Storage, parsed: Mapping[str, ModelKey | CheckpointKey]) -> None:
        self.keys: set[str] = set()
        """Those that are there."""
        self.tombstones: set[str] = set()
        self.highest: dict[Attempt, int] = {}
        self._storage = storage
        self._models([key for key, parts in parsed.items() if isinstance(parts, ModelKey)])
        roots: dict[str, list[CheckpointKey]] = {}
        for parts in parsed.values():
            if isinstance(parts, CheckpointKey):
                roots.setdefault(parts.place.root, []).append(parts)
        for root, keys in roots.items():
            self._checkpoints(root, keys)

    def _models(self, keys: Sequence[str]) -> None:
        if len(keys) <= _FEW:
            stats = ordered(self._storage, self._storage.stat, keys)
            self.keys.update(key for key, info in zip(keys, stats, strict=True) if info is not None)
        else:
            self.keys.update(info.key for info in self._storage.list(MODEL_ARTIFACTS))

    def _checkpoints(self, root: str, keys: Sequence[CheckpointKey]) -> None:
        attempts = dict.fromkeys(map(attempt_of, keys))
        begins = [f"{place.prefix()}{id}.{attempt}." for place, id, attempt in attempts]
        artifacts = checkpoint_prefix(root, ARTIFACTS)
        if len(begins) > _FEW:
            begins = [artifacts + os.path.commonpath([begin.removeprefix(artifacts) for begin in begins])]
        for begin in begins:
            for key, info in checkpoints(self._storage.list(begin)):
                self.keys.add(info.key)
                self._count(key, attempts)
            hidden = checkpoint_prefix(root, TOMBSTONES) + begin.removeprefix(artifacts)
            for key, info in tombstones(self._storage.list(hidden)):
                self.tombstones.add(info.key)
                self._count(key, attempts)

    def _count(self, key: CheckpointKey, attempts: Mapping[Attempt, None]) -> None:
        attempt = attempt_of(key)
        if attempt in attempts:
            self.highest[attempt] = max(key.n, self.highest.get(attempt, -1))
