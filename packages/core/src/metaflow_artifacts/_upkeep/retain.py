"""Which checkpoints to keep: the last, the best, the young, and those that a retry may load. The others are deleted.

A task that is retried loads the newest checkpoint that it has saved with `latest`; with `eager`, the newest of any run.
No rule deletes these. In addition to what the rules keep, the newest `latest` checkpoint of each place stays, and that
of each task if it was saved within the last 7 days. (Nobody can tell whether a task will be retried; after 7 days, it
is assumed to be over.) Only `last=0`, which asks to keep none, deletes them too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import Literal

from metaflow_artifacts._format.keys import CHECKPOINTS, HUB, CheckpointKey, encode_part
from metaflow_artifacts._format.manifest import Head
from metaflow_artifacts._format.reference import ModelArtifact
from metaflow_artifacts._layout import checkpoint_prefix
from metaflow_artifacts._storage import ObjectInfo
from metaflow_artifacts._store.checkpoints import created_at, newest_first, task_of
from metaflow_artifacts._store.deleting import delete_artifacts
from metaflow_artifacts._store.listing import artifacts
from metaflow_artifacts._store.store import Store
from metaflow_artifacts._text import count_text
from metaflow_artifacts._transfer.gc_marks import demand_clock
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._upkeep.needs import refuse_unknown_needs
from metaflow_artifacts._upkeep.survey import Strays, heads
from metaflow_artifacts.errors import CorruptArtifact, InvalidInput

__all__ = ["Group", "Kept", "RetentionPlan", "RetentionStats", "Rules", "execute_retention", "plan_retention"]

_NAMED = 5
"""How many names of metadata an error gives."""
RETRY_WITHIN = 7 * 24 * 3600.0
"""Seconds after a task's newest `latest` checkpoint within which a retry of the task may still load it."""


@dataclass(frozen=True)
class Rules:
    """What is kept; a checkpoint stays if any rule keeps it. Raises InvalidInput for no rule or a wrong one."""

    last: int | None = None
    """Keep this many of the newest. With 0, what a retry may load is deleted too, unless another rule keeps it."""
    best: int | None = None
    """Keep this many with the best value of `metric`."""
    metric: str | None = None
    """A key of the metadata. Checkpoints without a number there are not among the best."""
    lowest: bool = False
    """Whether the lowest value is the best."""
    younger: float | None = None
    """Keep all that were saved within this many seconds."""

    def __post_init__(self) -> None:
        given = {"last": self.last, "best": self.best, "younger": self.younger}
        if all(value is None for value in given.values()):
            raise InvalidInput("no rule says what to keep; give last, best or younger")
        for name, value in given.items():
            if value is not None and not value >= 0:
                raise InvalidInput(f"{name}: expected a number from 0, found {value}")
        if (self.best is None) != (self.metric is None):
            raise InvalidInput("best and metric belong together: how many to keep, and by which metadata value")


@dataclass(frozen=True)
class Kept:
    """A checkpoint that stays, and the rules that keep it: `last`, `best`, `younger`; `resume` where none of these
    does, and a retry may load it."""

    artifact: ModelArtifact
    rules: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """What the rules were applied to at once: the checkpoints of one place in a flow, or of all of a step."""

    flow: str
    step: str
    task: str | None
    """`<scope>/<task>` of the key, where the rules hold for each place by itself."""
    keep: Sequence[Kept]
    """Newest first."""
    delete: Sequence[ModelArtifact]
    """Newest first."""
    unreadable: Sequence[str]
    """Keys of damaged manifests: they are left alone."""


@dataclass(frozen=True)
class RetentionPlan:
    """What may go. A checkpoint that is saved after the plan was made is not in it."""

    root: str
    groups: Sequence[Group]
    has_ages: bool = True
    """Whether it depends on how old checkpoints are, by the clock of the machine that made it."""

    @property
    def delete(self) -> list[ModelArtifact]:
        """All that may go."""
        return [artifact for group in self.groups for artifact in group.delete]

    @property
    def size(self) -> int:
        """Bytes of content in what may go; how many of them a `gc` frees depends on what else needs them."""
        return sum(artifact["size"] for artifact in self.delete)


@dataclass(frozen=True)
class RetentionStats:
    """What was done."""

    deleted: int
    """Checkpoints that were deleted."""
    gone: int
    """Checkpoints of the plan that somebody else had deleted before."""
    size: int
    """Bytes of content in what was deleted."""


