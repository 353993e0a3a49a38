# pyright: reportUnnecessaryTypeIgnoreComment=true
"""A flow with the documented arguments and calls, for type checkers: nobody runs it.

`assert_type` fails where a checker knows less than the type given. A line with `type: ignore` is a mistake that
checkers must see: one that sees none there says that the comment is not needed.
"""

import os
from typing import Any

from metaflow import (
    Checkpoint,
    FlowSpec,
    checkpoint,
    current,
    delete_model,
    huggingface_hub,
    load_model,
    model,
    retry,
    step,
)
from typing_extensions import assert_type

from metaflow_artifacts import ModelArtifact

NAMES = ["start", "more"]


class TypedFlow(FlowSpec):
    @huggingface_hub
    @model
    @checkpoint
    @step
    def start(self) -> None:
        saved = current.model.save("model", label="x", metadata={"loss": 0.1}, storage_format="files")
        assert_type(saved["key"], str)
        assert_type(saved["metadata"], dict[str, Any])
        current.model.save({"a.bin": b"x"})
        assert_type(current.model.load(saved, "path", only=["*.bin"]), str)
        current.model.load(saved["key"], path=None, only="*.bin")
        assert_type(current.model.save_async("model", consume=True, on_busy="replace").result(timeout=1)["uuid"], str)
        assert_type(current.model.loaded["x"], str)
        current.model.loaded.info["x"]["size"]
        current.model.wait(timeout=2)

        assert_type(current.checkpoint.directory, str)
        assert_type(current.checkpoint.is_loaded, bool)
        info = current.checkpoint.info
        if info is not None:
            info.metadata["epoch"]
            info["key"].upper()
        assert_type(current.checkpoint.save(), ModelArtifact)
        current.checkpoint.save("path", "best", {"epoch": 1}, True)
        current.checkpoint.save("path", {"epoch": 1}, latest=False, name="best")
        current.checkpoint.save(None, metadata=None)
        current.checkpoint.save_async(on_busy="wait").done()
        assert_type(current.checkpoint.list(name="best", attempt=1, full_namespace=True)[0]["key"], str)
        assert_type(current.checkpoint.load(saved, path=None), str)
        assert_type(current.checkpoint.preempted, bool)
        assert_type(current.checkpoint.wait()[0]["url"], str)

        repo = current.huggingface_hub.snapshot_download(repo_id="org/name", allow_patterns=["*.json"])
        assert_type(repo["key"], str)
        with current.huggingface_hub.load(repo_id="org/name", path=None, revision="main") as path:
            assert_type(path, str)
        assert_type(current.huggingface_hub.loaded["org/name"], str)
        self.next(self.more)

    @retry(times=2)
    @huggingface_hub(
        load=["org/name", ("org/other", "./path"), {"repo_id": "org/third"}, ({"repo_id": "org/data"}, "./data")],
        cache_scope="flow",
        temp_dir_root=None,
        show_card=False,
    )
    @model(load=["a", ("b", "./b"), ("c", None, "*.safetensors"), ("d", "./d", ["*.json", "*.bin"])], temp_dir_root="x")
    @checkpoint(load_policy=None, temp_dir_root=None, per_node=True, preempt_grace=20, show_card=True)
    @step
    def more(self) -> None:
        self.next(self.names)

    @huggingface_hub(load={"repo_id": "org/name", "allow_patterns": ["*.json"]})
    @model(load=NAMES, temp_dir_root=None, best_effort_load=True)
    @checkpoint(load_policy="eager")
    @step
    def names(self) -> None:
        self.next(self.end)

    @huggingface_hub(load="org/name")
    @model(load=None)
    @checkpoint(preempt_grace=None)
    @step
    def end(self) -> None:
        pass


def outside(reference: ModelArtifact) -> None:
    assert_type(load_model(reference, "path", only="*.bin"), str)
    assert_type(delete_model(reference["key"]), bool)
    with Checkpoint(temp_dir_root=None) as cp:
        newest = cp.list(task="Flow/1/start/2")[0]
        assert_type(newest["pathspec"], str)
        cp.load(newest)
        print(os.listdir(cp.directory))


class MistakenFlow(FlowSpec):
    @model(load=5)  # type: ignore
    @step
    def start(self) -> None:
        current.model.svae("x")  # type: ignore
        current.model.save("x", label=3)  # type: ignore
        print(current.model.loaded["x"].key)  # type: ignore
        current.checkpoint.save(latest="no")  # type: ignore
        print(current.checkpoint.is_laoded)  # type: ignore
        current.huggingface_hub.load(path=3)  # type: ignore
        self.next(self.more)

    @checkpoint(load_polcy="eager")  # type: ignore
    @step
    def more(self) -> None:
        self.next(self.end)

    @huggingface_hub(load=3)  # type: ignore
    @step
    def end(self) -> None:
        pass
