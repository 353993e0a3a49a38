"""The storages that a process has handed over to its worker, each with its pickle and what answers its questions."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import replace

from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._storage.handover import Handover, NotPortable, hand_over

__all__ = ["HandedOver"]

_MOST = 4
"""How many are kept: the last ones that were used. A client of S3 takes 12 MB."""


class HandedOver:
    """One thread at a time uses it."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        # With the storages, so that no other one gets the id of one.
        self._kept: dict[int, tuple[Storage, Handover, bytes]] = {}

    def find(self, storage: Storage) -> tuple[Handover, bytes]:
        """How the worker can use a storage, and the pickle to send. Raises NotPortable."""
        found = self._kept.pop(id(storage), None)
        if found is None:
            try:
                handover = hand_over(storage)
                if handover.asks:
                    handover = replace(handover, portable=replace(handover.portable, number=next(self._numbers)))
                found = storage, handover, pickle.dumps(handover.portable)
            except Exception as error:
                # Where what gives the keys has failed, the first request that is made here explains it.
                raise NotPortable(str(error)) from error
        while len(self._kept) >= _MOST:
            del self._kept[next(iter(self._kept))]
        self._kept[id(storage)] = found
        return found[1:]
