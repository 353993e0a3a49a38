"""`Checkpoint` and `current.checkpoint` without a run: calls as people write them, copies and workers."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import metaflow  # Has to come first: it imports the decorators.
import pytest
from stored_task import task_in

from metaflow_artifacts import ArtifactNotFound, CheckpointInfo, InvalidInput, UsageError
from metaflow_artifacts._mf import loaded
from metaflow_artifacts._mf.log import Log
from metaflow_artifacts._mf.task import ENVIRONMENT_VARIABLE, TaskIdentity
from metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.checkpoint import Checkpoint
from metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.current_checkpoint import CurrentCheckpoint
from metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.errors import NoTask

DEFAULT = "mfchckpt"


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded, "_keys", {})


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskIdentity:
    """The task that this process belongs to."""
    identity = task_in(tmp_path / "store")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, identity.encode())
    return identity


@pytest.fixture
def content(tmp_path: Path) -> Path:
    (tmp_path / "content").write_text("content")
    return tmp_path / "content"


@pytest.fixture
def checkpoint(task: TaskIdentity, tmp_path: Path) -> CurrentCheckpoint:
    log = Log("checkpoint", lambda *_, **__: None)
    return CurrentCheckpoint(task, "fresh", log, tmp_path / "temporary")


@pytest.mark.usefixtures("task")
def test_an_empty_name_is_the_default(content: Path) -> None:
    cp = Checkpoint()
    saved = [cp.save(content, ""), cp.save(content, name=""), cp.save(content)]
    other = cp.save(content, "other")
    assert [one["name"] for one in saved] == [DEFAULT] * 3
    assert cp.list(name="") == cp.list(name=DEFAULT) == saved[::-1]
    assert cp.list() == [other, *saved[::-1]]


@pytest.mark.usefixtures("task")
def test_a_reference_has_the_names_of_metaflow_checkpoint_too(content: Path) -> None:
    saved = Checkpoint().save(content, "best", metadata={"e": 1})
    assert type(saved) is dict
    assert saved["storage_format"] == "files"
    assert "model_uuid" not in saved
    assert Checkpoint().list() == [saved]


@pytest.mark.usefixtures("task")
def test_a_list_of_objects_has_attributes(content: Path) -> None:
    cp = Checkpoint()
    saved = cp.save(content, {"e": 1}, False, "best")
    (found,) = cp.list(as_dict=False)
    assert isinstance(found, CheckpointInfo)
    assert (found.key, found.metadata, found.version_id, found.storage_format) == (saved["key"], {"e": 1}, 0, "files")
    assert found == saved
    # Its position is that of metaflow-checkpoint.
    assert type(cp.list(None, None, None, False, True)[0]) is dict
    assert cp.load(found, content.parent / "out") == str(content.parent / "out")


@pytest.mark.usefixtures("task")
def test_a_key_can_be_told_before_the_save(content: Path) -> None:
    cp = Checkpoint()
    assert cp.generate_key("best", 0) == cp.generate_key("best")
    assert cp.save(content, "best")["key"] == cp.generate_key("best", 0)
    assert cp.generate_key("", 7).endswith(f".0.{DEFAULT}.7")
    # Telling it draws no number.
    expected = cp.generate_key("other")
    assert cp.save(content, "other")["key"] == expected
    for name, number in (("a\nb", 0), ("a", -1), ("a", True), ("a", "1")):
        with pytest.raises(InvalidInput):
            cp.generate_key(name, number)  # type: ignore[arg-type]


def test_without_a_task_there_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    with pytest.raises(NoTask, match=r"^Checkpoint.generate_key: this process belongs to no task"):
        Checkpoint().generate_key("best", 0)


@pytest.mark.usefixtures("task")
def test_a_url_is_a_reference(content: Path, tmp_path: Path) -> None:
    saved = Checkpoint().save(content)
    with Checkpoint() as cp:
        assert os.listdir(cp.load(saved["url"])) == ["content"]
    assert os.listdir(Checkpoint().load(saved["url"], tmp_path / "out")) == ["content"]


def test_a_directory_that_is_none_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"^temp_dir_root: expected a path \(str or os.PathLike\), found 5 \(int\)$"):
        Checkpoint(temp_dir_root=5)  # type: ignore[arg-type]


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("copied", [pickled, copy.deepcopy])
def test_a_copy_is_of_the_same_task_and_owns_no_directory(
    checkpoint: CurrentCheckpoint, content: Path, copied: Callable[[Any], Any]
) -> None:
    saved = checkpoint.save(content)
    checkpoint.load(saved)
    again = copied(checkpoint)
    assert type(again) is CurrentCheckpoint
    assert (again.directory, again.is_loaded, again.task_identifier) == (checkpoint.directory, False, "b" * 12)
    # What a copy saves without a path is the content of the same directory, and the journal knows it.
    of_copy = again.save(metadata={"epoch": 3})
    assert (of_copy["version_id"], of_copy["parents"]) == (1, [saved["key"]])
    assert checkpoint.list() == again.list() == [of_copy, saved]
    assert [one["version_id"] for one in checkpoint._own_journal.another().new_saves()] == [0, 1]
    again.close()
    assert os.listdir(checkpoint.directory) == ["content"]
    assert checkpoint.save(content)["version_id"] == 2


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_save_load_and_list(
    checkpoint: CurrentCheckpoint, content: Path, tmp_path: Path, method: Literal["fork", "spawn", "forkserver"]
) -> None:
    saved = checkpoint.save(content)
    with ProcessPoolExecutor(1, get_context(method)) as pool:
        assert pool.submit(checkpoint.load, saved, tmp_path / "out").result() == str(tmp_path / "out")
        of_worker = pool.submit(checkpoint.save, content, method).result()
        assert pool.submit(checkpoint.list, method).result() == [of_worker]
    assert (of_worker["pathspec"], of_worker["version_id"]) == (saved["pathspec"], 1)
    assert os.listdir(tmp_path / "out") == ["content"]
    assert os.path.isdir(checkpoint.directory)


@pytest.mark.usefixtures("task")
@pytest.mark.parametrize("copied", [pickled, copy.deepcopy])
def test_a_copy_of_an_object_with_a_directory_has_its_path(content: Path, copied: Callable[[Any], Any]) -> None:
    with Checkpoint() as cp:
        saved = cp.save(content)
        assert cp.directory is not None
        cp.load(saved)
        again = copied(cp)
        assert again.directory == cp.directory
        assert again.save()["size"] == saved["size"]
        again.cleanup()
        assert again.directory is None
        assert os.listdir(cp.directory) == ["content"]


def test_the_class_that_users_import_is_the_one_that_is_pickled() -> None:
    assert vars(metaflow)["Checkpoint"] is type(pickled(Checkpoint()))


@pytest.mark.usefixtures("task")
def test_several_checkpoints_can_be_loaded_into_the_directory_of_a_block(content: Path, tmp_path: Path) -> None:
    (tmp_path / "more").write_text("more")
    with Checkpoint() as checkpoint:
        for path in (content, tmp_path / "more"):
            checkpoint.load(checkpoint.save(path))
        assert sorted(os.listdir(str(checkpoint.directory))) == sorted([content.name, "more"])


def test_some_files_of_a_checkpoint(checkpoint: CurrentCheckpoint, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for name in ("a.bin", "b.bin", "c.txt"):
        (tmp_path / "tree" / name).write_text(name)
    saved = checkpoint.save(tmp_path / "tree")
    for one in (checkpoint, Checkpoint(init_dir=True)):
        assert os.listdir(one.load(saved, only=["a.*"])) == ["a.bin"]
        assert sorted(os.listdir(one.load(saved, tmp_path / "out", only=["*.txt", "b*"]))) == ["b.bin", "c.txt"]
        with pytest.raises(InvalidInput, match="only: expected a pattern"):
            one.load(saved, only=[])
        with pytest.raises(ArtifactNotFound, match=r"no file that matches 'x'; it has 'a\.bin', 'b\.bin', 'c\.txt'"):
            one.load(saved, only="x")
        assert os.listdir(str(one.directory)) == ["a.bin"]
