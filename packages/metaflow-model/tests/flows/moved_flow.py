"""Loads a reference whose url has the former root of its store, with every function."""

import json
import os

from metaflow import FlowSpec, current, load_model, model, step

from metaflow_artifacts.testing.flows import emit


def read(directory):
    with open(os.path.join(directory, "file")) as file:
        return file.read()


class MovedFlow(FlowSpec):
    @step
    def start(self):
        self.x = json.loads(os.environ["REFERENCE"])
        self.next(self.end)

    @model(load="x")
    @step
    def end(self):
        emit("loaded", read(current.model.loaded["x"]))
        emit("load", read(current.model.load(self.x)))
        emit("load_model", read(load_model(self.x, "here")))


if __name__ == "__main__":
    MovedFlow()
