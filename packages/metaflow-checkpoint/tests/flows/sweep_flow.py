"""A training in a subprocess, then one for each of two rates: each process is killed half-way, and a retry goes on."""

import os
import subprocess
import sys

from metaflow import Checkpoint, FlowSpec, Task, checkpoint, current, retry, step
from training import die, read, trained, write

from metaflow_artifacts.testing.flows import emit

EPOCHS = 6


class SweepFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint(temp_dir_root="scratch")
    @step
    def start(self):
        resume_from = current.checkpoint.directory if current.checkpoint.is_loaded else ""
        emit("trainer resumes", current.checkpoint.info and current.checkpoint.info.metadata["epoch"])
        program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "training.py")
        output = f"output of attempt {current.retry_count}"
        dies_after = 3 if current.retry_count == 0 else 0
        subprocess.run([sys.executable, program, output, resume_from, str(EPOCHS), str(dies_after)], check=True)
        self.trainer = current.checkpoint.list(name="trainer")[0]
        emit("trainer saved", [one["metadata"]["epoch"] for one in current.checkpoint.list()])
        self.rates = ["0.1", "0.2"]
        self.next(self.train, foreach="rates")

    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def train(self):
        self.rate, self.where = self.input, current.pathspec
        state = os.path.join(current.checkpoint.directory, "weights")
        first, weights = 0, self.rate.encode()
        if current.checkpoint.is_loaded:
            loaded = current.checkpoint.info
            first, weights = loaded.metadata["epochs"], read(state)
            emit("resumes", [self.rate, first, loaded.attempt, loaded.name, loaded.pathspec == current.pathspec])
        for epoch in range(first, EPOCHS):
            weights = trained(weights, epoch)
            write(state, weights)
            if epoch % 2 == 1:
                self.latest = current.checkpoint.save(metadata={"epochs": epoch + 1})
            else:
                # The best so far is kept, but no retry goes on from it.
                # The tasks of both rates run in one directory.
                os.makedirs(f"trained at {self.rate}", exist_ok=True)
                best = os.path.join(f"trained at {self.rate}", "best weights")
                write(best, weights)
                current.checkpoint.save(best, "best", {"loss": 1 / (epoch + 1)}, False)
            if current.retry_count == 0 and epoch == 4:
                die()
        emit("of this attempt", [self.rate, len(current.checkpoint.list(attempt=1)), len(current.checkpoint.list())])
        self.next(self.choose)

    @checkpoint(load_policy="none")
    @step
    def choose(self, inputs):
        self.merge_artifacts(inputs, include=["trainer"])
        emit("nothing is loaded", [current.checkpoint.is_loaded, os.listdir(current.checkpoint.directory)])
        self.chosen = {}
        for branch in inputs:
            [best] = current.checkpoint.list(name="best", task=branch.where)
            before = current.checkpoint.list(name="best", task=Task(branch.where), attempt=0)
            emit("best", [branch.rate, best["metadata"]["loss"], [one["metadata"]["loss"] for one in before]])
            current.checkpoint.load(best["key"], path=f"best of {branch.rate}")
            current.checkpoint.load(branch.latest)
            write(f"latest of {branch.rate}", read(os.path.join(current.checkpoint.directory, "weights")))
            self.chosen[branch.rate] = best
        self.next(self.end)

    @step
    def end(self):
        with Checkpoint() as cp:
            cp.load(self.trainer)
            write("latest of trainer", read(os.path.join(cp.directory, "weights")))
            emit("trainer", sorted(os.listdir(cp.directory)))


if __name__ == "__main__":
    SweepFlow()
