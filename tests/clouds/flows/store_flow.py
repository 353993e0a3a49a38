"""Keeps its model in a store in the cloud, and its artifacts in Metaflow's datastore."""

import os
import subprocess
import sys

from metaflow import FlowSpec, current, model, step, with_artifact_store

from metaflow_artifacts.testing.flows import emit

IN_A_SUBPROCESS = """
import sys
from metaflow import load_model
load_model(sys.argv[1], "by_subprocess")
"""


@with_artifact_store(type=os.environ["STORE_TYPE"], config=lambda: {"root": os.environ["STORE_ROOT"]})
class StoreFlow(FlowSpec):
    @model
    @step
    def start(self):
        self.kept = current.model.save({"name.txt": b"saved in the cloud"})
        emit("saved", self.kept)
        subprocess.run([sys.executable, "-c", IN_A_SUBPROCESS, self.kept["key"]], check=True)
        self.next(self.end)

    @model(load="kept")
    @step
    def end(self):
        with open(os.path.join(current.model.loaded["kept"], "name.txt")) as file:
            emit("loaded", file.read())


if __name__ == "__main__":
    StoreFlow()
