"""Names in `load` that hold no reference. @catch keeps the error of each step for the join."""

from metaflow import FlowSpec, catch, current, model, step

from metaflow_artifacts.testing.flows import emit

ABSENT = "mf.models/models/artifacts/absent_" + "0" * 32


class BadLoadsFlow(FlowSpec):
    @model
    @step
    def start(self):
        with open("content", "w") as file:
            file.write("content")
        self.other = {"loss": 0.5}
        self.absent = ABSENT
        self.nothing = None
        self.next(self.missing, self.is_other, self.is_absent, self.best_effort)

    @catch(var="caught", print_exception=False)
    @model(load=["typo"])
    @step
    def missing(self):
        self.reached = True
        self.next(self.join)

    @catch(var="caught", print_exception=False)
    @model(load=[("other", "somewhere")])
    @step
    def is_other(self):
        self.reached = True
        self.next(self.join)

    @catch(var="caught", print_exception=False)
    @model(load=["absent"])
    @step
    def is_absent(self):
        self.reached = True
        self.next(self.join)

    @model(load=["typo", "nothing", "absent"], best_effort_load=True)
    @step
    def best_effort(self):
        emit("best effort", list(current.model.loaded))
        self.mine = current.model.save("content", label="one")
        self.next(self.join)

    @step
    def join(self, inputs):
        for branch in inputs:
            if getattr(branch, "caught", None) is not None:
                emit("caught", [branch.caught.type, branch.caught.exception, hasattr(branch, "reached")])
        self.next(self.spread)

    @step
    def spread(self):
        self.pair = [1, 2]
        self.next(self.each, foreach="pair")

    @model
    @step
    def each(self):
        self.mine = current.model.save("content", label=f"n{self.input}")
        self.next(self.differing)

    @model(load="mine")
    @step
    def differing(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    BadLoadsFlow()
