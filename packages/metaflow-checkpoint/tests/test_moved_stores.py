"""References to checkpoints outlive a move of their datastore."""

from __future__ import annotations

import json
from pathlib import Path

from metaflow_artifacts import CheckpointPlace, CheckpointWriter, open_store
from metaflow_artifacts.testing.flows import FlowRunner

SAVE = """
import os, sys
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._format.keys import CheckpointPlace
from metaflow_artifacts._mf.stores import default_store
from metaflow_artifacts.testing.flows import emit
os.makedirs(sys.argv[1], exist_ok=True)
open("state", "w").write("content")
place = CheckpointPlace("F", "train", "a" * 12, "b" * 12)
writer = CheckpointWriter(default_store(), place, "01234567", 0, "F/1/train/2")
emit("saved", writer.save("state", label="F_train"))
emit("root", default_store().root)
"""

LOAD = """
import json, os
from metaflow import Checkpoint
from metaflow_artifacts.testing.flows import emit
reference = json.loads(os.environ["REFERENCE"])
with Checkpoint() as checkpoint:
    emit("into directory", open(os.path.join(checkpoint.load(reference), "state")).read())
    emit("into path", open(os.path.join(checkpoint.load(reference, "here"), "state")).read())
"""


def test_a_checkpoint_is_loaded_from_where_its_store_was_moved_to(either: FlowRunner) -> None:
    result = either.python(SAVE, either.local_root)
    saved, root = result.fact("saved"), result.fact("root")
    reference = {**saved, "url": saved["url"].replace(root, f"{root}-before")}
    result = either.with_environment(REFERENCE=json.dumps(reference)).python(LOAD)
    assert result.fact("into directory") == result.fact("into path") == "content"


def test_a_checkpoint_is_loaded_from_the_store_that_it_was_copied_to(runner: FlowRunner, tmp_path: Path) -> None:
    """By its key, and by the reference that its save returned."""
    source = open_store(tmp_path / "source")
    (tmp_path / "state").write_text("content")
    place = CheckpointPlace("F", "train", "a" * 12, "b" * 12)
    saved = CheckpointWriter(source, place, "01234567", 0, "F/1/train/2").save(tmp_path / "state", label="F_train")
    source.copy_to(open_store(runner.local_root), [saved])
    (tmp_path / "source").rename(tmp_path / "gone")
    for reference in (saved["key"], saved):
        result = runner.with_environment(REFERENCE=json.dumps(reference)).python(LOAD)
        assert result.fact("into directory") == result.fact("into path") == "content"
