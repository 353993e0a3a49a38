"""Loads what metaflow-checkpoint has stored, in every way that a flow has. TOLD is a JSON file that says what."""

import hashlib
import json
import os
from pathlib import Path

from metaflow import Checkpoint, FlowSpec, checkpoint, current, delete_model, load_model, model, step

from metaflow_artifacts.testing.flows import emit

TOLD = json.loads(Path(os.environ["TOLD"]).read_text())


def digests(directory):
    files = [path for path in Path(directory).rglob("*") if path.is_file()]
    return {path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def reference(kind):
    return TOLD[kind]["reference"]


def check(what, kind, directory, only=None):
    """Tell whether the directory holds what it should."""
    expected = TOLD[kind]["files"]
    if only is not None:
        expected = {path: digest for path, digest in expected.items() if path.endswith(only)}
    emit(what, digests(directory) == expected)


class LoadFlow(FlowSpec):
    by_key = reference("model: slash in the label")["key"]

    @step
    def start(self):
        self.by_reference = reference("model: directory, tar")
        self.a_part = reference("model: directory, files")
        self.a_snapshot = reference("snapshot: flow")
        self.next(self.work)

    @model(load=["by_key", ("by_reference", "./there"), ("a_part", None, "*weights.bin"), "a_snapshot"])
    @checkpoint
    @step
    def work(self):
        check("@model by key", "model: slash in the label", current.model.loaded["by_key"])
        check("@model by reference", "model: directory, tar", "./there")
        check("@model a part", "model: directory, files", current.model.loaded["a_part"], only="weights.bin")
        check("@model a snapshot", "snapshot: flow", current.model.loaded["a_snapshot"])
        check("current.model.load", "model: links, tar", current.model.load(reference("model: links, tar")))
        current.checkpoint.load(reference("checkpoint: attempt 1, tar"))
        check("current.checkpoint.load", "checkpoint: attempt 1, tar", current.checkpoint.directory)
        for kind in ("model: spaces in the label", "checkpoint: subprocess", "snapshot: global"):
            check("load_model", kind, load_model(reference(kind)["key"], f"loaded {kind}"))
        listed = Checkpoint().list(task=TOLD["task"])
        emit("list", sorted(one["key"] for one in listed))
        with Checkpoint() as cp:
            cp.load(listed[0])
            emit("list and load", len(digests(cp.directory)))
        self.made = current.model.save("./there", label="ours")
        emit("parents", self.made["parents"])
        self.next(self.end)

    @step
    def end(self):
        for kind in ("model: directory, tar", "checkpoint: file"):
            delete_model(reference(kind))
            try:
                load_model(reference(kind), "gone")
            except Exception as error:
                emit("deleted", type(error).__name__)


if __name__ == "__main__":
    LoadFlow()
