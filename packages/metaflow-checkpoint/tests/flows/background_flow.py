"""Saves in the background, in a task and in its subprocess; steps whose saves or whose code fail."""

import os
import shutil
import subprocess
import sys

from metaflow import FlowSpec, catch, checkpoint, current, retry, step

from metaflow_artifacts.plugin import default_store
from metaflow_artifacts.testing.flows import emit

# Large enough for the process that stores.
BIG = 5 << 20
SUBPROCESS = """
import sys
from metaflow import Checkpoint
print(Checkpoint().save_async({"a": b"subprocess"}, metadata={"from": "subprocess"}).done() in (True, False))
"""


def write(path, byte):
    with open(path, "r+b" if os.path.exists(path) else "wb") as file:
        file.write(byte * BIG)


def first_byte(path):
    with open(path, "rb") as file:
        return file.read(1).decode()


class BackgroundFlow(FlowSpec):
    @checkpoint
    @step
    def start(self):
        path = os.path.join(current.checkpoint.directory, "weights")
        self.saves = []
        for number in range(4):
            write(path, b"%d" % number)
            self.saves.append(current.checkpoint.save_async(metadata={"number": number}, name="epoch"))
        write(path, b"x")
        self.plain = current.checkpoint.save(name="plain")
        emit("done before a plain save", [one.done() for one in self.saves])
        references = current.checkpoint.wait()
        emit("numbers", [one["version_id"] for one in references] + [self.plain["version_id"]])
        emit("subprocess", subprocess.check_output([sys.executable, "-c", SUBPROCESS], text=True).strip())
        emit("listed", [one["metadata"].get("from", one["name"]) for one in current.checkpoint.list()])
        self.consumed = current.checkpoint.save_async(consume=True)
        emit("consumed", [os.path.isdir(current.checkpoint.directory), os.listdir(current.checkpoint.directory)])
        self.next(self.load)

    @checkpoint
    @step
    def load(self):
        emit("kept", [type(one).__name__ for one in [*self.saves, self.consumed]])
        loads = [current.checkpoint.load(one, one["key"][-1]) for one in [*self.saves, self.plain, self.consumed]]
        emit("loaded", [first_byte(os.path.join(path, "weights")) for path in loads])
        self.next(self.code_fails)

    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def code_fails(self):
        if current.retry_count:
            emit("resumes", [current.checkpoint.info.metadata["number"], len(current.checkpoint.list())])
        else:
            for number in range(3):
                current.checkpoint.save_async({"a": bytes(BIG), "b": b"%d" % number}, metadata={"number": number})
            raise ValueError("the code fails")
        self.next(self.save_fails)

    @catch(var="failure")
    @checkpoint
    @step
    def save_fails(self):
        # The first error is seen by the code, and the second one by nobody.
        chunks = os.path.join(default_store().root, "mf.artifacts")
        shutil.move(chunks, "aside")
        write(chunks, b"x")
        try:
            current.checkpoint.save_async({"a": os.urandom(BIG)}).result()
        except Exception as error:
            emit("seen", type(error).__name__)
        self.kept = current.checkpoint.save_async({"a": os.urandom(BIG)})
        self.next(self.subprocess_fails)

    @catch(var="failure_elsewhere")
    @checkpoint
    @step
    def subprocess_fails(self):
        code = "from metaflow import Checkpoint; Checkpoint().save_async({'a': bytes(5_000_000)})"
        subprocess.run([sys.executable, "-c", code], check=True)
        self.next(self.end)

    @step
    def end(self):
        os.remove(os.path.join(default_store().root, "mf.artifacts"))
        shutil.move("aside", os.path.join(default_store().root, "mf.artifacts"))
        emit("failure", str(self.failure.exception))
        emit("failure elsewhere", str(self.failure_elsewhere.exception))
        with open("end", "w"):
            pass


if __name__ == "__main__":
    BackgroundFlow()
