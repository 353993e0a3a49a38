"""Keeps what comes from the Hub in a store of its own."""

import os

from metaflow import FlowSpec, current, huggingface_hub, step, with_artifact_store

from metaflow_artifacts.testing.flows import emit


@with_artifact_store(type="local", config={"root": os.environ["STORE"]})
class StoreFlow(FlowSpec):
    @huggingface_hub(load=["org/name"])
    @step
    def start(self):
        emit("loaded", sorted(os.listdir(current.huggingface_hub.loaded["org/name"])))
        emit("url", current.huggingface_hub.snapshot_download("org/name")["url"])
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    StoreFlow()
