"""A token that is passed in every possible way."""

import os

from metaflow import FlowSpec, card, current, huggingface_hub, step

from metaflow_artifacts.testing.flows import emit

TOKEN = os.environ["SECRET"]


class TokenFlow(FlowSpec):
    @card
    @huggingface_hub(
        load=[
            {"repo_id": "org/private", "token": TOKEN},
            ({"repo_id": "org/gated", "headers": {"authorization": f"Bearer {TOKEN}"}}, "here"),
        ]
    )
    @step
    def start(self):
        hub = current.huggingface_hub
        self.references = [
            hub.snapshot_download(repo_id="org/private", token=TOKEN, revision="v1"),
            dict(hub.loaded.info["org/private"]),
        ]
        with hub.load(repo_id="org/private", token=TOKEN, allow_patterns="*.json") as path:
            emit("listed", os.listdir(path))
        for kwargs in ({"token": "hf_wrong_" + TOKEN}, {"headers": {"authorization": "Bearer hf_wrong_" + TOKEN}}):
            try:
                hub.snapshot_download(repo_id="org/other", **kwargs)
            except Exception as error:
                self.error = error
                print(repr(error), error)
        self.next(self.end)

    @huggingface_hub
    @step
    def end(self):
        self.implicit = current.huggingface_hub.snapshot_download(repo_id="org/private")
        current.huggingface_hub.snapshot_download(repo_id="org/other")


if __name__ == "__main__":
    TokenFlow()
