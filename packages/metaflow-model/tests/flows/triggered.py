"""The specification's flow that another flow's end triggers."""

import os

from metaflow import FlowSpec, current, model, step, trigger_on_finish


@trigger_on_finish(flow="ModelSavingFlow")
class TriggeredFlow(FlowSpec):
    @model
    @step
    def start(self):
        print("Triggering run", current.trigger.run)
        path = current.model.load(current.trigger.run.data.basic_model)
        print("Model files:", os.listdir(path))
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    TriggeredFlow()
