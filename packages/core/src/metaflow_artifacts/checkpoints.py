"""Checkpoints of one place in a flow: counting them, listing them, finding the one to go on from.

There is no `latest` pointer that a killed save could leave behind its time. A checkpoint's manifest says itself
whether it may be loaded without being asked for; the newest such manifest is the latest, found by one listing
and, as a rule, one read. A save with latest=False leaves an empty marker after it, so that a search that has to
go further back need not read its manifest; where a kill kept the marker from being written, the manifest is read
and says the same.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from typing import Any

from metaflow_artifacts.artifact import ModelArtifact
from metaflow_artifacts.errors import ArtifactError, ArtifactNotFound, CorruptArtifact, InvalidReference
from metaflow_artifacts.keys import CheckpointKey, CheckpointPlace, encode_part, parse_key
from metaflow_artifacts.manifest import Head
from metaflow_artifacts.progress import Transfer
from metaflow_artifacts.storage import ObjectInfo
from metaflow_artifacts.store import Store

__all__ = ["DEFAULT_NAME", "Series", "find_latest", "latest_checkpoints", "list_checkpoints"]

DEFAULT_NAME = "mfchckpt"


@dataclass(frozen=True)
class _Entry:
    key: CheckpointKey
    info: ObjectInfo


class Series:
    """The checkpoints that one attempt of a task saves, numbered from 0 over all names.

    Several processes may save into the same series: a number is taken by the write of the manifest itself, so
    nothing is overwritten. A later save has a higher number, but for saves of several processes at the same moment.
    """

    def __init__(
        self,
        store: Store,
        place: CheckpointPlace,
        id: str,
        attempt: int,
        pathspec: str = "",
        start: int | None = None,
        others: Callable[[], Iterable[int]] = tuple,
    ) -> None:
        """`start` is the first number, where the caller knows that this attempt has saved nothing before.

        `others`, called right before a number is taken, gives those that other processes have saved under since.
        """
        self.store = store
        self.place = place
        self.id = id
        self.attempt = attempt
        self.pathspec = pathspec
        self._next = start
        self._others = others

    def save(
        self,
        path: str | PathLike[str],
        name: str = DEFAULT_NAME,
        metadata: Mapping[str, Any] | None = None,
        *,
        label: str,
        parents: Sequence[str] = (),
        latest: bool = True,
        progress: Transfer | None = None,
    ) -> ModelArtifact:
        """Save a file or directory as the next checkpoint of this series. Raises as `Store.save_checkpoint`."""
        keys = self.keys(name)
        artifact = self.store.save_checkpoint(
            path,
            keys,
            metadata,
            label=label,
            pathspec=self.pathspec,
            parents=parents,
            latest=latest,
            progress=progress,
        )
        self.saved(artifact, latest)
        return artifact

    def keys(self, name: str) -> Iterator[CheckpointKey]:
        """Keys that are likely free, the right one first. Raises InvalidReference for a name that breaks a rule."""
        encode_part(name, "name")
        return self._count(CheckpointKey(self.place, self.id, self.attempt, name, 0))

    def _count(self, key: CheckpointKey) -> Iterator[CheckpointKey]:
        if self._next is None:
            self._next = self._highest() + 1
        self._next = max(self._next, *(n + 1 for n in self._others()), 0)
        yield key.numbered(self._next)
        while True:
            # Another process saves into this series too: what is there tells how far it is.
            self._next = max(self._next, self._highest()) + 1
            yield key.numbered(self._next)

    def _highest(self) -> int:
        prefix = f"{self.place.prefix()}{self.id}.{self.attempt}."
        return max((entry.key.n for entry in _entries(self.store.storage.list(prefix))), default=-1)

    def saved(self, artifact: ModelArtifact, latest: bool) -> None:
        """Count an artifact that was just committed under one of `keys`."""
        key = parse_key(artifact["key"])
        assert isinstance(key, CheckpointKey)
        self._next = max(self._next or 0, key.n + 1)
        if not latest:
            self.store.storage.put(key.marker, b"")


def _entries(infos: Iterable[ObjectInfo]) -> Iterator[_Entry]:
    for info in infos:
        try:
            key = parse_key(info.key)
        except InvalidReference:
            continue
        if isinstance(key, CheckpointKey):
            yield _Entry(key, info)


def find_latest(
    store: Store,
    place: CheckpointPlace,
    *,
    id: str | None = None,
    pathspec: str | None = None,
    before_attempt: int | None = None,
    on_damage: Callable[[ArtifactError], None] | None = None,
) -> ModelArtifact | None:
    """The newest checkpoint of a place that was saved with `latest`, or None: the first of `latest_checkpoints`."""
    found = latest_checkpoints(
        store, place, id=id, pathspec=pathspec, before_attempt=before_attempt, on_damage=on_damage
    )
    return next(found, None)


def latest_checkpoints(
    store: Store,
    place: CheckpointPlace,
    *,
    id: str | None = None,
    pathspec: str | None = None,
    before_attempt: int | None = None,
    on_damage: Callable[[ArtifactError], None] | None = None,
) -> Iterator[ModelArtifact]:
    """The checkpoints of a place that were saved with `latest`, newest first, each found when it is asked for.

    With `id` and `pathspec`, only what that task saved counts; with `before_attempt`, only its earlier attempts.
    A manifest that is damaged is passed over, after `on_damage` was told. One listing, and a read of what could be
    the newest; another listing where nothing of that is latest. Raises StorageError.
    """
    filter_ = f"{id}." if id else ""
    infos = sorted(store.storage.list(place.prefix() + filter_), key=_modified, reverse=True)
    hidden: set[str] | None = None
    series: dict[tuple[str, int], _Series] = {}
    begin = 0
    while True:
        # What the storage's clock may have written last is looked at more closely.
        newest = max([*map(_modified, infos[begin : begin + 1]), *(one.modified for one in series.values())], default=0)
        end = begin
        while end < len(infos) and infos[end].modified >= newest - store.storage.resolution:
            end += 1
        for entry in _entries(infos[begin:end]):
            if before_attempt is None or entry.key.attempt < before_attempt:
                series.setdefault((entry.key.id, entry.key.attempt), _Series()).add(entry)
        begin = end
        # Within a series numbers tell which was saved last; among several, the time in the manifests does.
        while unread := [(one, entry) for one in series.values() for entry in one.pop(hidden or ())]:
            heads = _read_all(store, [entry for _, entry in unread], on_damage)
            for (one, read), head in zip(unread, heads, strict=True):
                if head is not None and head.latest and pathspec in (None, head.artifact["pathspec"]):
                    one.ready.append((_age(head.artifact), read.info.modified, head.artifact))
            if hidden is None and any(head is not None and not head.latest for head in heads):
                hidden = {_filename(info) for info in store.storage.list(place.prefix("not_latest") + filter_)}
        ready = [(found, one) for one in series.values() for found in one.ready]
        if ready:
            best, of = max(ready, key=lambda pair: pair[0][0])
            of.ready.remove(best)
            yield best[2]
        elif begin == len(infos):
            return


class _Series:
    """What one attempt of a task has saved, of the part of a listing that was looked at so far."""

    def __init__(self) -> None:
        self.ready: list[tuple[tuple[str, int, int], float, ModelArtifact]] = []
        """What was read and may be latest: its age, the storage's time of it, and itself. None is older than what
        was not read."""
        self._unread: list[_Entry] = []

    def add(self, entry: _Entry) -> None:
        bisect.insort(self._unread, entry, key=_number)

    def pop(self, hidden: Container[str]) -> list[_Entry]:
        """What was saved last of the unread and is not `hidden`, if nothing is ready: one entry, as a rule.

        Processes that save at the same moment may take the same number, under other names.
        """
        top: list[_Entry] = []
        while not self.ready and self._unread and (not top or _number(self._unread[-1]) == _number(top[0])):
            entry = self._unread.pop()
            if _filename(entry.info) not in hidden:
                top.append(entry)
        return top

    @property
    def modified(self) -> float:
        """The storage's time of the newest that is left."""
        times = [entry.info.modified for entry in self._unread[-1:]]
        return max([*times, *(modified for _, modified, _ in self.ready)], default=0.0)


