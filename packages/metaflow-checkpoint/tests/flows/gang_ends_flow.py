"""A gang of two that fails, then times out, then fails for good, which is caught: its checkpoints stay."""

import signal
import subprocess
import sys
import time

from metaflow import FlowSpec, Run, catch, checkpoint, current, parallel, retry, step, timeout

from metaflow_artifacts.testing.flows import emit

SAVE = """
import sys
from metaflow import Checkpoint
Checkpoint().save("state", metadata={"attempt": int(sys.argv[1])})
"""


class GangEndsFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @catch(var="failure")
    @timeout(seconds=600)
    @retry(times=2, minutes_between_retries=0)
    @checkpoint
    @parallel
    @step
    def train(self):
        node, attempt = current.parallel.node_index, current.retry_count
        loaded = current.checkpoint.info
        emit("begins", [attempt, node, loaded["metadata"]["attempt"] if loaded else None])
        if node == 1:
            with open("state", "w") as file:
                file.write("trained")
            # In a subprocess, as torchrun starts its ranks.
            subprocess.run([sys.executable, "-c", SAVE, str(attempt)], check=True)
            if attempt == 1:
                # Its time is over now, however busy the machine is.
                signal.raise_signal(signal.SIGALRM)
        # Metaflow sets no timeout for node 0, which waits for the others after its code.
        if node == 1 or attempt != 1:
            for _ in range(1000):
                if current.checkpoint.list(attempt=attempt):
                    break
                time.sleep(0.05)
            raise RuntimeError(f"attempt {attempt}")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        from metaflow import Checkpoint

        control = next(iter(Run(current.pathspec.rpartition("/")[0].rpartition("/")[0])["train"].control_tasks()))
        kept = [found for attempt in (2, 1, 0) for found in Checkpoint().list(task=control.pathspec, attempt=attempt)]
        emit("kept", [found["metadata"]["attempt"] for found in kept])
        worker = f"{control.pathspec}_node_1"
        emit("of the worker", [found["pathspec"] == worker for found in Checkpoint().list(task=worker, attempt=0)])


if __name__ == "__main__":
    GangEndsFlow()
