"""Needs metaflow-artifacts-model alone: loads what another package saved as a checkpoint, and saves a model."""

import os

from metaflow import Flow, FlowSpec, Parameter, current, model, step


class ExchangeModelFlow(FlowSpec):
    checkpoint_key = Parameter("checkpoint-key")

    @step
    def start(self):
        self.reference = Flow("ExchangeCheckpointFlow").latest_run.data.reference
        self.next(self.use)

    @model(load=["checkpoint_key", "reference"])
    @step
    def use(self):
        for name, path in current.model.loaded.items():
            with open(os.path.join(path, "weights")) as file:
                print("model loaded", name, file.read(), current.model.loaded.info[name]["metadata"])
        with open("weights", "w") as file:
            file.write("of a model")
        self.saved = current.model.save("weights")
        print("model parents", self.saved["parents"])
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ExchangeModelFlow()
