"""A flow whose checkpoints and models are kept in a store of its own, which its environment has no keys for."""

import json
import os
import subprocess
import sys
from threading import Thread

from metaflow import (
    Checkpoint,
    FlowSpec,
    card,
    checkpoint,
    current,
    load_model,
    model,
    retry,
    step,
    with_artifact_store,
)

from metaflow_artifacts.testing.flows import emit

WITH_CHECKPOINT = """
import os, sys
from metaflow import Checkpoint, load_model
from metaflow_artifacts.testing.flows import emit
with Checkpoint() as cp:
    emit("subprocess lists", [one["key"] for one in cp.list()])
    open(os.path.join(cp.directory, "state"), "w").write("of a subprocess")
    emit("subprocess saves", cp.save()["url"])
print("ENVIRONMENT", dict(os.environ))
"""
WITH_KEY = """
import sys
from metaflow import load_model
from metaflow_artifacts.testing.flows import emit
emit("subprocess loads", open(load_model(sys.argv[1], sys.argv[2]) + "/weights").read())
"""


def config():
    with open(os.environ["STORE_CONFIG"]) as file:
        return json.load(file)


def python(code, *arguments):
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)


def load(reference, path):
    with open(os.path.join(load_model(reference, path), "weights")) as file:
        return file.read()


@with_artifact_store(type="s3", config=config())
class StoreFlow(FlowSpec):
    @card
    @checkpoint
    @model
    @retry(times=1, minutes_between_retries=0)
    @step
    def start(self):
        emit("resumed", current.checkpoint.is_loaded)
        if current.retry_count == 0:
            current.checkpoint.save({"state": b"of the first attempt"})
            raise RuntimeError("retried")
        python(WITH_CHECKPOINT)
        self.saved = current.checkpoint.save({"state": b"of the second attempt"})
        self.late = current.model.save_async({"weights": b"late"}).result()
        self.model = current.model.save({"weights": b"1 2 3"})
        thread = Thread(target=lambda: emit("thread loads", load(self.model["key"], "by_thread")))
        thread.start()
        thread.join()
        command = [sys.executable, "-m", "metaflow_artifacts", "ls"]
        for arguments in ([], ["--root", config()["root"]]):
            done = subprocess.run([*command, *arguments], check=True, stdout=subprocess.PIPE, text=True)
            emit("listed by the command", self.model["key"] in done.stdout)
        self.next(self.loads)

    @model(load=["model", ("saved", "there")])
    @step
    def loads(self):
        with open(os.path.join(current.model.loaded["model"], "weights")) as file:
            emit("model loads", file.read())
        emit("sees", [one["key"] for one in Checkpoint().list(task=self.saved["pathspec"])])
        python(WITH_KEY, self.model["key"], "by_model_subprocess")
        self.next(self.end)

    @step
    def end(self):
        emit("plain step loads", load(self.model["key"], "by_plain_step"))
        python(WITH_KEY, self.model["key"], "by_plain_subprocess")


if __name__ == "__main__":
    StoreFlow()
