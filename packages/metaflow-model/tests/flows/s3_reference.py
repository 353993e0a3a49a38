"""Saves a model; with a reference, what that leads to, which is not in the datastore of the run."""

import os

from metaflow import FlowSpec, JSONType, Parameter, current, load_model, model, step

from metaflow_artifacts import ArtifactNotFound
from metaflow_artifacts.testing.flows import emit


class S3ReferenceFlow(FlowSpec):
    reference = Parameter("reference", type=JSONType, default="null")

    @model(load="reference", best_effort_load=True)
    @step
    def start(self):
        source = current.model.loaded.get("reference")
        if source is None:
            source = "content"
            with open(source, "w") as file:
                file.write("kept")
        else:
            emit("loaded", [os.listdir(source), os.listdir(current.model.load(self.reference))])
            try:
                current.model.load(self.reference["key"])
            except ArtifactNotFound as error:
                emit("by key", str(error))
        self.saved = current.model.save(source)
        emit("saved", self.saved)
        self.next(self.end)

    @step
    def end(self):
        # By key, in a step without the decorator: the datastore of this run.
        assert os.listdir(load_model(self.saved["key"], "undecorated")) == ["content"]


if __name__ == "__main__":
    S3ReferenceFlow()
