"""The specification's ways of loading in later steps: by reference, by key, to a path, and explicitly."""

import os

from metaflow import FlowSpec, current, model, step


class LoadingFlow(FlowSpec):
    @model
    @step
    def start(self):
        os.makedirs("model_directory", exist_ok=True)
        for name in ("config.json", "weights.txt"):
            with open(f"model_directory/{name}", "w") as file:
                file.write(name)
        self.basic_model = current.model.save(
            "./model_directory", label="basic_model", metadata={"version": "1.0", "accuracy": 0.95}
        )
        self.model_key = self.basic_model["key"]
        self.next(self.by_reference)

    @model(load=["basic_model"])
    @step
    def by_reference(self):
        path = current.model.loaded["basic_model"]
        print("Path", path, "contains", sorted(os.listdir(path)))
        print("Loaded model from pathspec:", current.model.loaded.info["basic_model"]["pathspec"])
        self.next(self.to_path)

    @model(load=[("basic_model", "./models/basic_model")])
    @step
    def to_path(self):
        path = current.model.loaded["basic_model"]
        print("Path", path, "contains", sorted(os.listdir(path)))
        self.next(self.by_key)

    @model(load="model_key")
    @step
    def by_key(self):
        path = current.model.loaded["model_key"]
        print("Path", path, "contains", sorted(os.listdir(path)))
        print("Loaded model from pathspec:", current.model.loaded.info["model_key"]["pathspec"])
        self.next(self.explicitly)

    @model
    @step
    def explicitly(self):
        path = current.model.load(self.basic_model)
        print("Path", path, "contains", sorted(os.listdir(path)))
        path = current.model.load(self.model_key, path="./manual_load")
        print("Path", path, "contains", sorted(os.listdir(path)))
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    LoadingFlow()
