"""A `load` argument of a wrong form."""

from metaflow import FlowSpec, model, step


class BadFormFlow(FlowSpec):
    @model(load={"name": 3})
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    BadFormFlow()
