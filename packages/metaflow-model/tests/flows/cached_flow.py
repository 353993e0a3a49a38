"""Two tasks load a model that a third one saved; the node's cache is in Metaflow's configuration."""

import os

from metaflow import FlowSpec, card, current, model, step

from metaflow_artifacts.testing.flows import emit


class CachedFlow(FlowSpec):
    @model
    @step
    def start(self):
        with open("weights", "wb") as file:
            file.write(os.urandom(1 << 20))
        self.weights = current.model.save("weights")
        self.next(self.first)

    @model(load="weights")
    @step
    def first(self):
        self.next(self.second)

    @card
    @model(load="weights")
    @step
    def second(self):
        emit("size", os.path.getsize(os.path.join(current.model.loaded["weights"], "weights")))
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    CachedFlow()
