"""The forms of load=, `loaded` and its info, and the context manager."""

import os

from metaflow import FlowSpec, current, huggingface_hub, step

from metaflow_artifacts.testing.flows import emit


def content(path, name):
    with open(os.path.join(path, name)) as file:
        return file.read()


class LoadFlow(FlowSpec):
    @huggingface_hub(
        load=[
            "org/plain",
            ("org/pair", "here/pair"),
            {"repo_id": "org/data", "repo_type": "dataset", "allow_patterns": ["*.csv"]},
            ({"repo_id": "org/tagged", "revision": "v1"}, "here/tagged"),
        ],
        temp_dir_root="scratch",
    )
    @step
    def start(self):
        loaded = current.huggingface_hub.loaded
        emit("paths", dict(loaded))
        emit("contents", {repo: content(path, "name.csv") for repo, path in loaded.items()})
        emit("listed", sorted(os.listdir(loaded["org/data"])))
        emit("info", {repo: loaded.info[repo]["metadata"]["repo_type"] for repo in loaded})
        emit("mapping", ["org/plain" in loaded, "other" in loaded, len(loaded)])
        with current.huggingface_hub.load(repo_id="org/plain") as path:
            emit("inside", content(path, "name.csv"))
            with open(os.path.join(path, "name.csv"), "w") as file:
                file.write("vandalised")
        emit("gone", not os.path.exists(path))
        with current.huggingface_hub.load("org/plain", "here/kept", allow_patterns="*.csv") as path:
            emit("kept path", path)
        emit("kept", content("here/kept", "name.csv"))
        current.huggingface_hub.snapshot_download("org/plain", local_dir="here/local")
        emit("local", content("here/local", "name.csv"))
        self.scratch = loaded["org/plain"]
        self.next(self.end)

    @step
    def end(self):
        emit("scratch gone", not os.path.exists(self.scratch))


if __name__ == "__main__":
    LoadFlow()
