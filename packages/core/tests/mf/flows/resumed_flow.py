"""Fails in one branch of a foreach until told otherwise, and tells what a resumed branch resumes."""

import os

from metaflow import FlowSpec, step

from metaflow_artifacts.mf.datastore import running_flow_datastore
from metaflow_artifacts.mf.resume import origin_tasks
from metaflow_artifacts.mf.task import TaskIdentity
from metaflow_artifacts.testing.flows import emit


class ResumedFlow(FlowSpec):
    @step
    def start(self):
        self.items = ["good", "bad"]
        self.next(self.branch, foreach="items")

    @step
    def branch(self):
        identity = TaskIdentity.of_running(self, running_flow_datastore())
        emit(self.input, [identity.pathspec, [task.pathspec for task in origin_tasks(identity)]])
        if os.environ.get("FAIL") and self.input == "bad":
            raise RuntimeError("told to fail")
        self.next(self.join)

    @step
    def join(self, inputs):
        identity = TaskIdentity.of_running(self, running_flow_datastore(), None, inputs)
        emit("join", [task.pathspec for task in origin_tasks(identity)])
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ResumedFlow()
