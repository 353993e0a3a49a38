"""The callback for Lightning."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from metaflow_artifacts.plugin import UsageError
from metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.training import TrainingCheckpoints

from ._arguments import positive
from ._random import random_state, set_random_state

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Checkpoint
elif "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
    # The same library under its other name, whose classes are others.
    from pytorch_lightning.callbacks import Checkpoint
else:
    try:
        from lightning.pytorch.callbacks import Checkpoint
    except ModuleNotFoundError:
        from pytorch_lightning.callbacks import Checkpoint

__all__ = ["LightningCheckpoint"]

_FILE = "lightning.ckpt"


class LightningCheckpoint(Checkpoint):
    """Saves a training in the background at the ends of its epochs, and lets a retry resume by itself.

    ```python
    trainer = Trainer(max_epochs=50)
    LightningCheckpoint().attach(trainer)
    trainer.fit(model, data)
    ```

    A checkpoint is what `Trainer.save_checkpoint` writes, with the states of other callbacks, and the states of the
    random generators besides (Python's, numpy's and torch's), which Lightning leaves out. Where the Trainer cannot be
    reached, give it the callback and what to resume from: `callbacks=[callback]`,
    `trainer.fit(…, ckpt_path=callback.resume_from)`.
    """

    def __init__(self, every: int = 1, name: str = "training") -> None:
        """Make a callback for one training.

        Parameters
        ----------
        every : int, default 1
            After how many epochs the training is saved.
        name : str, default 'training'
            The name of the checkpoints. Several trainings in one step need a name each.

        Raises
        ------
        UsageError
            If `every` is no number from 1.
        """
        super().__init__()
        self._every = positive(every, "LightningCheckpoint: every")
        self._checkpoints = TrainingCheckpoints(name, "LightningCheckpoint")
        self._file: str | None = None
        self._random: list[dict[str, Any]] | None = None

    def attach(self, trainer: Any) -> LightningCheckpoint:
        """Add the callback to a Trainer, whose `fit` then resumes from the newest checkpoint, if there is one.

        Raises as `resume_from`.
        """
        trainer.callbacks.append(self)
        if self.resume_from is not None:
            trainer.ckpt_path = self.resume_from
        return self

    @property
    def resume_from(self) -> str | None:
        """The file of the newest checkpoint, for `ckpt_path`; None where there is none.

        Raises NoTask outside of a task with `@checkpoint`, UsageError where another training has the same name,
        InvalidInput where what has this name is of another kind, StorageError.
        """
        if not self._checkpoints.has_begun:
            directory = self._checkpoints.begin(_FILE)
            self._file = None if directory is None else os.path.join(directory, _FILE)
        return self._file

    def state_dict(self) -> dict[str, Any]:
        """The states of the random generators, for Lightning's checkpoint: one of each process."""
        return {"random": _gathered(random_state())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set the random generators. Some strategies restore after `on_fit_start`, others before it."""
        self._random = state_dict["random"]
        self._set_random()

    def _set_random(self) -> None:
        # In a training of another number of processes, each has drawn other numbers anyway.
        rank, count = _rank_and_count()
        if self._random is not None and len(self._random) == count:
            set_random_state(self._random[rank])

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Set the random generators again, which the setup may have used. The order of the data is drawn after this."""
        self._set_random()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Raises UsageError where the training begins without its checkpoint."""
        if self.resume_from is None:
            return
        if self._random is None:
            raise UsageError(
                "LightningCheckpoint: the training begins anew, and there is a checkpoint; call "
                "LightningCheckpoint().attach(trainer) before trainer.fit(…), or "
                "trainer.fit(…, ckpt_path=callback.resume_from)"
            )
        # Else `validate` and `test` would load it too.
        if trainer.ckpt_path == self.resume_from:
            trainer.ckpt_path = None
        self._checkpoints.tell_resumed(f"epoch {trainer.current_epoch}")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Save the training every few epochs."""
        epoch = trainer.current_epoch + 1
        if epoch % self._every:
            return
        path = os.path.join(self._checkpoints.scratch, _FILE)
        # Every process takes part, and the first one writes.
        # The default; Lightning logs a line for each save that does not say so.
        trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            metadata = {"epoch": epoch, "step": trainer.global_step, **metrics}
            self._checkpoints.save({_FILE: path}, metadata, consume=True)


def _rank_and_count() -> tuple[int, int]:
    distributed = _distributed()
    return (0, 1) if distributed is None else (distributed.get_rank(), distributed.get_world_size())


def _gathered(state: dict[str, Any]) -> list[dict[str, Any]]:
    distributed = _distributed()
    if distributed is None:
        return [state]
    states: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(states, state)
    return states


def _distributed() -> Any:
    """`torch.distributed`, where this is one of several processes; else None."""
    distributed = sys.modules.get("torch.distributed")
    is_used = distributed is not None and distributed.is_available() and distributed.is_initialized()
    return distributed if is_used else None
