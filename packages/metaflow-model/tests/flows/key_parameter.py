"""The specification's flow that takes a key on the command line; and a reference, as JSON."""

import os

from metaflow import FlowSpec, JSONType, Parameter, current, model, step


class ModelConsumerFlow(FlowSpec):
    model_key = Parameter("model-key", help="Key of the model to load")
    reference = Parameter("reference", type=JSONType, default="null")

    @model(load=[("model_key", "./models/consumer"), ("reference", None)], best_effort_load=True)
    @step
    def start(self):
        print("Model files:", sorted(os.listdir("./models/consumer")))
        print("Loaded model from pathspec:", current.model.loaded.info["model_key"]["pathspec"])
        print("By reference:", "reference" in current.model.loaded)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ModelConsumerFlow()
