"""The training process of the first attempt outlives its task, and still saves while the second attempt runs."""

import os
import subprocess
import sys
import time

from metaflow import FlowSpec, checkpoint, current, retry, step

from metaflow_artifacts.testing.flows import emit

TRAINER = """
import os, time
from metaflow import Checkpoint
number = 0
while not os.path.exists("enough") and number < 2000:
    time.sleep(0.01)
    with open("zombie", "w") as file:
        file.write(f"zombie {number}")
    Checkpoint().save("zombie")
    with open("alive", "w") as file:
        file.write(str(number))
    number += 1
"""


def alive():
    try:
        with open("alive") as file:
            return int(file.read() or 0)
    except FileNotFoundError:
        return 0


def wait_until(number):
    while alive() < number:
        time.sleep(0.01)


class ZombieFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        if current.retry_count == 0:
            subprocess.Popen(
                [sys.executable, "-c", TRAINER],
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            wait_until(2)
            raise RuntimeError("the task ends, its child does not")
        emit("loaded", [current.checkpoint.info.attempt, os.listdir(current.checkpoint.directory)])
        for number in range(5):
            wait_until(alive() + 1)
            with open("state", "w") as file:
                file.write(f"successor {number}")
            current.checkpoint.save("state")
        with open("enough", "w"):
            pass
        mine = current.checkpoint.list(attempt=1)
        emit("mine", [one["version_id"] for one in mine])
        for one in mine:
            with open(os.path.join(current.checkpoint.load(one), "state")) as file:
                emit("content", file.read())
        both = current.checkpoint.list()
        emit("in order", [one["attempt"] for one in both])
        emit("interleaved", [one["attempt"] for one in sorted(both, key=lambda one: one["created_on"])])
        for one in both:
            if one["attempt"] == 0:
                with open(os.path.join(current.checkpoint.load(one), "zombie")) as file:
                    emit("of the zombie", [one["version_id"], file.read()])
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ZombieFlow()
