"""Retention: the last, the best and the young stay, for each flow and step; the rest goes, and only that."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from metaflow_artifacts import InvalidReference, ModelArtifact, Store
from metaflow_artifacts import store as store_module
from metaflow_artifacts.checkpoint_writer import CheckpointWriter
from metaflow_artifacts.checkpoints import list_checkpoints
from metaflow_artifacts.keys import CHECKPOINTS, HUB, CheckpointPlace
from metaflow_artifacts.retain import RetentionPlan, Rules, execute_retention, plan_retention
from metaflow_artifacts.storage import open_storage

DAY = 24 * 3600.0
NOW = datetime.now(timezone.utc)


class Saver:
    """Saves checkpoints that seem to be some days old."""

    def __init__(self, store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.path = path
        self.days = 0.0
        path.write_bytes(b"content")
        clock = type("Clock", (datetime,), {"now": classmethod(lambda cls, tz=None: NOW - timedelta(days=self.days))})
        monkeypatch.setattr(store_module, "datetime", clock)

    def __call__(self, days: float, where: str = "Flow/step/a", root: str = CHECKPOINTS, **metadata: Any) -> str:
        self.days = days
        flow, step, task = where.split("/")
        place = CheckpointPlace(flow, step, "0" * 12, task * 12, root)
        saved = CheckpointWriter(self.store, place, "0" * 8, 0, f"{flow}/1/{step}/2").save(
            self.path, metadata=metadata, label="l"
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
    keys = [save(days) for days in (5, 3, 4, 1, 2)]
    plan = plan_retention(store, Rules(last=2))
    assert kept(plan) == {keys[3]: ("last",), keys[4]: ("last",)}
    assert deleted(plan) == {keys[0], keys[1], keys[2]}
    assert plan.size == 3 * len(b"content")
    (group,) = plan.groups
    assert (group.flow, group.step, group.task) == ("Flow", "step", None)
    assert [one.artifact["key"] for one in group.keep] == [keys[3], keys[4]]
    assert deleted(plan_retention(store, Rules(last=9))) == set()
    assert deleted(plan_retention(store, Rules(last=0))) == set(keys)


def test_the_best(store: Store, save: Saver) -> None:
    keys = [save(9 - n, loss=loss) for n, loss in enumerate((0.5, 0.25, 3, 0.25, "low", None, True, [1]))]
    without = save(1)
    assert set(kept(plan_retention(store, Rules(best=2, metric="loss", lowest=True)))) == {keys[1], keys[3]}
    assert set(kept(plan_retention(store, Rules(best=1, metric="loss", lowest=True)))) == {keys[3]}
    highest = plan_retention(store, Rules(best=2, metric="loss"))
    assert set(kept(highest)) == {keys[2], keys[0]}
    assert deleted(highest) == {keys[1], *keys[3:], without}
    assert set(kept(plan_retention(store, Rules(best=99, metric="loss")))) == set(keys[:4])
    assert kept(plan_retention(store, Rules(best=5, metric="other"))) == {}


def test_the_young(store: Store, save: Saver) -> None:
    keys = [save(days) for days in (0.5, 6.9, 7.1, 400)]
    plan = plan_retention(store, Rules(younger=7 * DAY))
    assert kept(plan) == {keys[0]: ("younger",), keys[1]: ("younger",)}
    assert deleted(plan) == {keys[2], keys[3]}


def test_one_rule_is_enough_to_stay(store: Store, save: Saver) -> None:
    best, old, last = save(9, loss=0.1), save(8, loss=0.9), save(1, loss=0.5)
    plan = plan_retention(store, Rules(last=1, best=1, metric="loss", lowest=True, younger=2 * DAY))
    assert kept(plan) == {best: ("best",), last: ("last", "younger")}
    assert deleted(plan) == {old}


def test_each_flow_and_step_by_itself(store: Store, save: Saver) -> None:
    places = ["Flow/step/a", "Flow/step/b", "Flow/other/a", "FlowTwo/step/a"]
    keys = {place: [save(days, place) for days in (2, 1)] for place in places}
    hub = [save(days, root=HUB) for days in (2, 1)]
    everything = {key for pair in keys.values() for key in pair}
    plan = plan_retention(store, Rules(last=1))
    assert [(group.flow, group.step) for group in plan.groups] == [
        ("Flow", "other"),
        ("Flow", "step"),
        ("FlowTwo", "step"),
    ]
    assert len(kept(plan)) == 3
    assert set(kept(plan)) | deleted(plan) == everything
    per_task = plan_retention(store, Rules(last=1), per="task")
    assert set(kept(per_task)) == {pair[1] for pair in keys.values()}
    assert {group.task for group in per_task.groups} == {f"{'0' * 12}/{task * 12}" for task in "ab"}
    for options, expected in (
        ({"flow": "Flow"}, {*keys["Flow/step/a"], *keys["Flow/step/b"], *keys["Flow/other/a"]}),
        ({"flow": "Flow", "step": "other"}, {*keys["Flow/other/a"]}),
        ({"step": "other"}, {*keys["Flow/other/a"]}),
        ({"flow": "Fl"}, set()),
        ({"root": HUB}, {*hub}),
    ):
        assert deleted(plan_retention(store, Rules(last=0), **options)) == expected  # type: ignore[arg-type]


def test_what_the_plan_says_is_done_and_no_more(store: Store, save: Saver) -> None:
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


def test_what_cannot_be_read_is_left_alone(store: Store, save: Saver) -> None:
    keys = [save(days) for days in (3, 2, 1)]
    store.storage.put(keys[0], b"damaged")
    store.storage.put(f"{CHECKPOINTS}/checkpoints/artifacts/Flow/step/others", b"others")
    plan = plan_retention(store, Rules(last=1))
    assert deleted(plan) == {keys[1]}
    assert [list(group.unreadable) for group in plan.groups] == [[keys[0]]]


def test_a_date_that_makes_no_sense(store: Store, save: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the storage's time counts: what was written just now is young."""
    monkeypatch.setattr(store_module, "datetime", type("Clock", (), {"now": lambda tz: _Odd()}))
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
def test_rules_that_make_no_sense(rules: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidReference, match=problem):
        Rules(**rules)


def test_names_that_break_a_rule(tmp_path: Path) -> None:
    store = Store(open_storage(tmp_path))
    with pytest.raises(InvalidReference, match="flow"):
        plan_retention(store, Rules(last=1), flow="")
    with pytest.raises(InvalidReference, match="expected mf"):
        plan_retention(store, Rules(last=1), root="mf.models")
    with pytest.raises(InvalidReference, match="the plan was made for"):
        execute_retention(store, RetentionPlan("elsewhere", []))
