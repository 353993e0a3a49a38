"""Loads a model that another flow saved, by its key."""

import json
from pathlib import Path

from metaflow import FlowSpec, Parameter, current, model, step


class PredictFlow(FlowSpec):
    line = Parameter("line", help="key of the model", required=True)
    x = Parameter("x", default=20.0)

    @model(load="line")
    @step
    def start(self):
        weights = json.loads((Path(current.model.loaded["line"]) / "weights.json").read_text())
        print(f"prediction for x = {self.x}: {weights['slope'] * self.x + weights['intercept']}")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    PredictFlow()
