"""Fails in its second step after a save while FAIL is set; then it is resumed without FAIL."""

import os

from metaflow import FlowSpec, checkpoint, current, step

from metaflow_artifacts.testing.flows import emit


class ResumeFlow(FlowSpec):
    @checkpoint
    @step
    def start(self):
        self.kept = current.checkpoint.save()
        self.next(self.train)

    @checkpoint(load_policy=os.environ.get("POLICY", "fresh"))
    @step
    def train(self):
        loaded = current.checkpoint.info
        emit("loaded", loaded and [loaded.pathspec, os.listdir(current.checkpoint.directory)])
        with open(os.path.join(current.checkpoint.directory, f"of run {current.run_id}"), "w") as file:
            file.write("x")
        current.checkpoint.save()
        if os.environ.get("FAIL"):
            raise RuntimeError("told to fail")
        # A task that was taken over has what its origin saved.
        found = current.checkpoint.list(task=f"ResumeFlow/{current.run_id}/start/1")
        emit("taken over", [one["pathspec"] for one in found])
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ResumeFlow()
