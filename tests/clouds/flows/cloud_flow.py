"""Saves a model in one step and loads it in the next."""

import json
import os

from metaflow import FlowSpec, current, model, step

from metaflow_artifacts.testing.flows import emit


class CloudFlow(FlowSpec):
    @model
    @step
    def start(self):
        os.makedirs("model", exist_ok=True)
        with open("model/name.txt", "w") as file:
            file.write("saved in the cloud")
        with open("model/weights.bin", "wb") as file:
            file.write(os.urandom(3 << 20))
        self.kept = current.model.save("model", metadata={"seed": 7})
        emit("saved", self.kept)
        emit("as json", json.dumps(self.kept))
        self.next(self.end)

    @model(load="kept")
    @step
    def end(self):
        path = current.model.loaded["kept"]
        with open(os.path.join(path, "name.txt")) as file:
            emit("loaded", [file.read(), os.path.getsize(os.path.join(path, "weights.bin"))])


if __name__ == "__main__":
    CloudFlow()
