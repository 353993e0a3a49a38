"""Each policy allows a task to resume from certain checkpoints, the best first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stored_task import task_in

from metaflow_artifacts import UsageError
from metaflow_artifacts._mf.task import TaskIdentity
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.policy import candidates, check_policy


@pytest.fixture
def content(tmp_path: Path) -> Path:
    (tmp_path / "content").write_text("content")
    return tmp_path / "content"


def save(task: TaskIdentity, content: Path, latest: bool = True) -> Any:
    writer = CheckpointWriter(
        task.store(), task.checkpoint_place(), task.id, task.attempt, task.pathspec, gang=task.gang
    )
    return writer.save(content, "mfchckpt", None, label="x", latest=latest)["key"]


def keys(policy: str, task: TaskIdentity, damaged: list[Any] | None = None) -> list[str]:
    on_damage = [].append if damaged is None else damaged.append
    return [artifact["key"] for artifact in candidates(policy, task, on_damage)]


@pytest.mark.parametrize(
    ("given", "policy"),
    [("fresh", "fresh"), ("eager", "eager"), ("none", "none"), (None, "none"), ("None", "none")],
    ids=repr,
)
def test_the_policies_have_names(given: object, policy: str) -> None:
    assert check_policy(given, "train") == policy


@pytest.mark.parametrize("given", ["Fresh", "", "all", 3, True, ["fresh"]])
def test_another_policy_is_refused_with_the_step_and_the_choices(given: object) -> None:
    with pytest.raises(UsageError, match=r"step train: .* does not exist; choose 'fresh', 'eager' or 'none'"):
        check_policy(given, "train")


def test_fresh_resumes_from_the_newest_earlier_attempt_of_the_same_task(tmp_path: Path, content: Path) -> None:
    zero, one, two = (task_in(tmp_path, attempt=attempt) for attempt in range(3))
    oldest, newest = save(zero, content), save(one, content)
    save(task_in(tmp_path, run="9", task="10"), content)
    # A zombie: this attempt must not load what it or a later attempt has saved.
    save(two, content)
    assert keys("fresh", two) == [newest, oldest]
    assert keys("fresh", one) == [oldest]


def test_fresh_resumes_from_nothing_in_the_first_attempt(tmp_path: Path, content: Path) -> None:
    save(task_in(tmp_path, run="9", task="10"), content)
    assert keys("fresh", task_in(tmp_path)) == []


def test_eager_resumes_from_the_task_itself_and_then_from_any_run_at_the_place(tmp_path: Path, content: Path) -> None:
    own = save(task_in(tmp_path), content)
    other = save(task_in(tmp_path, run="9", task="10"), content)
    save(task_in(tmp_path, run="9", task="11", place="c" * 12), content)
    assert keys("eager", task_in(tmp_path, attempt=1)) == [own, other]
    assert keys("eager", task_in(tmp_path, run="12", task="13"))[0] == other


def test_eager_takes_no_other_nodes_checkpoint_for_that_of_another_run(tmp_path: Path, content: Path) -> None:
    gang = "Flow/1/train/2"
    control, worker = (replace(task_in(tmp_path, task=task), gang=gang) for task in ("2", "2_node_1"))
    save(control, content)
    assert keys("eager", worker) == []
    other = save(replace(task_in(tmp_path, run="9"), gang="Flow/9/train/2"), content)
    assert keys("eager", worker) == [other]


def test_none_resumes_from_nothing(tmp_path: Path, content: Path) -> None:
    save(task_in(tmp_path), content)
    assert keys("none", task_in(tmp_path, attempt=1)) == []


def test_a_checkpoint_that_is_not_latest_is_not_a_candidate(tmp_path: Path, content: Path) -> None:
    kept = save(task_in(tmp_path), content)
    save(task_in(tmp_path), content, latest=False)
    assert keys("fresh", task_in(tmp_path, attempt=1)) == [kept]


def test_a_damaged_checkpoint_is_reported_and_skipped(tmp_path: Path, content: Path) -> None:
    older = save(task_in(tmp_path), content)
    newer = save(task_in(tmp_path, attempt=1), content)
    (tmp_path / newer).write_bytes(b"damaged")
    damaged: list[Any] = []
    assert keys("fresh", task_in(tmp_path, attempt=2), damaged) == [older]
    assert [newer in str(error) for error in damaged] == [True]
