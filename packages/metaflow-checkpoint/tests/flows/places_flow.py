"""Nested foreaches over dicts, floats and long strings. Each task fails once, and resumes from its own checkpoint."""

import json
import os

from metaflow import FlowSpec, checkpoint, current, retry, step

from metaflow_artifacts.testing.flows import emit

POLICY = os.environ.get("POLICY", "fresh")


class PlacesFlow(FlowSpec):
    @step
    def start(self):
        long = "x" * 500
        self.configurations = [{"lr": 0.1, "name": long + "a"}, {"name": long + "b", "lr": 0.1}]
        if os.environ.get("REORDERED"):
            self.configurations = [dict(reversed(one.items())) for one in reversed(self.configurations)]
        self.next(self.outer, foreach="configurations")

    @step
    def outer(self):
        self.configuration = self.input
        self.rates = [0.1 + 0.2, 0.3]
        self.next(self.inner, foreach="rates")

    @retry(times=1, minutes_between_retries=0)
    @checkpoint(load_policy=POLICY)
    @step
    def inner(self):
        mine = [self.configuration["name"][-1], repr(self.input)]
        path = os.path.join(current.checkpoint.directory, "mine")
        if current.checkpoint.is_loaded:
            with open(path) as file:
                emit("found", [mine, json.load(file), current.retry_count, current.checkpoint.info.pathspec])
        else:
            emit("nothing", [mine, current.retry_count])
        with open(path, "w") as file:
            json.dump(mine, file)
        current.checkpoint.save()
        emit("listed", [mine, len(current.checkpoint.list()), current.checkpoint.task_identifier])
        if current.retry_count == 0 and not os.environ.get("STEADY"):
            raise RuntimeError("once")
        self.next(self.inner_join)

    @step
    def inner_join(self, inputs):
        self.next(self.outer_join)

    @checkpoint(load_policy=POLICY)
    @step
    def outer_join(self, inputs):
        current.checkpoint.save()
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    PlacesFlow()
