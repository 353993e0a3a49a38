"""A training with a card: fails once after some saves, and in its second attempt saves until it is told to end."""

import os
import time

from metaflow import FlowSpec, card, checkpoint, current, model, retry, step
from metaflow.cards import Markdown

from metaflow_artifacts.testing.flows import emit


class CheckpointCardFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @model
    @card(id="report")
    @step
    def start(self):
        current.card.append(Markdown("# Mine"))
        directory = current.checkpoint.directory
        emit("loaded", current.checkpoint.info)
        with open(os.path.join(directory, "frozen"), "wb") as file:
            file.write(bytes(16 << 20))
        number = 0
        while number < 4 or (current.retry_count and not os.path.exists("enough")):
            with open(os.path.join(directory, "head"), "wb") as file:
                file.write(os.urandom(100_000))
            metadata = {"epoch": number, "loss": 0.125, "note": "<b>not bold</b> & more"}
            name = "best" if number % 2 else "every"
            emit("saved", current.checkpoint.save(name=name, metadata=metadata, latest=number % 2 == 0))
            number += 1
            time.sleep(0.5)
        emit("model", current.model.save(directory, label="<b>both</b> parts", metadata=metadata))
        current.model.load(current.checkpoint.list()[0], "loaded")
        if current.retry_count == 0:
            raise RuntimeError("once, <b>not bold</b>")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    CheckpointCardFlow()
