"""Many tasks load the same repo at the same time."""

import os

from metaflow import FlowSpec, current, huggingface_hub, step

from metaflow_artifacts.testing.flows import emit


class ForeachFlow(FlowSpec):
    @step
    def start(self):
        self.numbers = list(range(int(os.environ.get("TASKS", "20"))))
        self.next(self.each, foreach="numbers")

    @huggingface_hub(load=["org/name"])
    @step
    def each(self):
        path = current.huggingface_hub.loaded["org/name"]
        emit("key", current.huggingface_hub.loaded.info["org/name"]["key"])
        emit("size", os.path.getsize(os.path.join(path, "weights.bin")))
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ForeachFlow()
