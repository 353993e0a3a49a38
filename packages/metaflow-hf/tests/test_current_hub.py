"""`current.huggingface_hub` without a run: calls as people write them, copies and workers."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401  # Has to come first: it imports the decorators.
import pytest
from hub import Hub
from hub_repo import Repo

from metaflow_artifacts import open_store
from metaflow_artifacts._mf import loaded
from metaflow_artifacts._mf.log import Log
from metaflow_artifacts._mf.task import TaskIdentity
from metaflow_extensions.artifacts_hf.plugins.hf_deco.arguments import parse_load
from metaflow_extensions.artifacts_hf.plugins.hf_deco.current_hub import CurrentHuggingfaceHub

TOKEN = "hf_very_secret"


@pytest.fixture
def repo(hub: Hub) -> Repo:
    return hub.repo("org/name", private=True, token=TOKEN, files={"config.json": b"{}", "weights.bin": b"w"})


@pytest.fixture
def access(hub: Hub) -> dict[str, Any]:
    """The arguments with which the repo can be read."""
    return {"endpoint": hub.endpoint, "token": TOKEN}


@pytest.fixture
def current_hub(tmp_path: Path, repo: Repo, monkeypatch: pytest.MonkeyPatch) -> CurrentHuggingfaceHub:
    monkeypatch.setattr(loaded, "_keys", {})
    task = TaskIdentity("Flow", "1", "start", "2", 0, "a" * 12, "b" * 12, "local", str(tmp_path / "store"))
    log = Log("huggingface_hub", lambda *_, **__: None)
    return CurrentHuggingfaceHub(task, "checkpoint", log, tmp_path / "temporary")


def test_load_takes_repo_path_and_type_by_position(
    current_hub: CurrentHuggingfaceHub, hub: Hub, access: dict[str, Any], tmp_path: Path
) -> None:
    with current_hub.load("org/name", str(tmp_path / "out"), "model", **access) as path:
        assert path == str(tmp_path / "out")
        assert sorted(os.listdir(path)) == ["config.json", "weights.bin"]
    hub.repo("org/data", "dataset", files={"data.csv": b"1"})
    for arguments, keywords in [(("org/data", None, "dataset"), {}), (("org/data",), {"repo_type": "dataset"})]:
        with current_hub.load(*arguments, **keywords, endpoint=hub.endpoint, token=False) as path:
            assert os.listdir(path) == ["data.csv"]


def test_info_says_how_a_repo_was_loaded_and_holds_no_secret(
    current_hub: CurrentHuggingfaceHub, access: dict[str, Any]
) -> None:
    wanted = {"repo_id": "org/name", "allow_patterns": ["*.json"], **access}
    current_hub.load_first(parse_load([wanted]))
    info = current_hub.loaded.info["org/name"]
    assert info["hf_kwargs"] == {
        "repo_id": "org/name",
        "repo_type": "model",
        "allow_patterns": ["*.json"],
        "endpoint": access["endpoint"],
    }
    assert (info["cache_hit"], info["force_download"], info["storage_format"]) == (False, False, "files")
    current_hub.load_first(parse_load([wanted]))
    assert current_hub.loaded.info["org/name"]["cache_hit"] is True
    # It is a reference all the same.
    reference = current_hub.snapshot_download("org/name", allow_patterns="*.json", **access)
    assert {name: info[name] for name in reference} == reference
    path = current_hub.loaded["org/name"]
    current_hub.loaded.cleanup("org/name")
    assert not os.path.exists(path)


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("copied", [pickled, copy.deepcopy])
def test_a_copy_is_of_the_same_task_and_has_no_token(
    current_hub: CurrentHuggingfaceHub, access: dict[str, Any], copied: Callable[[Any], Any]
) -> None:
    current_hub.load_first(parse_load([{"repo_id": "org/name", **access}]))
    assert TOKEN.encode() not in pickle.dumps(current_hub)
    again = copied(current_hub)
    assert dict(again.loaded) == dict(current_hub.loaded)
    assert again.loaded.info == current_hub.loaded.info
    reference = again.snapshot_download("org/name", **access)
    assert reference["key"] == again.loaded.info["org/name"]["key"]
    again.close()
    assert os.path.isdir(current_hub.loaded["org/name"])


def test_a_worker_stores_a_repo_for_the_task(
    current_hub: CurrentHuggingfaceHub, access: dict[str, Any], tmp_path: Path
) -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        reference = pool.submit(current_hub.snapshot_download, "org/name", **access).result()
    assert reference["pathspec"] == "Flow/1/start/2"
    assert open_store(tmp_path / "store").info(reference["key"])["size"] == 3
    assert current_hub.snapshot_download("org/name", **access) == reference
