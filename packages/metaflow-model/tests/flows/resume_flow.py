"""Fails in its second step while FAIL is set. The resumed run loads what the first run saved."""

import os

from metaflow import FlowSpec, current, model, step

from metaflow_artifacts.testing.flows import emit


class ResumeFlow(FlowSpec):
    @model
    @step
    def start(self):
        with open("content", "w") as file:
            file.write("kept")
        self.kept = current.model.save("content")
        self.next(self.fragile)

    @model(load="kept")
    @step
    def fragile(self):
        if os.environ.get("FAIL"):
            raise RuntimeError("told to fail")
        self.after = current.model.save(current.model.loaded["kept"])
        emit("kept", current.model.loaded.info["kept"]["pathspec"])
        emit("after", self.after["pathspec"])
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ResumeFlow()
