"""A retry overwrites what it loaded, and saves that. No earlier checkpoint changes."""

import hashlib
import os
import shutil

from metaflow import FlowSpec, checkpoint, current, retry, step

from metaflow_artifacts.testing.flows import emit


def content(directory):
    found = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, directory)] = hashlib.sha256(file.read()).hexdigest()
    return found


class UnchangedFlow(FlowSpec):
    @retry(times=2, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        directory = current.checkpoint.directory
        emit("loaded", content(directory))
        if current.retry_count == 0:
            # One file is stored in the manifest, the other one in several chunks.
            self.save({"small": b"small"})
            os.mkdir(os.path.join(directory, "sub"))
            self.save({"sub/big": os.urandom(40 << 20), "sub/many": os.urandom(100_000)})
            raise RuntimeError("once more")
        if current.retry_count == 1:
            with open(os.path.join(directory, "sub", "big"), "r+b") as file:
                file.write(b"in place")
                file.truncate(30 << 20)
            with open(os.path.join(directory, "sub", "many"), "ab") as file:
                file.write(b"more")
            os.unlink(os.path.join(directory, "small"))
            self.save({"other": b"x"})
            raise RuntimeError("once more")
        shutil.rmtree(directory)
        os.mkdir(directory)
        self.save({"other": b"y"})
        for reference in current.checkpoint.list():
            emit("later", [reference["key"], content(current.checkpoint.load(reference))])
        self.next(self.end)

    def save(self, files):
        directory = current.checkpoint.directory
        for name, data in files.items():
            with open(os.path.join(directory, name), "wb") as file:
                file.write(data)
        emit("saved", [current.checkpoint.save()["key"], content(directory)])

    @step
    def end(self):
        pass


if __name__ == "__main__":
    UnchangedFlow()
