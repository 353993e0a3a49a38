"""Two nodes of a @parallel step, each loading the same model and saving its own."""

import os

from metaflow import FlowSpec, current, model, parallel, step

from metaflow_artifacts.testing.flows import emit


class ParallelFlow(FlowSpec):
    @model
    @step
    def start(self):
        with open("content", "w") as file:
            file.write("shared")
        self.base = current.model.save("content")
        self.next(self.nodes, num_parallel=2)

    @parallel
    @model(load="base")
    @step
    def nodes(self):
        node = current.parallel.node_index
        with open(os.path.join(current.model.loaded["base"], "content")) as file:
            content = file.read()
        with open(f"node_{node}", "w") as file:
            file.write(f"{content} {node}")
        self.own = current.model.save(f"node_{node}", label=f"node_{node}")
        emit("node", [node, self.own])
        self.next(self.join)

    @model(load="base")
    @step
    def join(self, inputs):
        found = {name: 1 for branch in inputs for name in os.listdir(current.model.load(branch.own))}
        emit("found", sorted(found))
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ParallelFlow()
