"""What a step keeps of @model as artifacts, and hands to worker processes."""

import copy
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from metaflow import FlowSpec, current, model, step

from metaflow_artifacts.testing.flows import emit


class KeptFlow(FlowSpec):
    @model(temp_dir_root="scratch")
    @step
    def start(self):
        with open("content", "w") as file:
            file.write("content")
        self.saved = current.model.save("content")
        self.path = current.model.load(self.saved)
        for method in ("fork", "spawn", "forkserver"):
            with ProcessPoolExecutor(1, get_context(method)) as pool:
                target = pool.submit(current.model.load, self.saved, f"{method}/loaded").result()
                temporary = pool.submit(current.model.load, self.saved["key"]).result()
                there = pool.submit(os.listdir, temporary).result()
                saved = pool.submit(current.model.save, "content", method).result()
            emit("worker", [os.listdir(target), there, os.path.exists(temporary), saved["label"]])
            emit("same task", saved["pathspec"] == self.saved["pathspec"])
            emit("parents", saved["parents"] == [self.saved["key"]])
        emit("own", [os.listdir(self.path), list(copy.deepcopy(current.model).loaded) == [self.saved["key"]]])
        self.loaded = current.model.loaded
        self.info = current.model.loaded.info
        self.model = current.model
        self.next(self.end)

    @step
    def end(self):
        emit("kept", [type(self.info) is dict, self.info == {self.saved["key"]: self.saved}])
        emit("loaded", [dict(self.loaded) == {self.saved["key"]: self.path}, self.loaded.info == self.info])
        emit("again", os.listdir(self.model.load(self.saved, "again")))


if __name__ == "__main__":
    KeptFlow()
