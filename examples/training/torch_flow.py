"""A network in PyTorch: its weights, the optimiser's state and the random generator's go into the checkpoint."""

import os
import time

import torch
from metaflow import FlowSpec, Parameter, checkpoint, current, retry, step
from torch import nn


class TorchFlow(FlowSpec):
    epochs = Parameter("epochs", default=16)
    pause = Parameter("pause", default=0.1, help="seconds that an epoch takes longer, so that you can kill it")

    @retry(times=2, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        path = os.path.join(current.checkpoint.directory, "state.pt")
        torch.manual_seed(0)
        inputs = torch.randn(1000, 16)
        targets = torch.sin(inputs).sum(dim=1, keepdim=True)
        model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Dropout(0.1), nn.Linear(64, 1))
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        epoch = 0

        if current.checkpoint.is_loaded:
            state = torch.load(path, weights_only=True)
            model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            torch.set_rng_state(state["rng"])
            epoch = state["epoch"]
            print("resumes after epoch", epoch)

        while epoch < self.epochs:
            for batch in torch.randperm(len(inputs)).split(100):
                optimiser.zero_grad()
                loss = nn.functional.mse_loss(model(inputs[batch]), targets[batch])
                loss.backward()
                optimiser.step()
            epoch += 1
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
            torch.save({**state, "rng": torch.get_rng_state(), "epoch": epoch}, path)
            # A tensor of one number is taken for that number.
            current.checkpoint.save(metadata={"epoch": epoch, "loss": loss.detach()})
            print(f"epoch {epoch}: loss {loss:.5f}")
            time.sleep(self.pause)

        model.eval()
        with torch.no_grad():
            self.result = model(inputs[:20]).flatten().tolist()
        self.next(self.end)

    @step
    def end(self):
        print("predictions", self.result[:3])


if __name__ == "__main__":
    TorchFlow()
