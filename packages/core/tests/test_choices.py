"""The nodes of a gang agree on what an attempt resumes from: the first choice holds, until gc removes an old one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metaflow_artifacts import CorruptArtifact, Store, open_store
from metaflow_artifacts._format.keys import CheckpointPlace
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._store.choices import Choice, GangChoice
from metaflow_artifacts._upkeep.gc import gc

PLACE = CheckpointPlace("Flow", "train", "a" * 12, "b" * 12)
GANG = "Flow/1/train/2"
KEY = f"{PLACE.prefix()}0123abcd.0.mfchckpt.3"
FIRST = Choice(KEY, f"{GANG}_node_1")


def gang_choice(store: Store, gang: str = GANG, attempt: int = 1) -> GangChoice:
    return GangChoice(store, PLACE, gang, attempt)


def test_the_first_choice_holds(store: Store) -> None:
    assert gang_choice(store).find() is None
    assert gang_choice(store).make(FIRST) == FIRST
    assert gang_choice(store).make(Choice(None, GANG)) == FIRST
    assert gang_choice(store).find() == FIRST


def test_nothing_can_be_chosen_too(store: Store) -> None:
    nothing = Choice(None, GANG)
    assert gang_choice(store).make(nothing) == nothing
    assert gang_choice(store).make(FIRST) == nothing


def test_each_attempt_and_each_gang_chooses_for_itself(store: Store) -> None:
    gang_choice(store).make(FIRST)
    assert gang_choice(store, attempt=2).find() is None
    assert gang_choice(store, gang="Flow/9/train/10").find() is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        json.dumps({"gang": GANG, "key": "elsewhere", "node": GANG}).encode(),
        json.dumps({"gang": GANG, "key": 3, "node": GANG}).encode(),
        json.dumps({"gang": GANG, "key": f"mf.models/models/artifacts/x_{'0' * 32}", "node": GANG}).encode(),
        json.dumps({"gang": GANG, "key": KEY.replace("Flow", "Other"), "node": GANG}).encode(),
        json.dumps({"gang": GANG, "node": GANG}).encode(),
        b"[" * 100_000,
        json.dumps({"gang": GANG, "key": KEY, "node": None}).encode(),
        json.dumps({"gang": "Flow/9/train/10", "key": KEY, "node": GANG}).encode(),
    ],
)
def test_an_object_that_is_no_choice_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    choice = gang_choice(open_store(str(tmp_path)))
    (tmp_path / choice.key).parent.mkdir(parents=True)
    (tmp_path / choice.key).write_bytes(content)
    for act in (choice.find, lambda: choice.make(FIRST)):
        with pytest.raises(CorruptArtifact, match=rf"{choice.key} .* does not: b.* retry the step"):
            act()


def test_gc_removes_choices_that_are_older_than_the_grace_period(store: Store) -> None:
    choice = gang_choice(store)
    choice.make(FIRST)
    assert gc(store, dry_run=False).choices == 0
    assert choice.find() == FIRST
    assert gc(store, grace=0, exclusive=True).choices == 1
    assert choice.find() == FIRST
    stats = gc(store, grace=0, exclusive=True, dry_run=False)
    assert stats.choices == 1
    assert stats.freed > 0
    assert choice.find() is None


def test_the_nodes_of_a_gang_share_one_sequence_of_numbers(store: Store, tmp_path: Path) -> None:
    (tmp_path / "content").write_text("content")
    nodes = [
        CheckpointWriter(store, PLACE, "0123abcd", 0, f"{GANG}_node_{node}", start=0, gang=GANG) for node in range(2)
    ]
    numbers = [
        node.save(tmp_path / "content", name, label="x")["version_id"]
        for node, name in ((nodes[0], "a"), (nodes[0], "a"), (nodes[1], "b"), (nodes[0], "a"), (nodes[1], "a"))
    ]
    assert numbers == [0, 1, 2, 3, 4]