def _number(entry: _Entry) -> int:
    return entry.key.n


def _modified(info: ObjectInfo) -> float:
    return info.modified


def _filename(info: ObjectInfo) -> str:
    return info.key.rpartition("/")[2]


def _read_all(
    store: Store, entries: list[_Entry], on_damage: Callable[[ArtifactError], None] | None = None
) -> list[Head | None]:
    def read(entry: _Entry) -> Head | None:
        try:
            return store.head_at(entry.info.key)
        except ArtifactNotFound:  # deleted since it was listed
            return None
        except CorruptArtifact as error:
            if on_damage is not None:
                on_damage(error)
            return None

    # A disk answers sooner than a thread starts.
    if len(entries) < 2 or not store.storage.stages_in_memory:
        return [read(entry) for entry in entries]
    with ThreadPoolExecutor(min(store.storage.threads, len(entries))) as pool:
        return list(pool.map(read, entries))


def _age(artifact: ModelArtifact) -> tuple[str, int, int]:
    return artifact["created_on"], artifact["attempt"], artifact.get("version_id", 0)


def list_checkpoints(
    store: Store,
    prefix: str,
    *,
    name: str | None = None,
    attempt: int | None = None,
    accept: Callable[[ModelArtifact], bool] = lambda artifact: True,
) -> list[ModelArtifact]:
    """The checkpoints whose keys start with `prefix`, newest first.

    One listing, and a read of each manifest whose key has the `name` and `attempt` asked for. `accept` has the
    last word on each. What is damaged is left out; `check` names it. Raises StorageError, and InvalidReference for
    a name that breaks a rule.
    """
    infos: Iterable[ObjectInfo] = store.storage.list(prefix)
    if name is not None:
        # Nearly all that has another name is told by this, without a closer look at its key.
        part = f".{encode_part(name, 'name')}."
        infos = (info for info in infos if part in _filename(info))
    entries = [
        entry for entry in _entries(infos) if name in (None, entry.key.name) and attempt in (None, entry.key.attempt)
    ]
    artifacts = [head.artifact for head in _read_all(store, entries) if head is not None]
    return sorted(filter(accept, artifacts), key=_age, reverse=True)
