"""The specification's first flow: a file and a directory saved, the key kept."""

import json
import os

from metaflow import FlowSpec, current, model, step


class ModelSavingFlow(FlowSpec):
    @model
    @step
    def start(self):
        with open("model.h5", "wb") as file:
            file.write(b"h5" * 100)
        os.makedirs("model_directory", exist_ok=True)
        with open("model_directory/config.json", "w") as file:
            json.dump({"layers": 2}, file)
        with open("model_directory/weights.txt", "w") as file:
            file.write("0.1 0.2")
        self.basic_model = current.model.save(
            "model.h5", label="basic_model", metadata={"version": "1.0", "accuracy": 0.95}
        )
        self.directory_model = current.model.save("./model_directory", label="keras_model", metadata={"loss": "2.0"})
        self.model_key = self.directory_model["key"]
        print(f"Model key: {self.model_key}")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ModelSavingFlow()
