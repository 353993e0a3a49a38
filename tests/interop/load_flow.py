"""Loads what another flow saved, by its key, with @model or @checkpoint: the one that is installed."""

import os

import metaflow
from metaflow import FlowSpec, Parameter, current, step

NAME = "model" if hasattr(metaflow, "model") else "checkpoint"


class LoadFlow(FlowSpec):
    key = Parameter("key", required=True)

    @getattr(metaflow, NAME)
    @step
    def start(self):
        getattr(current, NAME).load(self.key, path="loaded")
        print(f"@{NAME} loaded", os.listdir("loaded"))
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    LoadFlow()
