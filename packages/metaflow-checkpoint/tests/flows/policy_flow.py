"""Loads the newest checkpoint of another flow, by an artifact and by listing its task."""

import os

from metaflow import Flow, FlowSpec, checkpoint, current, namespace, step

from metaflow_artifacts.testing.flows import emit


def counter():
    with open(os.path.join(current.checkpoint.directory, "counter")) as file:
        return int(file.read())


class CounterPolicyFlow(FlowSpec):
    @checkpoint(load_policy=None)
    @step
    def start(self):
        emit("loaded automatically", [current.checkpoint.is_loaded, current.checkpoint.info])
        namespace(None)
        run = Flow("CheckpointCounterFlow").latest_successful_run
        current.checkpoint.load(run["flaky_count"].task["latest_checkpoint"].data)
        emit("by artifact", counter())
        run = Flow("CheckpointCounterFlow").latest_run
        found = current.checkpoint.list(task=run["flaky_count"].task)
        emit("of the task", [one["metadata"]["counter"] for one in found])
        with open(os.path.join(current.checkpoint.directory, "something else"), "w") as file:
            file.write("x")
        current.checkpoint.load(found[-1])
        emit("by list", [counter(), os.listdir(current.checkpoint.directory)])
        current.checkpoint.load(found[0]["key"], path="elsewhere")
        emit("elsewhere", [os.listdir("elsewhere"), counter()])
        self.mine = current.checkpoint.save()
        emit("mine", self.mine)
        emit("still", [current.checkpoint.is_loaded, current.checkpoint.info])
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    CounterPolicyFlow()
