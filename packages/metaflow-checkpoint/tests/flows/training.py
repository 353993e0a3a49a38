"""A training whose weights depend on every epoch that came before, so that one left out, or done twice, is seen."""

import hashlib
import os
import shutil
import signal
import sys

from metaflow import Checkpoint, current


def trained(weights, epoch):
    return hashlib.sha256(weights + epoch.to_bytes(2, "big")).digest() * 2000


def read(path):
    with open(path, "rb") as file:
        return file.read()


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


def die(process=None):
    """End a process as a preemption does, without a last word."""
    os.kill(process or os.getpid(), signal.SIGKILL)


class Callback:
    """What trainers are given to call: it saves with the object that there is, in the step or in a subprocess of it."""

    def __init__(self):
        self.checkpoint = current.checkpoint if current.is_running_flow else Checkpoint(init_dir=True)

    def on_save(self, directory, epoch):
        return self.checkpoint.save(directory, metadata={"epoch": epoch}, name="trainer", latest=True)


def train(output, resume_from, epochs, dies_after):
    """Train in `output` as a library does: a directory for each checkpoint, of which only the last one is kept."""
    callback = Callback()
    first, weights = 0, b"trainer"
    if resume_from:
        first, weights = int(read(os.path.join(resume_from, "epochs"))), read(os.path.join(resume_from, "weights"))
    for epoch in range(first, epochs):
        weights = trained(weights, epoch)
        directory = os.path.join(output, f"checkpoint-{epoch + 1}")
        os.makedirs(directory)
        write(os.path.join(directory, "weights"), weights)
        write(os.path.join(directory, "epochs"), str(epoch + 1).encode())
        callback.on_save(directory, epoch)
        shutil.rmtree(os.path.join(output, f"checkpoint-{epoch}"), ignore_errors=True)
        if epoch + 1 == dies_after:
            die(os.getppid())
            die()


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
