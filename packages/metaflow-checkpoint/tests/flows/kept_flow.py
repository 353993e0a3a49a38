"""What a retried step keeps of @checkpoint as artifacts, and hands to worker processes."""

import copy
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from metaflow import Checkpoint, FlowSpec, checkpoint, current, retry, step

from metaflow_artifacts.testing.flows import emit


class KeptFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        with open("content", "w") as file:
            file.write("content")
        if current.retry_count == 0:
            current.checkpoint.save("content", "best", metadata={"epoch": 3})
            raise RuntimeError("once")
        # Its task is the same in a worker that is forked from a server, which was started in this task.
        for method in os.environ["METHODS"].split():
            with ProcessPoolExecutor(1, get_context(method)) as pool:
                target = pool.submit(current.checkpoint.load, current.checkpoint.info, f"{method}/loaded").result()
                saved = [
                    pool.submit(one.save, "content", method).result() for one in (current.checkpoint, Checkpoint())
                ]
                listed = pool.submit(Checkpoint().list, method).result()
            emit("worker", [os.listdir(target), listed == saved[::-1], [one["attempt"] for one in saved]])
            emit("parents", {key for one in saved for key in one["parents"]} == {current.checkpoint.info.key})
        emit("directory", os.listdir(copy.deepcopy(current.checkpoint).directory))
        self.info = current.checkpoint.info
        self.checkpoint = current.checkpoint
        self.newest = current.checkpoint.list()[0]
        self.next(self.end)

    @step
    def end(self):
        emit("info", [self.info.key == self.info["key"], self.info.metadata, self.info.name])
        emit("again", [os.listdir(self.checkpoint.load(self.info, "again")), self.checkpoint.list()[0] == self.newest])
        emit("undecorated", Checkpoint().list(task=current.pathspec))


if __name__ == "__main__":
    KeptFlow()
