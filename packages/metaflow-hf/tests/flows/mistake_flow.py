"""Wrong arguments of the decorator, from an environment variable."""

import json
import os

from metaflow import FlowSpec, huggingface_hub, step

ARGUMENTS = json.loads(os.environ["ARGUMENTS"])


class MistakeFlow(FlowSpec):
    @huggingface_hub(**ARGUMENTS)
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    MistakeFlow()