def plan_retention(
    store: Store,
    rules: Rules,
    *,
    flow: str | None = None,
    step: str | None = None,
    per: Literal["step", "task"] = "task",
    root: str = CHECKPOINTS,
    ignore: Sequence[str] = (),
    progress: Progress | None = None,
) -> RetentionPlan:
    """Find the checkpoints that no rule keeps; nothing is changed.

    The rules apply to each place in a flow (namespace, foreach value, node or gang of a parallel step) separately, or
    with `per="step"` to all checkpoints of a flow and step together. `flow` and `step` are names or patterns (`*` and
    `?` are wildcards) and select the checkpoints to consider. `root` is `mf.checkpoints` or `mf.huggingface_hub`.
    `ignore` is as in `plan_gc`. `progress` counts the manifests that are read.

    Raises InvalidInput for names that no flow or step can have, and for a metric that no checkpoint has, or none of a
    step whose checkpoints no other rule keeps; StorageError if the store needs a later version, if an object among the
    checkpoints is not understood, or if the storage fails.
    """
    if root not in (CHECKPOINTS, HUB):
        raise InvalidInput(f"root {root!r}: expected {CHECKPOINTS} or {HUB}")
    prefix = checkpoint_prefix(root)
    parts = [encode_part(name, what) for name, what in ((flow, "flow"), (step, "step")) if name is not None]
    if flow is not None:
        # Wildcards are encoded with a percent sign.
        for part in takewhile(lambda part: "%" not in part, parts):
            prefix += part + "/"
    now = store.storage.now()
    strays = Strays(store.storage, ignore)
    refuse_unknown_needs(store.storage)
    found: dict[tuple[str, str, str], list[ObjectInfo]] = defaultdict(list)
    for key, info in artifacts(store.storage.list(prefix), strays.add):
        assert isinstance(key, CheckpointKey)
        if _fits(flow, key.place.flow) and _fits(step, key.place.step):
            task = f"{key.place.scope}/{key.place.task}" if per == "task" else ""
            found[key.place.flow, key.place.step, task].append(info)
    strays.refuse()
    planned = [
        _group(names, heads(store, infos, strays, progress), rules, root, now)
        for names, infos in sorted(found.items(), key=lambda item: item[0])
    ]
    groups = [group for group in planned if group]
    _demand_metric(groups, rules)
    return RetentionPlan(store.root, groups, rules.younger is not None or (root == CHECKPOINTS and rules.last != 0))


def _demand_metric(groups: Sequence[Group], rules: Rules) -> None:
    """Raise InvalidInput if `best` keeps nothing at all, as with a metric whose name is misspelt.

    Where no other rule keeps any, that is also an error for the checkpoints of one flow and step, which may have
    another metric.
    """
    if not rules.best:
        return
    by_step: dict[str, list[ModelArtifact]] = defaultdict(list)
    for group in groups:
        by_step[f"{group.flow}/{group.step}"] += (*(kept.artifact for kept in group.keep), *group.delete)
    lacking = {step: found for step, found in by_step.items() if all(_value(one, rules) is None for one in found)}
    found = [one for several in lacking.values() for one in several]
    is_part = len(lacking) < len(by_step)
    if not found or (is_part and (rules.last or rules.younger)):
        return
    names = sorted({str(name) for one in found for name in one["metadata"]})
    have = f"they have {', '.join(names[:_NAMED])}" if names else "they have no metadata"
    where = f" of {', '.join([*lacking][:_NAMED])}; choose another flow or step, or give last too" if is_part else ""
    raise InvalidInput(
        f"metric {rules.metric!r}: none of the {count_text(len(found), 'checkpoint')} has a number of this name in its "
        f"metadata, so best would keep none{where}; {have}"
    )


def _fits(pattern: str | None, name: str) -> bool:
    return pattern is None or name == pattern or fnmatchcase(name, pattern)


@dataclass(frozen=True)
class _Seen:
    artifact: ModelArtifact
    latest: bool
    saved: float
    """Seconds since the epoch."""

    @property
    def place(self) -> str:
        return self.artifact["key"].rpartition("/")[0]

    @property
    def task(self) -> tuple[str, str]:
        return _task(self.artifact)


