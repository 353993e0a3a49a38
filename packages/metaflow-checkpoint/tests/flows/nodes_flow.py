"""Two nodes of a @parallel step with checkpoints of their own, which fail once."""

import os

from metaflow import FlowSpec, checkpoint, current, parallel, retry, step

from metaflow_artifacts.testing.flows import emit


class NodesFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @retry(times=1, minutes_between_retries=0)
    @checkpoint(per_node=True)
    @parallel
    @step
    def train(self):
        node = current.parallel.node_index
        path = os.path.join(current.checkpoint.directory, "node")
        content = None
        if current.checkpoint.is_loaded:
            with open(path) as file:
                content = file.read()
        emit("node", [node, current.retry_count, content])
        with open(path, "w") as file:
            file.write(f"node {node}")
        current.checkpoint.save(name="shard")
        emit("listed", [node, len(current.checkpoint.list())])
        if current.retry_count == 0 and node == 1:
            raise RuntimeError("once")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    NodesFlow()
