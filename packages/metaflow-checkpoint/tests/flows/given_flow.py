"""A flow without @checkpoint, which `--with` adds; its first step is retried."""

import os

from metaflow import FlowSpec, current, retry, step

from metaflow_artifacts.testing.flows import emit


class GivenFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @step
    def start(self):
        if current.retry_count == 0:
            current.checkpoint.save()
            raise RuntimeError("once")
        directory = os.path.relpath(current.checkpoint.directory)
        emit("given", [current.checkpoint.is_loaded, directory.split("_")[0], len(current.checkpoint.list())])
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    GivenFlow()
