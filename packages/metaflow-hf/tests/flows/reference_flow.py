"""Stores a repo in one step, and loads it in the next."""

import os

from metaflow import FlowSpec, Parameter, current, huggingface_hub, step

from metaflow_artifacts._mf.stores import default_store
from metaflow_artifacts.testing.flows import emit

SCOPE = os.environ.get("SCOPE", "checkpoint")


class ReferenceFlow(FlowSpec):
    revision = Parameter("revision", default="main")
    force = Parameter("force", type=bool, default=False)

    @huggingface_hub(cache_scope=SCOPE)
    @step
    def start(self):
        self.reference = current.huggingface_hub.snapshot_download(
            repo_id="org/name", revision=self.revision, force_download=self.force
        )
        emit("plain", type(self.reference) is dict)
        emit("reference", self.reference)
        self.next(self.end)

    @step
    def end(self):
        path = default_store().load(self.reference, f"{current.run_id}")
        files = {}
        for folder, _, names in os.walk(path):
            for name in names:
                full = os.path.join(folder, name)
                with open(full, "rb") as file:
                    files[os.path.relpath(full, path)] = len(file.read())
        emit("files", files)


if __name__ == "__main__":
    ReferenceFlow()
