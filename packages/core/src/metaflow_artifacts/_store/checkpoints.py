"""Which checkpoint is the newest, and which a task resumes from.

There is no `latest` pointer, so a killed save cannot leave a stale one. The manifests decide, not the times of the
storage: within a task, the higher attempt and then the higher number is newer; among tasks, the later `created_on`.
`docs/format.md` (Newest) has the rule.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from operator import itemgetter

from metaflow_artifacts._format.keys import CheckpointPlace, encode_part
from metaflow_artifacts._format.manifest import Head
from metaflow_artifacts._format.reference import ModelArtifact
from metaflow_artifacts._layout import TOMBSTONES
from metaflow_artifacts._storage import ObjectInfo
from metaflow_artifacts._store.foreign import foreign_of_task
from metaflow_artifacts._store.listing import checkpoints, filename, read_listed
from metaflow_artifacts._store.store import Store
from metaflow_artifacts._transfer.gc_marks import CLOCK_SKEW_S
from metaflow_artifacts._transfer.threads import ordered
from metaflow_artifacts.errors import ArtifactError, CorruptArtifact, LaterFormat

__all__ = [
    "created_at",
    "latest_checkpoints",
    "list_checkpoints",
    "list_foreign_checkpoints",
    "newest_first",
    "task_of",
]


def task_of(artifact: ModelArtifact) -> str:
    """The pathspec of the task that an artifact belongs to: in a `@parallel` step, the control node's."""
    return artifact.get("gang") or artifact["pathspec"]


def created_at(artifact: ModelArtifact, default: float = 0.0) -> float:
    """`created_on` in seconds since the epoch; `default` if it is not a time."""
    try:
        moment = datetime.fromisoformat(artifact["created_on"].replace("Z", "+00:00"))
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return default


def newest_first(artifacts: Iterable[ModelArtifact]) -> list[ModelArtifact]:
    """Checkpoints in the order of `latest_checkpoints`, whether they are latest or not."""
    tasks: dict[str, list[tuple[tuple[int, int], tuple[float, str], ModelArtifact]]] = defaultdict(list)
    for artifact in artifacts:
        number = artifact["attempt"], artifact.get("version_id", 0)
        tasks[task_of(artifact)].append((number, _age(artifact), artifact))
    for task in tasks.values():
        task.sort(key=itemgetter(0, 1), reverse=True)
    return [artifact for _, _, artifact in heapq.merge(*tasks.values(), key=itemgetter(1), reverse=True)]


def _age(artifact: ModelArtifact) -> tuple[float, str]:
    return created_at(artifact), artifact["key"]


@dataclass(frozen=True)
class _Descending:
    """A sort key that reverses the order of times and keys: heapq pops the smallest."""

    created: float
    key: str

    def __lt__(self, other: _Descending) -> bool:
        return (self.created, self.key) > (other.created, other.key)


def _descending(artifact: ModelArtifact) -> _Descending:
    return _Descending(*_age(artifact))


def latest_checkpoints(
    store: Store,
    place: CheckpointPlace,
    *,
    id: str | None = None,
    pathspec: str | None = None,
    before_attempt: int | None = None,
    on_damage: Callable[[ArtifactError], None] | None = None,
) -> Iterator[ModelArtifact]:
    """The checkpoints of a place that were saved with `latest`, newest first; each is searched for when it is needed.

    With `id` and `pathspec`, only the checkpoints of that task count; with `before_attempt`, only those of earlier
    attempts. A damaged manifest is skipped, and `on_damage` is called with the error. This needs one listing, and one
    read for each task whose newest object may be the newest of all. If a manifest that was read is not latest, the
    tombstones are listed too. Raises StorageError.
    """
    filter_ = f"{id}." if id else ""
    search = _Search(store, place, filter_, pathspec, on_damage)
    tasks = _by_task(store.storage.list(place.prefix() + filter_), before_attempt)
    waiting = sorted(tasks, key=lambda task: task.modified)
    ready: list[tuple[_Descending, int, ModelArtifact, _Task]] = []
    while True:
        while waiting:
            # An object that was copied has a later time than its created_on. It has an earlier one only by as much as
            # clocks differ.
            limit = ready[0][0].created - CLOCK_SKEW_S if ready else waiting[-1].modified
            batch = []
            while waiting and waiting[-1].modified >= limit:
                batch.append(waiting.pop())
            if not batch:
                break
            for task, artifact in search.candidates(batch):
                heapq.heappush(ready, (_descending(artifact), task.number, artifact, task))
        if not ready:
            return
        _, _, best, task = heapq.heappop(ready)
        yield best
        for _, artifact in search.candidates([task]):
            heapq.heappush(ready, (_descending(artifact), task.number, artifact, task))


class _Task:
    """The checkpoints of one task of a place, the newest last."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.modified = 0.0
        """The storage's time of the newest object, in seconds since the epoch."""
        self.entries: list[tuple[int, int, ObjectInfo]] = []

    def add(self, attempt: int, n: int, info: ObjectInfo) -> None:
        self.entries.append((attempt, n, info))
        self.modified = max(self.modified, info.modified)


