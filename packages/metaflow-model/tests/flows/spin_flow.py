"""A step that loads what an earlier step has saved, by its reference and by its key, and saves a model."""

import os

from metaflow import FlowSpec, card, current, model, step

from metaflow_artifacts.testing.flows import emit


class SpinFlow(FlowSpec):
    @model
    @step
    def start(self):
        with open("weights", "w") as file:
            file.write("1 2 3")
        self.base = current.model.save("weights")
        self.key = self.base["key"]
        self.next(self.end)

    @card
    @model(load=["base", "key"])
    @step
    def end(self):
        emit("loaded", {name: os.listdir(path) for name, path in current.model.loaded.items()})
        self.tuned = current.model.save("weights")
        emit("again", os.listdir(current.model.load(self.tuned["key"])))
        emit("tuned", self.tuned)


if __name__ == "__main__":
    SpinFlow()
