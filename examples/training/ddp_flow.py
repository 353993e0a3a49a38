"""Data-parallel training in PyTorch on the nodes of a gang: node 0 saves, and all nodes resume at the same epoch."""

import os
import time

import torch
import torch.distributed as dist
from metaflow import FlowSpec, Parameter, checkpoint, current, parallel, retry, step
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class DDPFlow(FlowSpec):
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
        rank = current.parallel.node_index
        dist.init_process_group(
            "gloo",
            init_method=f"tcp://{current.parallel.main_ip}:{self.port + current.retry_count}",
            rank=rank,
            world_size=current.parallel.num_nodes,
        )
        torch.manual_seed(0)
        model = DistributedDataParallel(nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1)))
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        path = os.path.join(current.checkpoint.directory, "state.pt")
        epoch = 0

        if current.checkpoint.is_loaded:
            state = torch.load(path, weights_only=True)
            model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            epoch = state["epoch"]
            print(f"node {rank} resumes after epoch {epoch}")

        while epoch < self.epochs:
            epoch += 1
            # Each node has data of its own in each epoch; the gradients are averaged.
            data = torch.Generator().manual_seed(100 * epoch + rank)
            inputs = torch.randn(200, 16, generator=data)
            optimiser.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), torch.sin(inputs).sum(dim=1, keepdim=True))
            loss.backward()
            optimiser.step()
            if rank == 0:
                torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "epoch": epoch}, path)
                current.checkpoint.save(metadata={"epoch": epoch, "loss": loss.detach()})
                print(f"epoch {epoch}: loss {loss:.5f}")
            time.sleep(self.pause)

        self.weights = torch.cat([weights.flatten() for weights in model.parameters()]).tolist()
        self.next(self.join)

    @step
    def join(self, inputs):
        weights = [node.weights for node in inputs]
        assert all(one == weights[0] for one in weights), "the nodes have different weights"
        self.result = weights[0]
        self.next(self.end)

    @step
    def end(self):
        print("weights", self.result[:3])


if __name__ == "__main__":
    DDPFlow()