def _task(artifact: ModelArtifact) -> tuple[str, str]:
    """The task of a run that saved it. Two tasks may have the same digits in the key, but not the same pathspec."""
    place, _, name = artifact["key"].rpartition("/")
    return f"{place}/{name.partition('.')[0]}", task_of(artifact)


def _group(
    names: tuple[str, str, str],
    objects: Iterable[tuple[ObjectInfo, Head | CorruptArtifact | None]],
    rules: Rules,
    root: str,
    now: float,
) -> Group | None:
    by_key: dict[str, _Seen] = {}
    unreadable = []
    for info, head in objects:
        if isinstance(head, CorruptArtifact):
            unreadable.append(info.key)
        elif head is not None:
            saved = created_at(head.artifact, info.modified)
            by_key[info.key] = _Seen(head.artifact, head.latest, saved)
    seen = [by_key[artifact["key"]] for artifact in newest_first(one.artifact for one in by_key.values())]
    kept: dict[str, list[str]] = defaultdict(list)
    for one in seen[: rules.last or 0]:
        kept[one.artifact["key"]].append("last")
    for one in _best(seen, rules):
        kept[one.artifact["key"]].append("best")
    if rules.younger is not None:
        oldest = now - rules.younger
        for one in seen:
            if one.saved > oldest:
                kept[one.artifact["key"]].append("younger")
    if root == CHECKPOINTS and rules.last != 0:
        for one in _resumable(seen, now):
            kept[one.artifact["key"]] = kept[one.artifact["key"]] or ["resume"]
    if not seen and not unreadable:
        return None
    flow, step, task = names
    return Group(
        flow=flow,
        step=step,
        task=task or None,
        keep=[Kept(s.artifact, tuple(kept[s.artifact["key"]])) for s in seen if s.artifact["key"] in kept],
        delete=[s.artifact for s in seen if s.artifact["key"] not in kept],
        unreadable=sorted(unreadable),
    )


def _resumable(seen: list[_Seen], now: float) -> list[_Seen]:
    """The checkpoints of `seen` (newest first) that a retry may load; the module's docstring has the rule."""
    oldest = now - RETRY_WITHIN
    places: set[str] = set()
    tasks: set[tuple[str, str]] = set()
    found = []
    for one in seen:
        if one.latest and (one.place not in places or (one.task not in tasks and one.saved > oldest)):
            found.append(one)
        if one.latest:
            places.add(one.place)
            tasks.add(one.task)
    return found


def _best(seen: list[_Seen], rules: Rules) -> list[_Seen]:
    if rules.best is None or rules.metric is None:
        return []
    valued = [(value, one) for one in seen if (value := _value(one.artifact, rules)) is not None]
    # The sort is stable: of two equal values, the newer checkpoint comes first.
    ranked = sorted(valued, key=lambda pair: pair[0] if rules.lowest else -pair[0])
    return [one for _, one in ranked[: rules.best]]


def _value(artifact: ModelArtifact, rules: Rules) -> int | float | None:
    """The number by which a checkpoint is the best, if it has one."""
    value = artifact["metadata"].get(str(rules.metric))
    # An integer may be larger than any float; Python compares the two correctly.
    if isinstance(value, bool):
        return None
    return value if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)) else None


def execute_retention(
    store: Store, plan: RetentionPlan, *, done: Callable[[ModelArtifact], None] | None = None
) -> RetentionStats:
    """Delete what `plan_retention` found, and call `done` with each. The next `gc` frees their content.

    Raises InvalidInput for the plan of another store, and StorageError if the storage fails, the store needs a later
    version by now, or the clock of this machine is ahead of the storage's.
    """
    if plan.root != store.root:
        raise InvalidInput(
            f"the plan was made for {plan.root}, not for {store.root}; make one for it with plan_retention"
        )
    refuse_unknown_needs(store.storage)
    unneeded = {artifact["key"]: artifact for artifact in plan.delete}
    if unneeded and plan.has_ages:
        demand_clock(store.storage)
    deleted: list[ModelArtifact] = []
    for key in delete_artifacts(store.storage, unneeded):
        deleted.append(unneeded[key])
        if done is not None:
            done(unneeded[key])
    return RetentionStats(
        deleted=len(deleted),
        gone=len(plan.delete) - len(deleted),
        size=sum(artifact["size"] for artifact in deleted),
    )
