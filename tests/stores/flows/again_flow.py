"""Saves into a store on disk; its last step fails where the environment says so."""

import os

from metaflow import FlowSpec, checkpoint, current, step, with_artifact_store

from metaflow_artifacts.testing.flows import emit


@with_artifact_store(type="local", config={"root": "store"})
class AgainFlow(FlowSpec):
    @checkpoint(load_policy="eager")
    @step
    def start(self):
        emit("resumed", current.checkpoint.info and current.checkpoint.info["pathspec"])
        self.saved = current.checkpoint.save({"state": b"1"})
        emit("url", self.saved["url"])
        self.next(self.end)

    @checkpoint
    @step
    def end(self):
        emit("loaded", os.listdir(current.checkpoint.load(self.saved)))
        if os.environ.get("FAILS"):
            raise RuntimeError("as the environment says")


if __name__ == "__main__":
    AgainFlow()
