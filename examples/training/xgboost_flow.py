"""Boosted trees: XGBoost calls a callback after each round, and the callback saves."""

import os
import time

import numpy as np
import xgboost as xgb
from metaflow import FlowSpec, Parameter, checkpoint, current, retry, step


class SaveCheckpoints(xgb.callback.TrainingCallback):
    """Saves the model every few rounds."""

    def __init__(self, every, pause):
        super().__init__()
        self.every = every
        self.pause = pause

    def after_iteration(self, model, epoch, evals_log):
        rounds = model.num_boosted_rounds()
        if rounds % self.every == 0:
            model.save_model(os.path.join(current.checkpoint.directory, "model.ubj"))
            loss = evals_log["train"]["rmse"][-1]
            current.checkpoint.save(metadata={"rounds": rounds, "rmse": loss})
            print(f"round {rounds}: rmse {loss:.5f}")
        time.sleep(self.pause)
        return False


class XGBoostFlow(FlowSpec):
    rounds = Parameter("rounds", default=40)
    pause = Parameter("pause", default=0.05, help="seconds that a round takes longer, so that you can kill it")

    @retry(times=2, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        rng = np.random.default_rng(0)
        inputs = rng.normal(size=(2000, 20))
        targets = np.sin(inputs[:, 0]) + inputs[:, 1] * inputs[:, 2]
        data = xgb.DMatrix(inputs, targets)

        model, done = None, 0
        if current.checkpoint.is_loaded:
            model = xgb.Booster(model_file=os.path.join(current.checkpoint.directory, "model.ubj"))
            done = model.num_boosted_rounds()
            print("resumes after round", done)

        model = xgb.train(
            {"max_depth": 4, "eta": 0.2, "seed": 0, "nthread": 1},
            data,
            num_boost_round=self.rounds - done,
            evals=[(data, "train")],
            verbose_eval=False,
            xgb_model=model,
            callbacks=[SaveCheckpoints(every=4, pause=self.pause)],
        )
        self.result = model.predict(data)[:20].tolist()
        self.next(self.end)

    @step
    def end(self):
        print("predictions", np.round(self.result[:5], 3))


if __name__ == "__main__":
    XGBoostFlow()
