"""One rank of a training that torchrun has started, on a node of a gang: rank 0 saves for the task of its node."""

import os
import sys
import time

import torch
import torch.distributed as dist
from metaflow import Checkpoint
from torch import nn
from torch.nn.parallel import DistributedDataParallel

resume_from, epochs, pause, result = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
model = DistributedDataParallel(nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1)))
optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
epoch = 0
path = os.path.join(resume_from, "state.pt")
if os.path.exists(path):
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    epoch = state["epoch"]
    print(f"rank {rank} resumes after epoch {epoch}", flush=True)

while epoch < epochs:
    epoch += 1
    data = torch.Generator().manual_seed(100 * epoch + rank)
    inputs = torch.randn(200, 16, generator=data)
    optimiser.zero_grad()
    loss = nn.functional.mse_loss(model(inputs), torch.sin(inputs).sum(dim=1, keepdim=True))
    loss.backward()
    optimiser.step()
    if rank == 0:
        torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "epoch": epoch}, "state.pt")
        # It belongs to the task that has started torchrun.
        Checkpoint().save("state.pt", metadata={"epoch": epoch})
        print(f"epoch {epoch}: loss {loss:.5f}", flush=True)
    time.sleep(pause)

torch.save(torch.cat([weights.detach().flatten() for weights in model.parameters()]), f"{result}.{rank}")
dist.destroy_process_group()
