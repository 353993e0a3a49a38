"""The attributes and errors of `current.checkpoint`."""

import json
import os
import pickle

from metaflow import Checkpoint, FlowSpec, checkpoint, current, retry, step

from metaflow_artifacts.errors import ArtifactError
from metaflow_artifacts.testing.flows import emit


def attempt(name, call):
    try:
        call()
    except ArtifactError as error:
        emit("error", [name, type(error).__name__, isinstance(error, ValueError), str(error)])


class ObjectFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint(temp_dir_root="scratch")
    @step
    def start(self):
        cp = current.checkpoint
        if current.retry_count == 0:
            with open(os.path.join(cp.directory, "state"), "w") as file:
                file.write("0")
            emit("saved", cp.save(None, {"loss": 0.5}, True, "best"))
            emit("saved not latest", cp.save(latest=False))
            with open("single file", "w") as file:
                file.write("single")
            emit("saved file", cp.save("single file", storage_format="tar", latest=False))
            emit("as before", cp.save("single file", "named", {"n": 1}, False))
            emit("keywords", cp.save("single file", "named", metadata={}, latest=False))
            raise RuntimeError("once")
        info = cp.info
        emit("info", [info, info.key, info["key"], info.metadata["loss"], info.version_id])
        emit("copied", pickle.loads(pickle.dumps(info)).key == info.key and json.loads(json.dumps(info)) == info)
        emit("directory", [os.path.relpath(cp.directory).startswith("scratch/metaflow_checkpoint_")])
        emit("identifier", cp.task_identifier == info.key.split("/")[6])
        emit("same process", [one["key"] for one in Checkpoint().list()] == [one["key"] for one in cp.list()])
        emit("numbered on", [Checkpoint().save("single file")["version_id"], cp.save()["version_id"]])
        before = cp.directory
        cp.load(cp.list(name="mfchckpt", attempt=0)[0])
        emit("same place", [before == cp.directory, os.listdir(before)])
        cp.refresh_directory()
        emit("refreshed", [before == cp.directory, os.path.exists(before), os.listdir(cp.directory)])
        cp.cleanup()
        emit("made again", os.listdir(cp.directory))
        attempt("no path", lambda: cp.save("nowhere"))
        attempt("name", lambda: cp.save(name="a\nb"))
        attempt("metadata", lambda: cp.save(metadata={1, 2}))
        attempt("twice", lambda: cp.save(None, "a", name="b"))
        attempt("attempt", lambda: cp.list(attempt="first"))
        attempt("negative", lambda: cp.list(attempt=-1))
        attempt("pathspec", lambda: cp.list(task="ObjectFlow/1"))
        attempt("no such task", lambda: cp.list(task="ObjectFlow/1/start/999"))
        attempt("task", lambda: cp.list(task=7))
        attempt("reference", lambda: cp.load({"key": "x"}))
        attempt("absent", lambda: cp.load(info.key[:-1] + "77"))
        attempt("attribute", lambda: getattr(cp.save(), "x", None))
        cp.load(info)
        emit("after errors", os.listdir(cp.directory))
        self.info = info
        self.next(self.end)

    @step
    def end(self):
        attempt("undecorated", lambda: Checkpoint().save("single file"))
        found = Checkpoint().list(task=f"ObjectFlow/{current.run_id}/start/1", attempt=0)
        emit("from the next step", [one["name"] for one in found])
        emit("task of an undecorated step", Checkpoint().list(task=current.pathspec))
        emit("kept", [self.info.key == self.info["key"], self.info.metadata["loss"], type(self.info.to_dict()) is dict])


if __name__ == "__main__":
    ObjectFlow()
