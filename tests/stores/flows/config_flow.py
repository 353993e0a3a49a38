"""A flow whose config is what the environment says."""

import os

from metaflow import FlowSpec, model, step, with_artifact_store

CONFIGS = {
    "key": {"root": "s3://bucket/x", "rol_arn": "x"},
    "params": {"root": "s3://bucket/x", "client_params": {"endpoint": "x"}},
    "function": lambda: {"root": os.environ["NO_SUCH_VARIABLE"]},
}


@with_artifact_store(type="s3", config=CONFIGS[os.environ["CONFIG"]])
class ConfigFlow(FlowSpec):
    @model
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ConfigFlow()
