"""The callback for XGBoost."""

from __future__ import annotations

import json
import os
from typing import Any

import xgboost

from metaflow_artifacts.plugin import UsageError
from metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.training import TrainingCheckpoints

from ._arguments import positive

__all__ = ["XGBoostCheckpoint"]

_MODEL = "model.ubj"
_ROUNDS = "rounds.json"


class XGBoostCheckpoint(xgboost.callback.TrainingCallback):
    """Saves the booster in the background, and lets a retry resume by itself.

    ```python
    booster = xgboost.train(parameters, data, num_boost_round=500, callbacks=[XGBoostCheckpoint()])
    ```

    Also for `callbacks` of XGBRegressor and its like. A retry loads the newest booster, and the rounds that it has are
    passed over: other callbacks, early stopping among them, see what these rounds had returned. So `num_boost_round`
    stays the number of all rounds, and the result is equal to that of a training without the kill. But XGBoost cannot
    save its random generators: with `subsample` or `colsample_bytree` below 1, and with `dart`, a resumed training
    draws other numbers.

    Not for `xgboost.cv`. In distributed training, the worker of rank 0 saves.
    """

    def __init__(self, every: int = 10, name: str = "training") -> None:
        """Make a callback for one training.

        Parameters
        ----------
        every : int, default 10
            After how many rounds the booster is saved.
        name : str, default 'training'
            The name of the checkpoints. Several trainings in one step need a name each.

        Raises
        ------
        UsageError
            If `every` is no number from 1.
        """
        super().__init__()
        self._every = positive(every, "XGBoostCheckpoint: every")
        self._checkpoints = TrainingCheckpoints(name, "XGBoostCheckpoint")
        self._directory: str | None = None
        self._replay: _Replay | None = None

    def before_training(self, model: Any) -> Any:
        """Find the newest booster. Raises as `TrainingCheckpoints.begin`."""
        if not isinstance(model, xgboost.Booster):
            raise UsageError("XGBoostCheckpoint: xgboost.cv has a booster for each fold, and cannot be resumed")
        self._directory = self._checkpoints.begin(_ROUNDS)
        return model

    def before_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        """Load the newest booster before the first round, and end the replay when its rounds are over."""
        if self._directory is not None:
            # Not earlier: when a training begins, early stopping counts the rounds that the booster has.
            self._replay = _Replay(model, self._directory)
            self._directory = None
            self._checkpoints.tell_resumed(f"round {self._replay.rounds}")
        if self._replay is not None and epoch >= self._replay.rounds:
            self._end_replay()
        return False

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        """Save the booster every few rounds."""
        rounds = epoch + 1
        if self._replay is None and rounds % self._every == 0 and xgboost.collective.get_rank() == 0:
            state = {"rounds": rounds, "evals": evals_log}
            last = {f"{data}-{metric}": all[-1] for data, of in evals_log.items() for metric, all in of.items()}
            self._checkpoints.save(
                {_MODEL: bytes(model.save_raw("ubj")), _ROUNDS: json.dumps(state).encode()},
                {"round": rounds, **last},
            )
        return False

    def after_training(self, model: Any) -> Any:
        """End the replay, where all rounds were done before."""
        self._end_replay()
        return model

    def _end_replay(self) -> None:
        if self._replay is not None:
            self._replay.end()
            self._replay = None


class _Replay:
    """Lets a booster pass over rounds that it has already, with the evaluations that they had."""

    def __init__(self, model: Any, directory: str) -> None:
        with open(os.path.join(directory, _ROUNDS)) as file:
            state = json.load(file)
        # A model has no parameters such as max_depth.
        parameters = model.save_config()
        with open(os.path.join(directory, _MODEL), "rb") as file:
            model.load_model(bytearray(file.read()))
        model.load_config(parameters)
        self._model = model
        self.rounds: int = state["rounds"]
        self._evals: dict[str, dict[str, list[float]]] = state["evals"]
        # Found before the methods of the class.
        model.update = self._update
        model.eval_set = self._eval_set

    def end(self) -> None:
        del self._model.update, self._model.eval_set

    def _update(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def _eval_set(self, evals: Any, iteration: int = 0, *arguments: Any, **keywords: Any) -> str:
        """What `Booster.eval_set` returns: a line that XGBoost takes apart at its white space."""
        of_round = [
            f"{data}-{metric}:{values[iteration]!r}"
            for data, metrics in self._evals.items()
            for metric, values in metrics.items()
        ]
        return "\t".join([f"[{iteration}]", *of_round])
