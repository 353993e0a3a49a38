"""What the callbacks save and resume, without the libraries that they are for: tests/examples has these."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import metaflow_artifacts_checkpoint
from metaflow_artifacts import PendingSave
from metaflow_artifacts.errors import StorageError, UsageError
from metaflow_artifacts.testing.flows import FlowRunner
from metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.errors import NoTask
from metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.training import TrainingCheckpoints

MISSING = """
import sys
from metaflow_artifacts.errors import UsageError
from metaflow_artifacts.testing.flows import emit
import metaflow, metaflow_artifacts_checkpoint
libraries = ("keras", "lightning", "pytorch_lightning", "transformers", "xgboost", "torch", "numpy")
emit("imported", [name for name in libraries if name in sys.modules])
for name in libraries:
    sys.modules[name] = None
for name in metaflow_artifacts_checkpoint.__all__:
    try:
        getattr(metaflow_artifacts_checkpoint, name)
    except UsageError as error:
        emit("error", str(error))
"""


def test_trainings_of_a_step_resume_apart(runner: FlowRunner, flows: Path) -> None:
    result = runner.run(flows / "trainings_flow.py")
    assert result.facts("first") == [0, 3]
    assert result.facts("second") == [0, 2]
    kind, message = result.fact("error")
    assert kind == "UsageError"
    assert "Callback(name=…)" in message
    # What the step has loaded is the newest of the first attempt; a subprocess finds the same.
    assert result.fact("subprocess") == ["first", "3", "second", "2", "third", "nothing"]
    kind, message = result.fact("other")
    assert kind == "InvalidInput"
    assert "no epoch" in message


def test_a_library_that_is_missing_is_named_when_its_callback_is_used(runner: FlowRunner) -> None:
    result = runner.python(MISSING)
    assert result.fact("imported") == []
    errors = result.facts("error")
    assert len(errors) == len(metaflow_artifacts_checkpoint.__all__)
    for library, error in zip(("keras", "lightning", "transformers", "xgboost"), errors, strict=True):
        assert f"pip install '{library}" in error


def test_outside_of_a_task_a_training_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METAFLOW_CHECKPOINT_UID", raising=False)
    with pytest.raises(NoTask, match="belongs to no task"):
        TrainingCheckpoints("training", "Callback").begin("epoch")


class Failing:
    """Stands in for a Checkpoint whose first save cannot be stored."""

    def __init__(self) -> None:
        self.saves: list[PendingSave] = []

    def save_async(self, content: Any, **keywords: Any) -> PendingSave:
        self.saves.append(PendingSave())
        if len(self.saves) == 1:
            self.saves[0]._finish(StorageError("the bucket is full"))
        return self.saves[-1]


def test_a_state_that_was_not_stored_costs_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints, failing = TrainingCheckpoints("training", "Callback"), Failing()
    checkpoints._checkpoint = failing  # type: ignore[assignment]
    checkpoints.save({"a": b""}, {})
    assert failing.saves[0].unseen_error is not None
    checkpoints.save({"a": b""}, {})
    # What was seen does not fail the step.
    assert failing.saves[0].unseen_error is None
    assert "the training goes on: the bucket is full" in capsys.readouterr().err


class Resumed:
    """Stands in for TrainingCheckpoints, in a task whose earlier attempt has left `directory`."""

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self.has_begun = False
        self.saved: list[tuple[Any, Any]] = []

    def begin(self, marker: str) -> str | None:
        self.has_begun = True
        return None if self.directory is None else str(self.directory)

    def tell_resumed(self, after: str) -> None:
        self.after = after

    def save(self, content: Any, metadata: Any, *, consume: bool = False) -> None:
        self.saved.append((content, metadata))


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path | None], Any]]:
    """Makes a TrainerCheckpoint of a task, where transformers is nothing but the class that it needs."""
    transformers: Any = ModuleType("transformers")
    transformers.TrainerCallback = object
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    monkeypatch.delitem(sys.modules, "metaflow_artifacts_checkpoint._transformers", raising=False)
    monkeypatch.delitem(vars(metaflow_artifacts_checkpoint), "TrainerCheckpoint", raising=False)

    def make_one(directory: Path | None) -> Any:
        callback = metaflow_artifacts_checkpoint.TrainerCheckpoint()
        callback._checkpoints = Resumed(directory)  # type: ignore[assignment]
        return callback

    yield make_one
    vars(metaflow_artifacts_checkpoint).pop("TrainerCheckpoint", None)
    sys.modules.pop("metaflow_artifacts_checkpoint._transformers", None)


class Trainer:
    def __init__(self) -> None:
        self.callbacks: list[Any] = []

    def add_callback(self, callback: Any) -> None:
        self.callbacks.append(callback)

    def train(self, resume_from_checkpoint: Any = None, trial: Any = None) -> tuple[Any, Any]:
        return resume_from_checkpoint, trial


@pytest.fixture
def loaded(tmp_path: Path) -> Path:
    """What a task has loaded of an attempt on another machine: the newest checkpoint of three, and the best."""
    for step in (8, 40):
        (tmp_path / f"checkpoint-{step}").mkdir()
        state = {"global_step": step, "best_model_checkpoint": "/gone/output/checkpoint-8"}
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    return tmp_path


def test_a_trainer_resumes_from_the_newest_checkpoint_and_finds_the_best(make: Any, loaded: Path) -> None:
    trainer = Trainer()
    callback = make(loaded).attach(trainer)
    assert trainer.callbacks == [callback]
    assert trainer.train(trial=1) == (str(loaded / "checkpoint-40"), 1)
    assert trainer.train("mine") == ("mine", None)
    state = json.loads((loaded / "checkpoint-40" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(loaded / "checkpoint-8")


def test_a_trainer_that_would_begin_anew_is_stopped(make: Any, loaded: Path) -> None:
    with pytest.raises(UsageError, match=r"checkpoint of step 40; call TrainerCheckpoint\(\)\.attach"):
        make(loaded).on_train_begin(None, SimpleNamespace(global_step=0), None)
    make(loaded).on_train_begin(None, SimpleNamespace(global_step=40), None)


def test_a_first_attempt_trains_as_without_the_callback(make: Any) -> None:
    trainer = Trainer()
    callback = make(None).attach(trainer)
    assert trainer.train() == (None, None)
    callback.on_train_begin(None, SimpleNamespace(global_step=0), None)


def test_the_best_checkpoint_is_saved_with_the_newest_and_by_one_process(make: Any, loaded: Path) -> None:
    callback = make(None)
    arguments = SimpleNamespace(output_dir=str(loaded))
    state = SimpleNamespace(
        global_step=40,
        epoch=2.5,
        best_metric=0.1,
        best_model_checkpoint=f"{loaded}/checkpoint-8",
        is_world_process_zero=False,
    )
    callback.on_save(arguments, state, None)
    assert not callback._checkpoints.saved
    state.is_world_process_zero = True
    callback.on_save(arguments, state, None)
    folders = {f"checkpoint-{step}": f"{loaded}/checkpoint-{step}" for step in (40, 8)}
    assert callback._checkpoints.saved == [(folders, {"step": 40, "epoch": 2.5, "best_metric": 0.1})]
