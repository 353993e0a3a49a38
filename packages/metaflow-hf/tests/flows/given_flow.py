"""A flow without @huggingface_hub, which `--with` adds."""

import os

from metaflow import FlowSpec, current, step

from metaflow_artifacts.testing.flows import emit


class GivenFlow(FlowSpec):
    @step
    def start(self):
        hub = current.huggingface_hub
        emit("listed", {repo: sorted(os.listdir(path)) for repo, path in hub.loaded.items()})
        emit("scope", hub.cache_scope)
        self.info = hub.loaded.info
        self.next(self.end)

    @step
    def end(self):
        emit("kept", [type(self.info) is dict, self.info["org/name"]["hf_kwargs"]])


if __name__ == "__main__":
    GivenFlow()
