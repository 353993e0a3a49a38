"""Retention: the last, the best and the young stay, for each flow and step; the rest goes, and only that."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from faultlib.newest import find_latest

from metaflow_artifacts import InvalidInput, ModelArtifact, StorageError, Store
from metaflow_artifacts._format.keys import CHECKPOINTS, HUB, CheckpointPlace
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts._store import details
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._store.checkpoints import list_checkpoints
from metaflow_artifacts._upkeep.retain import RetentionPlan, Rules, execute_retention, plan_retention

DAY = 24 * 3600.0
NOW = datetime.now(timezone.utc)


class Saver:
    """Saves checkpoints that seem to be some days old."""

    def __init__(self, store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.path = path
        self.days = 0.0
        self.place = CheckpointPlace("Flow", "step", "0" * 12, "a" * 12)
        path.write_bytes(b"content")
        clock = type("Clock", (datetime,), {"now": classmethod(lambda cls, tz=None: NOW - timedelta(days=self.days))})
        monkeypatch.setattr(details, "datetime", clock)

    def __call__(
        self,
        days: float,
        where: str = "Flow/step/a",
        root: str = CHECKPOINTS,
        *,
        latest: bool = True,
        run: int = 1,
        attempt: int = 0,
        scope: str = "0",
        **metadata: Any,
    ) -> str:
        self.days = days
        flow, step, task = where.split("/")
        place = CheckpointPlace(flow, step, scope * 12, task * 12, root)
        saved = CheckpointWriter(self.store, place, f"{run:08}", attempt, f"{flow}/{run}/{step}/2").save(
            self.path, metadata=metadata, label="l", latest=latest
        )
        return saved["key"]


@pytest.fixture
def save(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Saver:
    return Saver(store, tmp_path / "content", monkeypatch)


def deleted(plan: RetentionPlan) -> set[str]:
    return {artifact["key"] for artifact in plan.delete}


def kept(plan: RetentionPlan) -> dict[str, tuple[str, ...]]:
    return {one.artifact["key"]: one.rules for group in plan.groups for one in group.keep}


def test_the_last(store: Store, save: Saver) -> None:
    keys = [save(days) for days in (5, 4, 3, 2, 1)]
    plan = plan_retention(store, Rules(last=2))
    assert kept(plan) == {keys[3]: ("last",), keys[4]: ("last",)}
    assert deleted(plan) == {keys[0], keys[1], keys[2]}
    assert plan.size == 3 * len(b"content")
    (group,) = plan.groups
    assert (group.flow, group.step, group.task) == ("Flow", "step", f"{'0' * 12}/{'a' * 12}")
    assert [one.artifact["key"] for one in group.keep] == [keys[4], keys[3]]
    assert deleted(plan_retention(store, Rules(last=9))) == set()
    assert deleted(plan_retention(store, Rules(last=0))) == set(keys)


def test_of_a_task_the_last_has_the_highest_attempt_and_number(store: Store, save: Saver) -> None:
    """Whatever the clocks of the machines said on which it ran."""
    first = [save(days, attempt=0) for days in (2, 3, 1)]
    second = [save(days, attempt=1) for days in (9, 8)]
    plan = plan_retention(store, Rules(last=3))
    (group,) = plan.groups
    assert [one.artifact["key"] for one in group.keep] == [second[1], second[0], first[2]]


def test_the_best(store: Store, save: Saver) -> None:
    keys = [save(9 - n, loss=loss) for n, loss in enumerate((0.5, 0.25, 3, 0.25, "low", None, True, [1]))]
    without = save(1)
    resume = {without: ("resume",)}
    assert kept(plan_retention(store, Rules(best=2, metric="loss", lowest=True))) == {
        keys[1]: ("best",),
        keys[3]: ("best",),
        **resume,
    }
    assert set(kept(plan_retention(store, Rules(best=1, metric="loss", lowest=True)))) == {keys[3], without}
    highest = plan_retention(store, Rules(best=2, metric="loss"))
    assert set(kept(highest)) == {keys[2], keys[0], without}
    assert deleted(highest) == {keys[1], *keys[3:]}
    assert set(kept(plan_retention(store, Rules(best=99, metric="loss")))) == {*keys[:4], without}
    with pytest.raises(InvalidInput, match=r"metric 'other': none of the 9 checkpoints has a number.*; they have loss"):
        plan_retention(store, Rules(last=1, best=5, metric="other"))


def test_a_step_with_another_metric_is_not_emptied_by_the_best(store: Store, save: Saver) -> None:
    keys = [save(9, loss=1), save(9, "Other/step/a", accuracy=1)]
    rules = Rules(best=1, metric="loss")
    with pytest.raises(InvalidInput, match=r"none of the 1 checkpoint has a number.* of Other/step; .*have accuracy"):
        plan_retention(store, rules)
    assert set(kept(plan_retention(store, rules, flow="Flow"))) == {keys[0]}
    # Of the others, another rule keeps some.
    assert set(kept(plan_retention(store, Rules(last=1, best=1, metric="loss")))) == set(keys)


def test_the_young(store: Store, save: Saver) -> None:
    keys = [save(days) for days in (400, 7.1, 6.9, 0.5)]
    plan = plan_retention(store, Rules(younger=7 * DAY))
    assert kept(plan) == {keys[2]: ("younger",), keys[3]: ("younger",)}
    assert deleted(plan) == {keys[0], keys[1]}


RULES = [Rules(last=1), Rules(best=1, metric="loss"), Rules(younger=DAY / 2)]


@pytest.mark.parametrize("rules", RULES, ids=["last", "best", "younger"])
def test_what_a_retry_loads_stays_whatever_the_rules_keep(store: Store, save: Saver, rules: Rules) -> None:
    """Checkpoints that were saved with latest=False are loaded by nobody unasked, and do not push it out."""
    save(3, loss=9)
    resume = save(2)
    side = save(1, latest=False, loss=10)
    for per in ("task", "step"):
        plan = plan_retention(store, rules, per=per)
        assert kept(plan)[resume] == ("resume",)
        assert set(kept(plan)) <= {resume, side}
    execute_retention(store, plan)
    latest = find_latest(store, save.place, id=f"{1:08}", pathspec="Flow/1/step/2", before_attempt=1)
    assert latest is not None
    assert latest["key"] == resume


def test_each_task_that_may_be_retried_keeps_what_it_would_load(store: Store, save: Saver) -> None:
    """Two runs at once, the older one waits for its retry; and what `eager` loads is that of the newest run."""
    over = [save(9, run=1), save(8, run=1)]
    waiting = [save(3, run=2), save(2.5, run=2), save(2, run=2, latest=False)]
    newest = [save(1.5, run=3), save(1, run=3)]
    plan = plan_retention(store, Rules(last=1))
    assert kept(plan) == {newest[1]: ("last",), waiting[1]: ("resume",)}
    assert deleted(plan) == {*over, waiting[0], waiting[2], newest[0]}


def test_what_eager_loads_stays_however_old_it_is(store: Store, save: Saver) -> None:
    keys = [save(400, run=1), save(300, run=2), save(290, run=2, latest=False)]
    assert kept(plan_retention(store, Rules(younger=DAY))) == {keys[1]: ("resume",)}


def test_last_0_deletes_what_a_retry_would_load(store: Store, save: Saver) -> None:
    keys = [save(days, loss=days) for days in (3, 2, 1)]
    assert deleted(plan_retention(store, Rules(last=0))) == set(keys)
    assert set(kept(plan_retention(store, Rules(last=0, best=1, metric="loss")))) == {keys[0]}


def test_snapshots_of_the_hub_are_not_kept_for_retries(store: Store, save: Saver) -> None:
    keys = [save(days, root=HUB) for days in (3, 2)]
    assert deleted(plan_retention(store, Rules(younger=DAY), root=HUB)) == set(keys)


def test_a_damaged_checkpoint_is_not_what_a_retry_loads(store: Store, save: Saver) -> None:
    keys = [save(days) for days in (3, 2, 1)]
    store.storage.put(keys[2], b"damaged")
    plan = plan_retention(store, Rules(younger=DAY / 2))
    assert kept(plan) == {keys[1]: ("resume",)}


def test_a_checkpoint_stays_if_one_rule_keeps_it(store: Store, save: Saver) -> None:
    best, old, last = save(9, loss=0.1), save(8, loss=0.9), save(1, loss=0.5)
    plan = plan_retention(store, Rules(last=1, best=1, metric="loss", lowest=True, younger=2 * DAY))
    assert kept(plan) == {best: ("best",), last: ("last", "younger")}
    assert deleted(plan) == {old}


PLACES = ("Flow/step/a", "Flow/step/b", "Flow/other/a", "FlowTwo/step/a")


@pytest.fixture
def pairs(save: Saver) -> dict[str, list[str]]:
    """Two checkpoints in each of some places: of two flows, steps, foreach values and namespaces, and of the Hub."""
    keys = {place: [save(days, place) for days in (2, 1)] for place in PLACES}
    keys["other namespace"] = [save(days, PLACES[0], scope="1") for days in (4, 3)]
    keys["hub"] = [save(days, root=HUB) for days in (2, 1)]
    return keys


def test_the_rules_apply_to_each_place_separately(store: Store, pairs: dict[str, list[str]]) -> None:
    plan = plan_retention(store, Rules(last=1))
    assert {(group.flow, group.step, group.task) for group in plan.groups} == {
        ("Flow", "other", "0" * 12 + "/" + "a" * 12),
        ("Flow", "step", "0" * 12 + "/" + "a" * 12),
        ("Flow", "step", "0" * 12 + "/" + "b" * 12),
        ("Flow", "step", "1" * 12 + "/" + "a" * 12),
        ("FlowTwo", "step", "0" * 12 + "/" + "a" * 12),
    }
    del pairs["hub"]
    assert set(kept(plan)) == {pair[1] for pair in pairs.values()}
    assert deleted(plan) == {pair[0] for pair in pairs.values()}
    # Each place has no more than two.
    assert deleted(plan_retention(store, Rules(last=2))) == set()


def test_the_rules_apply_to_each_step_if_asked(store: Store, pairs: dict[str, list[str]]) -> None:
    """Two of each step stay, and what a retry would load."""
    plan = plan_retention(store, Rules(last=2), per="step")
    assert [(group.flow, group.step, group.task) for group in plan.groups] == [
        ("Flow", "other", None),
        ("Flow", "step", None),
        ("FlowTwo", "step", None),
    ]
    assert deleted(plan) == {pairs[name][0] for name in ("Flow/step/a", "Flow/step/b", "other namespace")}
    assert kept(plan)[pairs["other namespace"][1]] == ("resume",)


@pytest.mark.parametrize(
    ("options", "places"),
    [
        ({"flow": "Flow"}, ["Flow/step/a", "Flow/step/b", "Flow/other/a", "other namespace"]),
        ({"flow": "Flow", "step": "other"}, ["Flow/other/a"]),
        ({"step": "other"}, ["Flow/other/a"]),
        ({"flow": "Fl"}, []),
        ({"flow": "Fl?w", "step": "o*"}, ["Flow/other/a"]),
        ({"flow": "*Two"}, ["FlowTwo/step/a"]),
        ({"root": HUB}, ["hub"]),
    ],
    ids=str,
)
def test_only_the_given_flow_step_and_root_are_considered(
    store: Store, pairs: dict[str, list[str]], options: dict[str, Any], places: list[str]
) -> None:
    plan = plan_retention(store, Rules(last=0), **options)
    assert deleted(plan) == {key for place in places for key in pairs[place]}


def test_exactly_what_the_plan_says_is_deleted(store: Store, save: Saver) -> None:
    keys = [save(days) for days in (4, 3, 2, 1)]
    model = store.save_model(save.path)
    plan = plan_retention(store, Rules(last=1))
    new = save(0)
    store.delete(keys[1])
    told: list[ModelArtifact] = []
    stats = execute_retention(store, plan, done=told.append)
    assert (stats.deleted, stats.gone, stats.size) == (2, 1, 2 * len(b"content"))
    assert {artifact["key"] for artifact in told} == {keys[0], keys[2]}
    assert {one["key"] for one in list_checkpoints(store, f"{CHECKPOINTS}/checkpoints/artifacts/")} == {keys[3], new}
    assert list(store.list()) == [model["key"]]


def test_nothing_is_deleted_by_a_clock_that_is_ahead(
    store: Store, save: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {save(days) for days in (2, 1)}
    monkeypatch.setattr(store.storage, "now", lambda: time.time() + 10 * DAY)
    plan = plan_retention(store, Rules(younger=7 * DAY))
    assert deleted(plan)
    with pytest.raises(StorageError, match="10 d ahead of the storage's; set it; nothing was removed"):
        execute_retention(store, plan)
    assert {one["key"] for one in list_checkpoints(store, f"{CHECKPOINTS}/checkpoints/artifacts/")} == keys


def test_what_cannot_be_read_is_left_alone(store: Store, save: Saver) -> None:
    keys = [save(days) for days in (3, 2, 1)]
    store.storage.put(keys[0], b"damaged")
    plan = plan_retention(store, Rules(last=1))
    assert deleted(plan) == {keys[1]}
    assert [list(group.unreadable) for group in plan.groups] == [[keys[0]]]


def test_an_invalid_date_is_replaced_by_the_time_of_the_object(
    store: Store, save: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the storage's time counts: what was written just now is young."""
    monkeypatch.setattr(details, "datetime", type("Clock", (), {"now": lambda tz: _Odd()}))
    writer = CheckpointWriter(store, CheckpointPlace("Flow", "step", "0" * 12, "a" * 12), "0" * 8, 0)
    key = writer.save(save.path, label="l")["key"]
    assert set(kept(plan_retention(store, Rules(younger=DAY)))) == {key}


class _Odd:
    def isoformat(self, timespec: str) -> str:
        return "yesterday"


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ({}, "no rule says what to keep"),
        ({"last": -1}, "last: expected a number from 0"),
        ({"younger": float("nan")}, "younger: expected a number from 0"),
        ({"best": 1}, "best and metric belong together"),
        ({"last": 1, "metric": "loss"}, "best and metric belong together"),
    ],
    ids=["none", "negative", "nan", "no-metric", "no-best"],
)
def test_rules_that_contradict_themselves_are_refused(rules: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        Rules(**rules)


def test_names_that_break_a_rule_are_refused(tmp_path: Path) -> None:
    store = Store(open_storage(tmp_path))
    with pytest.raises(InvalidInput, match="flow"):
        plan_retention(store, Rules(last=1), flow="")
    with pytest.raises(InvalidInput, match="expected mf"):
        plan_retention(store, Rules(last=1), root="mf.models")
    with pytest.raises(InvalidInput, match="the plan was made for"):
        execute_retention(store, RetentionPlan("elsewhere", []))
