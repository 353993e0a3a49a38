"""A trainer that keeps checkpoints of its own: a directory for each, of which it removes all but the last two.

Trainers do this to save disk space (`save_total_limit` of Hugging Face's, `save_top_k` of Lightning's). The whole of
their output directory is saved each time; what is in it already is neither sent nor stored again.
"""

import json
import os
import re
import shutil
import time

from metaflow import FlowSpec, Parameter, checkpoint, current, retry, step


class Trainer:
    """Stands in for a library's trainer: it knows nothing of Metaflow."""

    def __init__(self, directory, keep, on_save):
        self.directory = directory
        self.keep = keep
        self.on_save = on_save
        self.values = [1.0] * 10_000
        self.done = 0

    def checkpoints(self):
        found = [name for name in os.listdir(self.directory) if re.fullmatch(r"checkpoint-\d+", name)]
        return sorted(found, key=lambda name: int(name.partition("-")[2]))

    def resume(self):
        with open(os.path.join(self.directory, self.checkpoints()[-1], "state.json")) as file:
            state = json.load(file)
        self.values, self.done = state["values"], state["done"]

    def train(self, steps, pause):
        while self.done < steps:
            self.values = [(value * 1103515245 + self.done) % 65537 for value in self.values]
            self.done += 1
            if self.done % 5 == 0:
                self.save()
            time.sleep(pause)

    def save(self):
        target = os.path.join(self.directory, f"checkpoint-{self.done}")
        os.makedirs(target, exist_ok=True)
        with open(os.path.join(target, "state.json"), "w") as file:
            json.dump({"values": self.values, "done": self.done}, file)
        for old in self.checkpoints()[: -self.keep]:
            shutil.rmtree(os.path.join(self.directory, old))
        self.on_save(self.done)


class RotatingFlow(FlowSpec):
    steps = Parameter("steps", default=60)
    pause = Parameter("pause", default=0.03, help="seconds that a step takes longer, so that you can kill it")

    @retry(times=2, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        def on_save(done):
            saved = current.checkpoint.save(metadata={"steps": done})
            print(f"step {done}: {sorted(os.listdir(current.checkpoint.directory))}, {saved['size']} bytes")

        trainer = Trainer(current.checkpoint.directory, keep=2, on_save=on_save)
        if current.checkpoint.is_loaded:
            trainer.resume()
            print("resumes after step", trainer.done)
        trainer.train(self.steps, self.pause)
        self.result = [trainer.values[:20], trainer.checkpoints()]
        self.next(self.end)

    @step
    def end(self):
        print("kept", self.result[1])


if __name__ == "__main__":
    RotatingFlow()
