"""A repo of the Hub, a training that starts from it, and what is made of that; each step is killed half-way.

It needs all three packages.
"""

import hashlib
import os
import signal

from metaflow import FlowSpec, Parameter, checkpoint, current, huggingface_hub, load_model, model, retry, step

from metaflow_artifacts.testing.flows import emit

EPOCHS = 4


def read(*parts):
    with open(os.path.join(*parts), "rb") as file:
        return file.read()


def write(path, data):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def digests(directory):
    """The content of each file in a directory."""
    names = [name for name in sorted(os.listdir(directory)) if os.path.isfile(os.path.join(directory, name))]
    return {name: hashlib.sha256(read(directory, name)).hexdigest() for name in names}


def die_once():
    """End the process of the first attempt as a preemption does, without a last word."""
    if current.retry_count == 0:
        os.kill(os.getpid(), signal.SIGKILL)


class FinetuneFlow(FlowSpec):
    base_model = Parameter("base-model", default="org/base")

    @retry(times=1, minutes_between_retries=0)
    @huggingface_hub(load=[("org/tokenizer", "./tokenizer")], cache_scope="flow", temp_dir_root="scratch")
    @step
    def start(self):
        emit("tokenizer", [current.huggingface_hub.loaded["org/tokenizer"], digests("tokenizer")])
        self.base = current.huggingface_hub.snapshot_download(
            repo_id=self.base_model, allow_patterns=["*.bin", "*.json"]
        )
        emit("base", self.base["key"])
        with current.huggingface_hub.load(repo_id="org/data", repo_type="dataset", path="data") as path:
            emit("data", [path, digests("data")])
            die_once()
        self.next(self.finetune)

    @retry(times=1, minutes_between_retries=0)
    @model(load=["base"])
    @checkpoint
    @step
    def finetune(self):
        base = current.model.loaded["base"]
        emit("loaded base", digests(base))
        weights, first = read(base, "weights.bin"), 0
        state = os.path.join(current.checkpoint.directory, "weights.bin")
        if current.checkpoint.is_loaded:
            weights, first = read(state), current.checkpoint.info.metadata["epochs"]
            emit("resumes", first)
        # A training writes where it has read.
        write(os.path.join(base, "weights.bin"), b"vandalised")
        for epoch in range(first, EPOCHS):
            weights = hashlib.sha256(weights + bytes([epoch])).digest() * 2000
            write(state, weights)
            self.adapter = current.checkpoint.save(name="adapter", metadata={"epochs": epoch + 1})
            if epoch == 1:
                die_once()
        write("out/weights.bin", weights)
        write("out/config.json", read(base, "config.json"))
        self.tuned = current.model.save("out", label="tuned", metadata={"epochs": EPOCHS}, storage_format="files")
        self.tuned_key = self.tuned["key"]
        self.next(self.use)

    @retry(times=1, minutes_between_retries=0)
    @model(
        load=[("tuned", "./models"), ("adapter", None), "tuned_key", ("base", "./models/base")], temp_dir_root="scratch"
    )
    @step
    def use(self):
        loaded = current.model.loaded
        emit("used", {name: digests(path) for name, path in loaded.items()})
        emit("info", {name: loaded.info[name]["metadata"].get("epochs") for name in loaded})
        for path in loaded.values():
            write(os.path.join(path, "weights.bin"), b"vandalised")
        again = current.model.load(self.tuned_key)
        emit("explicitly", digests(again))
        die_once()
        self.merged = current.model.save(again, label="merged")
        emit("parents", self.merged["parents"])
        self.next(self.end)

    @step
    def end(self):
        load_model(self.merged, "after the run")
        emit("merged", digests("after the run"))


if __name__ == "__main__":
    FinetuneFlow()
