"""What @model loads: as `--with` gives it in the first step, as a Config gives it in the others."""

import os

from metaflow import Config, FlowSpec, Parameter, config_expr, current, model, step

from metaflow_artifacts.testing.flows import emit


class GivenFlow(FlowSpec):
    a = Parameter("a", default="")
    b = Parameter("b", default="")
    config = Config(
        "config",
        default_value={"load": ["a", ["b", "from config", ["file"]]], "text": '["a"]', "no": "False", "none": "None"},
    )

    @step
    def start(self):
        emit("with", {name: os.path.relpath(path) for name, path in current.model.loaded.items()})
        self.next(self.listed)

    @model(load=config_expr("config.load"), temp_dir_root=config.none, best_effort_load=config.no)
    @step
    def listed(self):
        emit("listed", [list(current.model.loaded), current.model.loaded["b"]])
        self.next(self.text)

    @model(load=config.text)
    @step
    def text(self):
        emit("text", list(current.model.loaded))
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    GivenFlow()