def _by_task(infos: Iterable[ObjectInfo], before_attempt: int | None) -> list[_Task]:
    tasks: dict[str, _Task] = {}
    for info in infos:
        # There can be tens of thousands. Only the keys of objects that are read are parsed completely.
        id, _, rest = filename(info).partition(".")
        attempt, _, rest = rest.partition(".")
        n = rest.rpartition(".")[2]
        if not (attempt.isdecimal() and n.isdecimal()):
            continue
        if before_attempt is None or int(attempt) < before_attempt:
            tasks.setdefault(id, _Task(len(tasks))).add(int(attempt), int(n), info)
    for task in tasks.values():
        task.entries.sort(key=lambda entry: entry[:2])
    return list(tasks.values())


class _Search:
    """Reads the heads of checkpoints that may be the latest."""

    def __init__(
        self,
        store: Store,
        place: CheckpointPlace,
        filter_: str,
        pathspec: str | None,
        on_damage: Callable[[ArtifactError], None] | None,
    ) -> None:
        self._store = store
        self._tombstones = place.prefix(TOMBSTONES) + filter_
        self._pathspec = pathspec
        self._on_damage = on_damage
        self._hidden: Container[str] | None = None

    def candidates(self, tasks: list[_Task]) -> Iterator[tuple[_Task, ModelArtifact]]:
        """The newest remaining checkpoint of each task that is latest, which is removed from the task."""
        pending = tasks
        while pending:
            reads = [(task, group) for task in pending if (group := self._next(task))]
            flat = [info for _, group in reads for info in group]
            heads = dict(zip(flat, _read_heads(self._store, flat, self._on_damage), strict=True))
            pending = []
            for task, group in reads:
                found = [head.artifact for info in group if (head := heads[info]) is not None and self._accepts(head)]
                if found:
                    best = max(found, key=_age)
                    # Two machines that save for one attempt can draw one number, for two names.
                    task.entries += [
                        (one["attempt"], one.get("version_id", 0), info)
                        for info in group
                        if (head := heads[info]) is not None and (one := head.artifact) in found and one is not best
                    ]
                    yield task, best
                else:
                    pending.append(task)
            if self._hidden is None and any(head is not None and not head.latest for head in heads.values()):
                self._hidden = {filename(info) for info in self._store.storage.list(self._tombstones)}

    def _accepts(self, head: Head) -> bool:
        return head.latest and self._pathspec in (None, task_of(head.artifact))

    def _next(self, task: _Task) -> list[ObjectInfo]:
        """The remaining objects with the highest number, which are removed from the task. Usually it is one."""
        top: list[ObjectInfo] = []
        number: tuple[int, int] | None = None
        while task.entries and (not top or task.entries[-1][:2] == number):
            attempt, n, info = task.entries.pop()
            if (self._hidden is None or filename(info) not in self._hidden) and any(checkpoints([info])):
                number = attempt, n
                top.append(info)
        return top


def _read_heads(
    store: Store, infos: list[ObjectInfo], on_damage: Callable[[ArtifactError], None] | None = None
) -> list[Head | None]:
    def read(info: ObjectInfo) -> Head | None:
        found = read_listed(store.head_at, info.key)
        if isinstance(found, LaterFormat):
            # It may be the newest: to resume from an older one would lose what was trained since.
            raise found
        if not isinstance(found, CorruptArtifact):
            return found
        if on_damage is not None:
            on_damage(found)
        return None

    # A local disk answers before a thread would start.
    if len(infos) < 2 or not store.storage.stages_in_memory:
        return [read(info) for info in infos]
    return list(ordered(store.storage, read, infos))


def list_checkpoints(
    store: Store,
    prefix: str,
    *,
    name: str | None = None,
    attempt: int | None = None,
    accept: Callable[[ModelArtifact], bool] = lambda artifact: True,
) -> list[ModelArtifact]:
    """The checkpoints whose keys start with `prefix`, newest first.

    This needs one listing, and a read of each manifest whose key has the given `name` and `attempt`. Those for which
    `accept` returns False are left out, and so are damaged ones; `check` names these. Raises StorageError, and
    InvalidInput for a name that breaks a rule.
    """
    infos: Iterable[ObjectInfo] = store.storage.list(prefix)
    if name is not None:
        # This excludes nearly all keys with another name, without the cost of parsing them.
        part = f".{encode_part(name, 'name')}."
        infos = (info for info in infos if part in filename(info))
    wanted = [info for key, info in checkpoints(infos) if name in (None, key.name) and attempt in (None, key.attempt)]
    artifacts = [head.artifact for head in _read_heads(store, wanted) if head is not None]
    return newest_first(filter(accept, artifacts))


def list_foreign_checkpoints(
    store: Store, pathspec: str, *, name: str | None = None, attempt: int | None = None
) -> list[ModelArtifact]:
    """The checkpoints that metaflow-checkpoint has stored for a task, newest first. Raises StorageError."""
    return newest_first(foreign_of_task(store.storage, pathspec, name=name, attempt=attempt))
