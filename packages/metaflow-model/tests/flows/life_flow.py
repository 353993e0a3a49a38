"""One model through a retry, a foreach and joins; loaded copies, lineage, and the mapping of what was
loaded."""

import os
import pickle
from collections.abc import Mapping

from metaflow import FlowSpec, current, model, retry, step

from metaflow_artifacts.testing.flows import emit


def write(path, content):
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, "content"), "w") as file:
        file.write(content)
    return path


def read(path):
    with open(os.path.join(path, "content")) as file:
        return file.read()


class LifeFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @model(temp_dir_root="scratch")
    @step
    def start(self):
        source = write("source", f"base {current.retry_count}")
        self.base = current.model.save(source, metadata={"attempt": current.retry_count})
        write("source", "changed after the save")
        path = current.model.load(self.base)
        emit("scratch", os.path.relpath(path))
        emit("content", read(path))
        if current.retry_count == 0:
            raise RuntimeError("once")
        emit("base", self.base)
        emit("plain", type(self.base) is dict and pickle.loads(pickle.dumps(self.base)) == self.base)
        self.items = ["a b", "c"]
        self.next(self.branch, foreach="items")

    @model(load=[("base", "in_branches")])
    @step
    def branch(self):
        emit("scratch gone", not os.path.exists("scratch") or not os.listdir("scratch"))
        source = write(f"source_{self.index}", f"{read(current.model.loaded['base'])} {self.input}")
        self.tuned = current.model.save(source, label=self.input)
        emit("tuned", self.tuned)
        self.next(self.join)

    @model(load="base")
    @step
    def join(self, inputs):
        loaded = current.model.loaded
        emit("mapping", [isinstance(loaded, Mapping), list(loaded), len(loaded), "base" in loaded, loaded.get("x")])
        for branch in inputs:
            path = current.model.load(branch.tuned)
            emit("joined", [branch.tuned["label"], read(path), loaded[branch.tuned["key"]] == path])
        emit("info", dict(loaded.info["base"]))
        # The copy is the step's own: what is done to it changes nothing that anybody loads later.
        write(loaded["base"], "vandalised")
        os.chmod(loaded["base"], 0o500)
        self.merged = current.model.save(loaded["base"])
        emit("again", read(current.model.load(inputs[0].base)))
        emit("merged", self.merged)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    LifeFlow()
