"""Counts to ten, saves every second number, and fails twice on the way: a retry resumes from the last checkpoint."""

import os

from metaflow import FlowSpec, checkpoint, current, retry, step

from metaflow_artifacts.testing.flows import emit

FAILS_AT = {0: 5, 1: 7}


class CheckpointCounterFlow(FlowSpec):
    @step
    def start(self):
        self.counter = 0
        self.next(self.flaky_count)

    @checkpoint
    @retry(times=2, minutes_between_retries=0)
    @step
    def flaky_count(self):
        path = os.path.join(current.checkpoint.directory, "counter")
        if current.checkpoint.is_loaded:
            with open(path) as file:
                self.counter = int(file.read())
            emit("info", current.checkpoint.info)
        emit("begins", self.counter)
        while self.counter < 10:
            self.counter += 1
            if self.counter % 2 == 0:
                with open(path, "w") as file:
                    file.write(str(self.counter))
                self.latest_checkpoint = current.checkpoint.save(metadata={"counter": self.counter})
            if self.counter == FAILS_AT.get(current.retry_count):
                raise Exception("Bad luck! Try again!")
        emit("listed", [found["metadata"]["counter"] for found in current.checkpoint.list()])
        self.next(self.end)

    @step
    def end(self):
        emit("final", self.counter)


if __name__ == "__main__":
    CheckpointCounterFlow()
