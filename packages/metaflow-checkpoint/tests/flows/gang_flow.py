"""A gang that trains in lockstep: only node 0 saves, and a node that is killed takes the others with it.

What a collective of torch does is done with files: nobody goes on before all have come, and all fail if one is dead.
"""

import json
import os
import signal
import sys
import time

from metaflow import FlowSpec, checkpoint, current, parallel, retry, step

NODES = int(os.environ.get("NODES", "3"))
EPOCHS = 5
DEATHS = json.loads(os.environ.get("DEATHS", "{}"))
"""For an attempt: the node that is killed, and in which epoch."""


if os.environ.get("BARE"):
    # The command line adds the decorator.
    def decorated(function):
        return function
else:
    decorated = checkpoint(load_policy=os.environ.get("POLICY", "fresh"))


def record(*values):
    with open("record", "a") as file:
        file.write(json.dumps(values) + "\n")


class Collective:
    """The files by which the nodes of one attempt wait for each other."""

    def __init__(self):
        self.directory = f"collective {current.run_id} {current.retry_count}"
        self.node = current.parallel.node_index
        os.makedirs(self.directory, exist_ok=True)

    def touch(self, name):
        with open(os.path.join(self.directory, name), "w"):
            pass

    def wait_for_all(self, epoch):
        self.touch(f"{epoch}.{self.node}")
        deadline = time.monotonic() + 250
        while len(names := os.listdir(self.directory)) and sum(n.startswith(f"{epoch}.") for n in names) < NODES:
            if "dead" in names or time.monotonic() > deadline:
                sys.exit("a node is dead")
            time.sleep(0.01)

    def die(self):
        self.touch("dead")
        os.kill(os.getpid(), signal.SIGKILL)


class GangFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=NODES)

    @retry(times=int(os.environ.get("RETRIES", "3")), minutes_between_retries=0)
    @decorated
    @parallel
    @step
    def train(self):
        nodes = Collective()
        path = os.path.join(current.checkpoint.directory, "epoch")
        epoch = 0
        if current.checkpoint.is_loaded:
            with open(path) as file:
                epoch = int(file.read())
        key = current.checkpoint.info["key"] if current.checkpoint.is_loaded else None
        record("begins", current.retry_count, nodes.node, epoch, key)
        while epoch < EPOCHS:
            epoch += 1
            if nodes.node == 0:
                # Before the others have come: a node that starts late must not take this one.
                with open(path, "w") as file:
                    file.write(str(epoch))
                current.checkpoint.save()
            nodes.wait_for_all(epoch)
            if DEATHS.get(str(current.retry_count)) == [nodes.node, epoch]:
                nodes.die()
        record("listed", current.retry_count, nodes.node, [one["key"] for one in current.checkpoint.list()])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    GangFlow()
