"""Two trainings in a step, as callbacks save and resume them; the task is killed in the second one."""

import os
import signal
import subprocess
import sys

from metaflow import FlowSpec, checkpoint, current, retry, step

from metaflow_artifacts.errors import ArtifactError
from metaflow_artifacts.testing.flows import emit
from metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.training import TrainingCheckpoints

SUBPROCESS = """
import sys
from metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.training import TrainingCheckpoints
for name in sys.argv[1:]:
    checkpoints = TrainingCheckpoints(name, "Callback")
    directory = checkpoints.begin("epoch")
    print(name, open(directory + "/epoch").read() if directory else "nothing")
"""


def train(name, epochs, dies_after=None):
    checkpoints = TrainingCheckpoints(name, "Callback")
    directory = checkpoints.begin("epoch")
    first = 0
    if directory is not None:
        with open(os.path.join(directory, "epoch")) as file:
            first = int(file.read())
    emit(name, first)
    for epoch in range(first + 1, epochs + 1):
        path = os.path.join(checkpoints.scratch, "epoch")
        with open(path, "w") as file:
            file.write(str(epoch))
        checkpoints.save({"epoch": path}, {"epoch": epoch}, consume=True)
        assert not os.path.exists(path)
        if epoch == dies_after:
            current.checkpoint.wait()
            os.kill(os.getpid(), signal.SIGKILL)
    current.checkpoint.wait()


class TrainingsFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        train("first", 3)
        current.checkpoint.save({"notes": b"of the user"})
        train("second", 5, dies_after=2 if current.retry_count == 0 else None)
        try:
            train("second", 5)
        except ArtifactError as error:
            emit("error", [type(error).__name__, str(error)])
        try:
            TrainingCheckpoints("mfchckpt", "Callback").begin("epoch")
        except ArtifactError as error:
            emit("other", [type(error).__name__, str(error)])
        done = subprocess.run([sys.executable, "-c", SUBPROCESS, "first", "second", "third"], stdout=-1, text=True)
        emit("subprocess", done.stdout.split())
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    TrainingsFlow()
