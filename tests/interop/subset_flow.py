"""Saves with each of the decorators that are installed, and loads all of it with @model where that is."""

import os

import metaflow
from metaflow import FlowSpec, acme, current, step

SAVERS = [name for name in ("model", "checkpoint") if hasattr(metaflow, name)]


def if_installed(name, **options):
    decorator = getattr(metaflow, name, None)
    if decorator is None:
        return lambda function: function
    return decorator(**options) if options else decorator


class SubsetFlow(FlowSpec):
    @acme
    @if_installed("model")
    @if_installed("checkpoint")
    @if_installed("huggingface_hub")
    @step
    def start(self):
        os.makedirs("content", exist_ok=True)
        with open("content/weights", "w") as file:
            file.write("1 2 3")
        print("current has", [name for name in ("model", "checkpoint", "huggingface_hub") if name in current])
        for name in SAVERS:
            setattr(self, f"by_{name}", getattr(current, name).save("content", metadata={"by": name}))
        self.next(self.end)

    @if_installed("model", load=[f"by_{name}" for name in SAVERS])
    @step
    def end(self):
        if "model" in SAVERS:
            for name, path in current.model.loaded.items():
                print("loaded", name, os.listdir(path))
        print("saved by", SAVERS)


if __name__ == "__main__":
    SubsetFlow()
