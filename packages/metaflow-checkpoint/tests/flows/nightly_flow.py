"""A training that a run cannot finish, since each of its attempts is killed; `resume` goes on where it was."""

import os

from metaflow import Flow, FlowSpec, checkpoint, current, namespace, retry, step
from training import die, read, trained, write

from metaflow_artifacts.testing.flows import emit

EPOCHS = 7
DIES_AFTER = {0: 2, 1: 5} if os.environ.get("PREEMPTED") else {}


class NightlyFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.train)

    @retry(times=1, minutes_between_retries=0)
    @checkpoint(load_policy="eager")
    @step
    def train(self):
        path = os.path.join(current.checkpoint.directory, "weights")
        first, weights = 0, b"nightly"
        if current.checkpoint.is_loaded:
            first, weights = current.checkpoint.info.metadata["epochs"], read(path)
            emit("resumes", [first, current.checkpoint.info.attempt, current.checkpoint.info.pathspec])
        for epoch in range(first, EPOCHS):
            weights = trained(weights, epoch)
            write(path, weights)
            self.latest = current.checkpoint.save(metadata={"epochs": epoch + 1})
            if DIES_AFTER.get(current.retry_count) == epoch + 1:
                # What comes after the last save is lost.
                write(path, b"half")
                die()
        self.where = current.pathspec
        self.next(self.end)

    @checkpoint(load_policy=None)
    @step
    def end(self):
        # The task of the run before never ended. What it saved can be listed and loaded.
        namespace(None)
        [killed] = [run for run in Flow("NightlyFlow").runs() if run.id != current.run_id]
        found = current.checkpoint.list(task=killed["train"].task)
        emit("of the killed task", [one["metadata"]["epochs"] for one in found])
        current.checkpoint.load(found[0])
        write("weights of the killed task", read(os.path.join(current.checkpoint.directory, "weights")))
        current.checkpoint.load(self.latest, "finished")


if __name__ == "__main__":
    NightlyFlow()
