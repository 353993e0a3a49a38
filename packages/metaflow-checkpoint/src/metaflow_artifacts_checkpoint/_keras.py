"""The callback for Keras."""

from __future__ import annotations

import json
import os
from typing import Any

import keras
import numpy as np

from metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.training import TrainingCheckpoints

from ._arguments import positive
from ._random import random_state, set_random_state

__all__ = ["KerasCheckpoint"]

_WEIGHTS = "model.weights.h5"
_SEEDS = "seeds.npz"
_TRAINING = "training.json"


class KerasCheckpoint(keras.callbacks.Callback):
    """Saves the model and its optimiser in the background, and lets a retry resume by itself.

    ```python
    model.fit(inputs, targets, epochs=50, callbacks=[KerasCheckpoint()])
    ```

    A retry loads the newest state when the training begins, and goes on with the next epoch; `epochs` stays the number
    of all epochs, and the history has all of them. Saved are the weights, the optimiser's state, the states of the
    random generators (Python's, numpy's and torch's, and those of layers such as Dropout), and the history. The model
    must be built. What other callbacks have counted is not saved.
    """

    def __init__(self, every: int = 1, name: str = "training") -> None:
        """Make a callback for one training, which is one call of `fit`.

        Parameters
        ----------
        every : int, default 1
            After how many epochs the model is saved.
        name : str, default 'training'
            The name of the checkpoints. Several trainings in one step need a name each.

        Raises
        ------
        UsageError
            If `every` is no number from 1.
        """
        super().__init__()
        self._every = positive(every, "KerasCheckpoint: every")
        self._checkpoints = TrainingCheckpoints(name, "KerasCheckpoint")
        self._resumed: dict[str, Any] | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Load the newest state, if there is one. Raises as `TrainingCheckpoints.begin`."""
        directory = self._checkpoints.begin(_TRAINING)
        if directory is None:
            return
        with open(os.path.join(directory, _TRAINING)) as file:
            self._resumed = json.load(file)
        optimizer = self.model.optimizer
        if optimizer is not None and not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        self.model.load_weights(os.path.join(directory, _WEIGHTS))
        with np.load(os.path.join(directory, _SEEDS)) as seeds:
            for number, variable in enumerate(_seeds(self.model)):
                variable.assign(seeds[str(number)])
        # As keras.callbacks.BackupAndRestore does; fit reads it after this.
        self.model._initial_epoch = self._resumed["epoch"]
        self._checkpoints.tell_resumed(f"epoch {self._resumed['epoch']}")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Set what other callbacks and `fit` have changed since the training began."""
        if self._resumed is not None:
            history = self.model.history
            history.epoch, history.history = list(self._resumed["epochs"]), self._resumed["history"]
            set_random_state(self._resumed["random"])
            self._resumed = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Save the model every few epochs."""
        if (epoch + 1) % self._every:
            return
        paths = {name: os.path.join(self._checkpoints.scratch, name) for name in (_WEIGHTS, _SEEDS, _TRAINING)}
        values = {name: float(value) for name, value in (logs or {}).items()}
        history = self.model.history
        # The history's own callback is called after this one.
        past = {name: [*map(float, history.history.get(name, []))] for name in values}
        state = {
            "epoch": epoch + 1,
            "epochs": [*history.epoch, epoch],
            "history": {name: [*past[name], value] for name, value in values.items()},
            "random": random_state(),
        }
        self.model.save_weights(paths[_WEIGHTS])
        seeds: dict[str, Any] = {str(n): keras.ops.convert_to_numpy(v) for n, v in enumerate(_seeds(self.model))}
        np.savez(paths[_SEEDS], **seeds)
        with open(paths[_TRAINING], "w") as file:
            json.dump(state, file)
        self._checkpoints.save(paths, {"epoch": epoch + 1, **values}, consume=True)

    def on_train_end(self, logs: Any = None) -> None:
        """Let the next `fit` of this model begin where its own arguments say."""
        self.model._initial_epoch = None


def _seeds(model: Any) -> list[Any]:
    """The states of the random generators of the layers: `save_weights` leaves them out."""
    weights = {id(one) for one in model.weights}
    return [one for one in model.variables if id(one) not in weights and "seed" in one.path]
