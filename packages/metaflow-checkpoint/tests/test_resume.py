"""All nodes of a gang resume from one checkpoint, whoever starts late and whoever saves meanwhile."""

from __future__ import annotations

import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from stored_task import task_in

from metaflow_artifacts import ArtifactNotFound
from metaflow_artifacts._mf.log import Log
from metaflow_artifacts._mf.task import TaskIdentity
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._store.choices import GangChoice
from metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco import resume as resume_module
from metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.resume import Resumed, resume


class Node:
    """A node of a gang of run 1, in an attempt; it resumes and saves."""

    def __init__(self, root: Path, index: int, attempt: int, run: str = "1") -> None:
        task = "2" if index == 0 else f"2_node_{index}"
        self.task: TaskIdentity = replace(task_in(root, run, task, attempt), gang=f"Flow/{run}/train/2")
        self.root = root
        self.directory = root / f"node {run} {index} {attempt}"
        self.directory.mkdir(exist_ok=True)
        self.log: list[str] = []

    def save(self, content: str, name: str = "mfchckpt") -> Any:
        (self.root / "content").write_text(content)
        task = self.task
        writer = CheckpointWriter(
            task.store(), task.checkpoint_place(), task.id, task.attempt, task.pathspec, gang=task.gang
        )
        return writer.save(self.root / "content", name, label="x")["key"]

    def resume(self, policy: str = "fresh") -> Resumed:
        def logger(text: str, **kwargs: Any) -> None:
            self.log.append(text)

        return resume(self.task, policy, str(self.directory), Log("checkpoint", logger))

    @property
    def content(self) -> str | None:
        path = self.directory / "content"
        return path.read_text() if path.exists() else None


def test_a_late_node_obeys_the_choice_although_others_have_saved_since(tmp_path: Path) -> None:
    key = Node(tmp_path, 0, 0).save("epoch 2")
    first, late = Node(tmp_path, 0, 1), Node(tmp_path, 1, 1)
    assert first.resume().artifact == first.task.store().info(key)
    first.save("epoch 3")
    # A node of the attempt before is still alive, and saves.
    Node(tmp_path, 1, 0).save("zombie")
    resumed = late.resume()
    assert (first.content, late.content) == ("epoch 2", "epoch 2")
    assert resumed.why == "chosen for all nodes of the gang by Flow/1/train/2"
    assert f"This checkpoint was chosen for all nodes of the gang {late.task.gang} in attempt 1" in first.log[-1]
    assert f"Flow/1/train/2 chose for all nodes of the gang {late.task.gang} in attempt 1: {key}" in late.log[0]


def test_a_late_node_starts_from_the_beginning_if_the_first_did(tmp_path: Path) -> None:
    first, late = Node(tmp_path, 1, 1), Node(tmp_path, 0, 1)
    assert first.resume().artifact is None
    Node(tmp_path, 0, 0).save("zombie")
    assert late.resume().artifact is None
    assert late.content is None
    assert "all nodes of the gang Flow/1/train/2 in attempt 1 start from the beginning" in first.log[-1]


def test_the_first_attempt_of_a_fresh_gang_asks_for_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path, 0, 0)
    assert node.resume().artifact is None
    assert node.resume("none").artifact is None
    assert not (tmp_path / "mf.checkpoints").exists()


@pytest.mark.parametrize("faster", ["epoch 1", None])
def test_two_nodes_that_choose_at_once_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faster: str | None
) -> None:
    node, other = Node(tmp_path, 0, 1), Node(tmp_path, 1, 1)
    if faster:
        Node(tmp_path, 0, 0).save(faster)

    class Slow(GangChoice):
        """Between the look and the choice, the other node is faster and a zombie saves."""

        def find(self) -> Any:
            found = super().find()
            if not other.log:
                other.log.append("resumes")
                other.resume()
                Node(tmp_path, 0, 0).save("zombie")
            return found

    monkeypatch.setattr(resume_module, "GangChoice", Slow)
    resumed = node.resume()
    assert (node.content, other.content) == (faster, faster)
    assert (resumed.artifact is None) == (faster is None)
    assert sum("Loading the following checkpoint" in line for line in node.log) == (2 if faster else 1)


def test_a_node_that_cannot_load_the_choice_fails_and_takes_no_older_one(tmp_path: Path) -> None:
    older, newer = (Node(tmp_path, 0, 0).save(text) for text in ("older", "newer"))
    first, late = Node(tmp_path, 0, 1), Node(tmp_path, 1, 1)
    first.resume()
    first.task.store().delete(newer)
    with pytest.raises(ArtifactNotFound, match=f"the gang Flow/1/train/2 resumes attempt 1 from {newer}, which .*2_no"):
        late.resume()
    assert late.content is None
    # The next attempt chooses again.
    again = Node(tmp_path, 1, 2).resume().artifact
    assert again is not None
    assert again["key"] == older


def test_the_first_node_skips_a_damaged_checkpoint_for_all(tmp_path: Path) -> None:
    older, newer = (Node(tmp_path, 0, 0).save(text) for text in ("older", "newer"))
    (tmp_path / newer).write_bytes(b"damaged")
    nodes = [Node(tmp_path, index, 1) for index in range(3)]
    resumed = [node.resume().artifact for node in nodes]
    assert {artifact["key"] for artifact in resumed if artifact is not None} == {older}
    assert None not in resumed
    assert [sum("damaged" in line for line in node.log) for node in nodes] == [1, 0, 0]


def test_an_eager_gang_chooses_once_in_its_first_attempt_too(tmp_path: Path) -> None:
    key = Node(tmp_path, 0, 0, run="1").save("of run 1")
    first, late = Node(tmp_path, 1, 0, run="7"), Node(tmp_path, 0, 0, run="7")
    resumed = first.resume("eager").artifact
    assert resumed is not None
    assert resumed["key"] == key
    first.save("of run 7")
    Node(tmp_path, 0, 0, run="8").save("of run 8")
    late.resume("eager")
    assert late.content == "of run 1"


def _resume_at_once(root: Path, index: int, barrier: Any, results: Any) -> None:
    node = Node(root, index, 1)
    barrier.wait()
    artifact = node.resume().artifact
    results.put((artifact and artifact["key"], node.content, sum("was chosen for all" in line for line in node.log)))
    node.save(f"attempt 1 of {index}")


def _save_all_the_time(root: Path, barrier: Any) -> None:
    zombie = Node(root, 9, 0)
    barrier.wait()
    for number in range(10):
        zombie.save(f"zombie {number}")
        time.sleep(0.002)


@pytest.mark.parametrize("round_", range(3))
def test_nodes_that_start_at_once_agree_while_a_zombie_saves(tmp_path: Path, round_: int) -> None:
    Node(tmp_path, 0, 0).save("epoch 1")
    context = get_context("fork")
    barrier, results = context.Barrier(5), context.Queue()
    nodes = [context.Process(target=_resume_at_once, args=(tmp_path, n, barrier, results)) for n in range(4)]
    for process in (*nodes, zombie := context.Process(target=_save_all_the_time, args=(tmp_path, barrier))):
        process.start()
    found = [results.get(timeout=120) for _ in nodes]
    for process in (*nodes, zombie):
        process.join()
    assert len({(key, content) for key, content, _ in found}) == 1, found
    assert sum(chose for *_, chose in found) == 1, found
