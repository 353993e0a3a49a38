"""A training of three epochs, which says where it began."""

import os

from metaflow import FlowSpec, checkpoint, current, step

from metaflow_artifacts.testing.flows import emit


class SpinFlow(FlowSpec):
    @checkpoint
    @step
    def start(self):
        with open(os.path.join(current.checkpoint.directory, "base"), "w") as file:
            file.write("base")
        self.base = current.checkpoint.save()
        self.next(self.end)

    @checkpoint(load_policy=os.environ.get("POLICY", "fresh"))
    @step
    def end(self):
        state = os.path.join(current.checkpoint.directory, "epoch")
        begin = 0
        if current.checkpoint.is_loaded:
            with open(state) as file:
                begin = int(file.read()) + 1
        for epoch in range(begin, begin + 3):
            with open(state, "w") as file:
                file.write(str(epoch))
            emit("saved", current.checkpoint.save(metadata={"epoch": epoch}))
        emit("began", begin)
        emit("listed", len(current.checkpoint.list()))
        emit("base", os.listdir(current.checkpoint.load(self.base, path="base")))


if __name__ == "__main__":
    SpinFlow()
