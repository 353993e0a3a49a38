"""Boosted trees in XGBoost: one callback saves in the background and resumes, early stopping included."""

import time

import numpy as np
import xgboost as xgb
from metaflow import FlowSpec, Parameter, checkpoint, retry, step

from metaflow_artifacts_checkpoint import XGBoostCheckpoint


class Pause(xgb.callback.TrainingCallback):
    def __init__(self, pause):
        super().__init__()
        self.pause = pause

    def after_iteration(self, model, epoch, evals_log):
        print(f"round {epoch + 1}: rmse {evals_log['test']['rmse'][-1]:.5f}")
        time.sleep(self.pause)
        return False


class XGBoostFlow(FlowSpec):
    rounds = Parameter("rounds", default=60)
    pause = Parameter("pause", default=0.05, help="seconds that a round takes longer, so that you can kill it")

    @retry(times=2, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        rng = np.random.default_rng(0)
        inputs = rng.normal(size=(2000, 20))
        targets = np.sin(inputs[:, 0]) + inputs[:, 1] * inputs[:, 2]
        data = xgb.DMatrix(inputs[:1500], targets[:1500])
        test = xgb.DMatrix(inputs[1500:], targets[1500:])

        evals = {}
        model = xgb.train(
            {"max_depth": 4, "eta": 0.4, "nthread": 1},
            data,
            num_boost_round=self.rounds,
            evals=[(data, "train"), (test, "test")],
            evals_result=evals,
            early_stopping_rounds=3,
            verbose_eval=False,
            callbacks=[XGBoostCheckpoint(every=4), Pause(self.pause)],
        )
        self.result = [model.predict(test).tolist(), model.best_iteration, evals]
        self.next(self.end)

    @step
    def end(self):
        print("predictions", np.round(self.result[0][:5], 3))


if __name__ == "__main__":
    XGBoostFlow()
