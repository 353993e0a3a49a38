"""The specification's flow that takes a reference from another flow's run through the Client API."""

import os

from metaflow import Flow, FlowSpec, current, model, step


class InferenceFlow(FlowSpec):
    @step
    def start(self):
        self.upstream_model = Flow("ModelSavingFlow").latest_successful_run.data.directory_model
        self.next(self.load_model)

    @model(load=["upstream_model"])
    @step
    def load_model(self):
        path = current.model.loaded["upstream_model"]
        print("Loaded via decorator:", sorted(os.listdir(path)))
        path = current.model.load(self.upstream_model, path="./manual")
        print("Loaded manually to:", path, sorted(os.listdir(path)))
        # What was loaded here is a parent of what is saved from now on.
        self.tuned = current.model.save(path, label="tuned")
        self.next(self.end)

    @model
    @step
    def end(self):
        self.untouched = current.model.save("./manual", label="untouched")
        print("PARENTS", self.tuned["parents"], self.untouched["parents"])


if __name__ == "__main__":
    InferenceFlow()
