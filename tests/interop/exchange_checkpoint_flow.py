"""Needs metaflow-artifacts-checkpoint alone: saves a checkpoint, and loads what another package saved as a model."""

import os

from metaflow import FlowSpec, Parameter, checkpoint, current, step


class ExchangeCheckpointFlow(FlowSpec):
    model_key = Parameter("model-key", default="")

    @checkpoint
    @step
    def start(self):
        if self.model_key:
            current.checkpoint.load(self.model_key)
            with open(os.path.join(current.checkpoint.directory, "weights")) as file:
                print("checkpoint loaded", file.read())
        with open(os.path.join(current.checkpoint.directory, "weights"), "w") as file:
            file.write("of a checkpoint")
        self.reference = current.checkpoint.save(metadata={"epoch": 1})
        print("checkpoint parents", self.reference["parents"])
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ExchangeCheckpointFlow()
