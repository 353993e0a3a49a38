"""Models that are saved in the background, in a task that then saves one as usual."""

import os

from metaflow import FlowSpec, current, model, step

from metaflow_artifacts.testing.flows import emit


class BackgroundFlow(FlowSpec):
    @model
    @step
    def start(self):
        os.makedirs("tree", exist_ok=True)
        with open("tree/weights", "wb") as file:
            file.write(b"1" * 5_000_000)
        self.first = current.model.save_async("tree", label="first", metadata={"number": 1})
        with open("tree/weights", "wb") as file:
            file.write(b"2")
        self.memory = current.model.save_async({"a": b"in memory"}, label="memory")
        self.plain = current.model.save("tree", label="plain")
        emit("before a plain one", [self.first.done(), self.memory.done()])
        emit("references", [reference["label"] for reference in current.model.wait()])
        self.next(self.end)

    @model(load=["first", "memory", "plain"])
    @step
    def end(self):
        emit("kept", [type(one).__name__ for one in (self.first, self.memory)])
        for name, file in (("first", "weights"), ("memory", "a"), ("plain", "weights")):
            with open(os.path.join(current.model.loaded[name], file), "rb") as content:
                emit(name, content.read(9).decode())


if __name__ == "__main__":
    BackgroundFlow()
