"""Artifacts of a whole store, newest first: each as soon as no other can be newer.

The order is that of `created_on`, which only the manifests have. A listing has the times of the objects. An object can
be younger than its artifact (its content took long to save, or it was copied), and older only by as much as two clocks
differ. So what is read first is what was written last, and where an object was written before the oldest artifact that
is wanted was created, the search ends.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count

from metaflow_artifacts._format.manifest import Head
from metaflow_artifacts._format.reference import ModelArtifact
from metaflow_artifacts._storage.base import ObjectInfo
from metaflow_artifacts._store.checkpoints import created_at
from metaflow_artifacts._store.store import Store
from metaflow_artifacts._transfer.gc_marks import CLOCK_SKEW_S
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._upkeep.survey import heads
from metaflow_artifacts.errors import CorruptArtifact

__all__ = ["newest_artifacts"]

_TICK_S = 0.1
"""By how much an object may seem older than its artifact, on machines whose clocks agree."""

Found = ModelArtifact | CorruptArtifact
_Read = Callable[[Sequence[ObjectInfo]], Iterator[tuple[ObjectInfo, ModelArtifact | CorruptArtifact | None]]]


def newest_artifacts(
    store: Store,
    objects: Iterable[ObjectInfo],
    accept: Callable[[ModelArtifact], bool] = lambda artifact: True,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Found]:
    """The references of the artifacts at `objects` that are accepted, newest first; and the damage that is met.

    With `limit`, only so many of the newest: then few manifests are read, and the clocks of the machines are trusted as
    far as those of the manifests that were read agree with the storage's. `progress` counts what is read. Raises
    StorageError.
    """
    infos = sorted(objects, key=lambda info: (info.modified, info.key), reverse=True)

    def read(some: Sequence[ObjectInfo]) -> Iterator[tuple[ObjectInfo, ModelArtifact | CorruptArtifact | None]]:
        for info, found in heads(store, some, progress=progress):
            if isinstance(found, Head):
                yield info, found.artifact if accept(found.artifact) else None
            else:
                yield info, found

    if limit is None:
        return _all(infos, read)
    return _some(infos, read, limit) if limit > 0 else iter(())


def _all(infos: Sequence[ObjectInfo], read: _Read) -> Iterator[Found]:
    numbers = count()
    waiting: list[tuple[float, int, ModelArtifact]] = []
    for info, found in read(infos):
        if isinstance(found, CorruptArtifact):
            yield found
        elif found is not None:
            heapq.heappush(waiting, (-created_at(found, info.modified), next(numbers), found))
        # What is read later was written before this object.
        while waiting and -waiting[0][0] > info.modified + CLOCK_SKEW_S:
            yield heapq.heappop(waiting)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]


def _some(infos: Sequence[ObjectInfo], read: _Read, limit: int) -> Iterator[Found]:
    numbers = count()
    best: list[tuple[float, int, ModelArtifact]] = []
    """The newest so far, the oldest of them first."""
    # Where times have no fractions, they are rounded down.
    skew = _TICK_S if any(info.modified % 1 for info in infos) else 1.0
    wave = limit
    begin = 0
    while begin < len(infos):
        if len(best) == limit:
            oldest = best[0][0] - min(skew, CLOCK_SKEW_S)
            some = [info for info in infos[begin:] if info.modified >= oldest]
        else:
            some = list(infos[begin : begin + wave])
            wave *= 2
        if not some:
            break
        for info, found in read(some):
            if isinstance(found, CorruptArtifact):
                yield found
            elif found is not None:
                created = created_at(found, info.modified)
                skew = max(skew, created - info.modified + _TICK_S)
                heapq.heappush(best, (created, -next(numbers), found))
                if len(best) > limit:
                    heapq.heappop(best)
        begin += len(some)
    yield from (artifact for _, _, artifact in sorted(best, key=lambda one: one[:2], reverse=True))
