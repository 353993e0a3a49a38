"""Loads a reference from a datastore that is not that of the run, in a step with and a step without @model."""

import os

from metaflow import FlowSpec, JSONType, Parameter, current, load_model, model, step

from metaflow_artifacts.testing.flows import emit


class S3ReferenceFlow(FlowSpec):
    reference = Parameter("reference", type=JSONType)

    @model(load="reference")
    @step
    def start(self):
        first = current.model.loaded["reference"]
        emit("loaded", [os.listdir(first), os.listdir(current.model.load(self.reference))])
        self.saved = current.model.save(first)
        emit("saved", self.saved)
        self.next(self.end)

    @step
    def end(self):
        # By key, in a step without the decorator: the datastore of this run.
        assert os.listdir(load_model(self.saved["key"], "undecorated")) == ["content"]


if __name__ == "__main__":
    S3ReferenceFlow()
