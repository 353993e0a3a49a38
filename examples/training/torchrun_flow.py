"""The same as ddp_flow.py, with two ranks on each node, which torchrun starts: `Checkpoint()` finds their task."""

import os
import subprocess
import sys
import tempfile

from metaflow import FlowSpec, Parameter, checkpoint, current, parallel, retry, step


class TorchrunFlow(FlowSpec):
    nodes = Parameter("nodes", default=2)
    epochs = Parameter("epochs", default=12)
    pause = Parameter("pause", default=0.1, help="seconds that an epoch takes longer, so that you can kill it")
    port = Parameter("port", default=29500, help="where node 0 waits for the others; each attempt takes the next one")

    @step
    def start(self):
        self.next(self.train, num_parallel=self.nodes)

    @retry(times=3, minutes_between_retries=0)
    @checkpoint
    @parallel
    @step
    def train(self):
        import torch

        with tempfile.TemporaryDirectory() as scratch:
            torchrun = [
                *(sys.executable, "-m", "torch.distributed.run"),
                *(f"--nnodes={current.parallel.num_nodes}", f"--node-rank={current.parallel.node_index}"),
                *("--nproc-per-node=2", f"--master-addr={current.parallel.main_ip}"),
                f"--master-port={self.port + current.retry_count}",
            ]
            rank = os.path.join(os.path.dirname(os.path.abspath(__file__)), "torchrun_rank.py")
            result = os.path.join(scratch, "result")
            arguments = [current.checkpoint.directory, str(self.epochs), str(self.pause), result]
            subprocess.run([*torchrun, rank, *arguments], check=True, cwd=scratch)
            first = 2 * current.parallel.node_index
            self.weights = [torch.load(f"{result}.{rank}").tolist() for rank in (first, first + 1)]
        self.next(self.join)

    @step
    def join(self, inputs):
        weights = [one for node in inputs for one in node.weights]
        assert all(one == weights[0] for one in weights), "the ranks have different weights"
        self.result = weights[0]
        self.next(self.end)

    @step
    def end(self):
        print("weights", self.result[:3])


if __name__ == "__main__":
    TorchrunFlow()
