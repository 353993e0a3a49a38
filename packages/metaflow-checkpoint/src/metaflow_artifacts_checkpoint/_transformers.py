"""The callback for the Trainer of transformers."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from typing import Any

import transformers

from metaflow_artifacts.plugin import UsageError
from metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.training import TrainingCheckpoints

__all__ = ["TrainerCheckpoint"]

_FOLDER = re.compile(r"checkpoint-(\d+)")
_STATE = "trainer_state.json"


class TrainerCheckpoint(transformers.TrainerCallback):
    """Saves each checkpoint of a Trainer in the background, and lets a retry resume by itself.

    ```python
    trainer = Trainer(model, TrainingArguments(output, save_steps=100), train_dataset=data)
    TrainerCheckpoint().attach(trainer)
    trainer.train()
    ```

    The Trainer's own arguments say when it saves (`save_strategy`, `save_steps`). A checkpoint has all that the Trainer
    resumes from, random generators and place in the data among it, and the best checkpoint so far, where that is
    another one. Where the Trainer cannot be reached, give it the callback and what to resume from:
    `callbacks=[callback]`, `trainer.train(resume_from_checkpoint=callback.resume_from)`.
    """

    def __init__(self, name: str = "training") -> None:
        """Make a callback for one training.

        Parameters
        ----------
        name : str, default 'training'
            The name of the checkpoints. Several trainings in one step need a name each.
        """
        self._checkpoints = TrainingCheckpoints(name, "TrainerCheckpoint")
        self._directory: str | None = None

    def attach(self, trainer: Any) -> TrainerCheckpoint:
        """Add the callback to a Trainer, whose `train()` then resumes from the newest checkpoint, if there is one.

        Raises as `resume_from`.
        """
        trainer.add_callback(self)
        newest, train = self.resume_from, trainer.train
        if newest is not None:

            @functools.wraps(train)
            def resume(resume_from_checkpoint: Any = newest, *arguments: Any, **keywords: Any) -> Any:
                return train(resume_from_checkpoint, *arguments, **keywords)

            trainer.train = resume
        return self

    @property
    def resume_from(self) -> str | None:
        """The directory of the newest checkpoint, for `resume_from_checkpoint`; None where there is none.

        Raises NoTask outside of a task with `@checkpoint`, UsageError where another training has the same name,
        InvalidInput where what has this name is of another kind, StorageError.
        """
        if not self._checkpoints.has_begun:
            directory = self._checkpoints.begin("checkpoint-")
            if directory is not None:
                self._directory = _newest_in(directory)
                self._checkpoints.tell_resumed(f"step {_step_of(self._directory)}")
        return self._directory

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """Raises UsageError where there is a checkpoint, and the Trainer begins without it."""
        newest = self.resume_from
        if newest is not None and state.global_step < _step_of(newest):
            raise UsageError(
                f"TrainerCheckpoint: the training begins at step {state.global_step}, and there is a checkpoint of "
                f"step {_step_of(newest)}; call TrainerCheckpoint().attach(trainer) before trainer.train(), or "
                "trainer.train(resume_from_checkpoint=callback.resume_from)"
            )

    def on_save(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """Save what the Trainer has written."""
        # Each process has written the states of its random generators.
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            distributed.barrier()
        if not state.is_world_process_zero:
            return
        folder = f"checkpoint-{state.global_step}"
        content = {folder: os.path.join(args.output_dir, folder)}
        best = state.best_model_checkpoint
        if best is not None and os.path.isdir(best):
            content.setdefault(os.path.basename(os.path.normpath(best)), best)
        metadata = {"step": state.global_step, "epoch": state.epoch}
        if state.best_metric is not None:
            metadata["best_metric"] = state.best_metric
        self._checkpoints.save(content, metadata)


def _step_of(folder: str) -> int:
    return int(folder.rpartition("-")[2])


def _newest_in(directory: str) -> str:
    """The newest checkpoint in a directory. The best one that its state names is the one beside it."""
    folders = [name for name in os.listdir(directory) if _FOLDER.fullmatch(name)]
    newest = os.path.join(directory, max(folders, key=_step_of))
    path = os.path.join(newest, _STATE)
    with open(path) as file:
        state = json.load(file)
    best = os.path.basename(os.path.normpath(state.get("best_model_checkpoint") or ""))
    if best in folders:
        # It was on the machine, or in the directory, of an earlier attempt.
        state["best_model_checkpoint"] = os.path.join(directory, best)
        with open(path, "w") as file:
            json.dump(state, file, indent=2, sort_keys=True)
    return newest
