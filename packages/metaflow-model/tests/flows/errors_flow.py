"""Errors of calls in a step: each is caught by its class, and the last one is not caught."""

import os

import numpy
from metaflow import FlowSpec, current, model, step

from metaflow_artifacts import ArtifactError, ArtifactNotFound
from metaflow_artifacts.testing.flows import emit

ABSENT = "mf.models/models/artifacts/absent_" + "0" * 32


class ErrorsFlow(FlowSpec):
    @model
    @step
    def start(self):
        os.makedirs("empty", exist_ok=True)
        with open("file", "w") as file:
            file.write("content")
        save, load = current.model.save, current.model.load
        self.good = save(
            "file", label="a label/with ünicode..", metadata={"n": numpy.float32(0.5)}, storage_format="tar"
        )
        emit("good", [self.good, os.listdir(load(self.good))])
        emit("text", save("file", metadata={"outer": {"inner": {1}}})["metadata"])
        emit("empty", os.listdir(load(save("empty"))))
        for name, call in {
            "no such path": lambda: save("nowhere"),
            "label": lambda: save("file", label="two\nlines"),
            "long label": lambda: save("file", label="x" * 300),
            "metadata": lambda: save("file", metadata=["outer"]),
            "no key": lambda: load("not a key"),
            "climbs": lambda: load("mf.models/models/artifacts/../../../x_" + "0" * 32),
            "None": lambda: load(None),
            "number": lambda: load(3),
            "half a reference": lambda: load({"key": ABSENT}),
            "absent": lambda: load(ABSENT),
            "target is a file": lambda: load(self.good, "file"),
        }.items():
            try:
                call()
            except ArtifactError as error:
                emit("error", [name, type(error).__name__, str(error)])
        with open("file") as file:
            emit("file", file.read())
        try:
            load(ABSENT)
        except ArtifactNotFound as error:
            # An error that the step keeps can be read wherever the artifacts can.
            self.error = error
        self.next(self.end)

    @model
    @step
    def end(self):
        emit("kept", [type(self.error).__name__, str(self.error)])
        current.model.load(ABSENT)


if __name__ == "__main__":
    ErrorsFlow()
