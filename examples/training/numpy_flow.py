"""A plain training loop: everything that the next epoch needs is in one file, the random generator's state too."""

import json
import os
import time

import numpy as np
from metaflow import FlowSpec, Parameter, checkpoint, current, retry, step


class NumpyFlow(FlowSpec):
    epochs = Parameter("epochs", default=20)
    pause = Parameter("pause", default=0.1, help="seconds that an epoch takes longer, so that you can kill it")

    @retry(times=2, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        path = os.path.join(current.checkpoint.directory, "state.npz")
        rng = np.random.default_rng(0)
        inputs = rng.normal(size=(2000, 50))
        targets = inputs @ rng.normal(size=50) + rng.normal(scale=0.1, size=2000)
        weights, velocity, epoch = np.zeros(50), np.zeros(50), 0

        if current.checkpoint.is_loaded:
            state = np.load(path)
            weights, velocity, epoch = state["weights"], state["velocity"], int(state["epoch"])
            rng.bit_generator.state = json.loads(str(state["rng"]))
            print("resumes after epoch", epoch)

        while epoch < self.epochs:
            for batch in np.array_split(rng.permutation(len(inputs)), 20):
                error = inputs[batch] @ weights - targets[batch]
                velocity = 0.9 * velocity - 0.01 * inputs[batch].T @ error / len(batch)
                weights = weights + velocity
            epoch += 1
            loss = float(np.mean((inputs @ weights - targets) ** 2))
            generator = json.dumps(rng.bit_generator.state)
            np.savez(path, weights=weights, velocity=velocity, epoch=epoch, rng=generator)
            current.checkpoint.save(metadata={"epoch": epoch, "loss": loss})
            print(f"epoch {epoch}: loss {loss:.5f}")
            time.sleep(self.pause)

        self.result = weights.tolist()
        self.next(self.end)

    @step
    def end(self):
        print("weights", np.round(self.result[:5], 3))


if __name__ == "__main__":
    NumpyFlow()
