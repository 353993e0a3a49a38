"""Saves a model in one step and loads it in the next."""

import json
from pathlib import Path

from metaflow import FlowSpec, current, model, step


class TrainFlow(FlowSpec):
    @model
    @step
    def start(self):
        directory = Path("trained")
        directory.mkdir()
        (directory / "weights.json").write_text(json.dumps({"slope": 2.0, "intercept": 1.0}))
        self.line = current.model.save(directory, label="line", metadata={"error": 0.01})
        self.next(self.check)

    @model(load="line")
    @step
    def check(self):
        directory = Path(current.model.loaded["line"])
        print(f"loaded {current.model.loaded.info['line']['key']}")
        print(f"weights: {(directory / 'weights.json').read_text()}")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    TrainFlow()
