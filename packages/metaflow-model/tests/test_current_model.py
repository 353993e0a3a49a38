"""`current.model` without a run: calls as people write them, from threads and workers, and the forms of `load`."""

from __future__ import annotations

import copy
import os
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401  # Has to come first: it imports the decorators.
import pytest

from metaflow_artifacts import ArtifactNotFound, InvalidInput, InvalidReference, UsageError, open_store
from metaflow_artifacts._mf import loaded
from metaflow_artifacts._mf.log import Log
from metaflow_extensions.artifacts_model.plugins.model_deco import current_model
from metaflow_extensions.artifacts_model.plugins.model_deco.api import delete_model
from metaflow_extensions.artifacts_model.plugins.model_deco.current_model import CurrentModel
from metaflow_extensions.artifacts_model.plugins.model_deco.names import parse_load, resolve


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def model(tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> CurrentModel:
    monkeypatch.setattr(loaded, "_keys", {})
    log = Log("model", lambda line, timestamp: lines.append(line))
    return CurrentModel(open_store(tmp_path / "store"), "Flow/1/train/2", 0, log, tmp_path / "temporary")


def test_many_threads_save_and_load_at_once(model: CurrentModel, tmp_path: Path) -> None:
    def one(number: int) -> str:
        source = tmp_path / f"file_{number}"
        source.write_text(str(number))
        saved = model.save(source, label=f"n{number}")
        path = model.load(saved)
        return (Path(path) / source.name).read_text()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(50))) == [str(number) for number in range(50)]
    assert len(model.loaded) == len(set(model.loaded.values())) == 50
    assert len(model.save(tmp_path / "file_0")["parents"]) == 50
    model.close()
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_slow_save_has_a_line_in_the_log(
    model: CurrentModel, lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = tmp_path / "content"
    content.write_bytes(os.urandom(300_000))
    model.save(content)
    assert lines == []
    monkeypatch.setattr(current_model, "SLOW_SAVE_S", 0.0)
    saved = model.save(content, label="again")
    assert saved["size"] == 300_000
    assert len(lines) == 1
    assert re.fullmatch(
        r"\[@model\] Saved `again` in [\d.]+ seconds: 293 KiB, 0 B of it new to the datastore", lines[0]
    )


def test_some_files_of_a_model(model: CurrentModel, lines: list[str], tmp_path: Path) -> None:
    (tmp_path / "content").mkdir()
    for name, size in (("a.bin", 2048), ("b.bin", 1024), ("c.txt", 10)):
        (tmp_path / "content" / name).write_bytes(bytes(size))
    saved = model.save(tmp_path / "content")
    path = model.load(saved, only=["a.*", "*.txt"])
    assert sorted(os.listdir(path)) == ["a.bin", "c.txt"]
    assert re.fullmatch(
        r"\[@model\] Loaded artifact `\w+\[type:model\]` in [\d.]+ seconds: 2 KiB of 3 KiB, only a\.\*, \*\.txt",
        lines[-1],
    )
    info = model.loaded.info[saved["key"]]
    assert info == {**saved, "only": ["a.*", "*.txt"], "loaded_size": 2058}
    # It is still a reference.
    assert sorted(os.listdir(model.load(info))) == ["a.bin", "b.bin", "c.txt"]
    assert model.loaded.info[saved["key"]] == saved
    with pytest.raises(InvalidInput, match=r"found \[\]"):
        model.load(saved, only=[])
    with pytest.raises(ArtifactNotFound, match=r"no file that matches '\*\.pt'; it has 'a\.bin', 'b\.bin', 'c\.txt'"):
        model.load(saved, only=["*.bin", "*.pt"])


@pytest.fixture
def content(tmp_path: Path) -> Path:
    path = tmp_path / "content"
    path.write_text("content")
    return path


def test_an_empty_label_is_the_default(model: CurrentModel, content: Path) -> None:
    saved = model.save(content, label="")
    assert (saved["label"], saved["uuid"][:-32]) == ("Flow_train", "Flow_train_")


def test_a_reference_has_the_names_of_metaflow_checkpoint_too(model: CurrentModel, content: Path) -> None:
    saved = model.save(content, "label", {"epoch": 3}, "tar")
    assert type(saved) is dict
    assert (saved["model_uuid"], saved["storage_format"]) == (saved["uuid"], "files")
    # They are not stored, and what is loaded by the key has them all the same.
    stored = model._store.info(saved["key"])
    assert {**stored, "model_uuid": saved["uuid"], "storage_format": "files"} == saved
    for reference in (saved, saved["key"], saved["url"]):
        model.load(reference)
        assert model.loaded.info[saved["key"]] == saved


def test_a_url_is_a_reference(model: CurrentModel, content: Path, tmp_path: Path) -> None:
    saved = model.save(content)
    assert (Path(model.load(saved["url"])) / "content").read_text() == "content"
    elsewhere = open_store(tmp_path / "elsewhere").save_model(content)
    assert (Path(model.load(elsewhere["url"])) / "content").read_text() == "content"
    assert list(model.loaded) == [saved["key"], elsewhere["key"]]


def test_what_was_loaded_can_be_removed_before_the_task_ends(model: CurrentModel, content: Path) -> None:
    saved = model.save(content)
    path = model.load(saved)
    model.loaded.cleanup(saved["key"])
    assert not Path(path).exists()
    assert list(model.loaded) == []


@pytest.mark.parametrize("copied", [lambda value: pickle.loads(pickle.dumps(value)), copy.deepcopy])
def test_a_copy_saves_and_loads_for_the_same_task(
    model: CurrentModel, content: Path, copied: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = model.save(content)
    path = model.load(saved)
    again = copied(model)
    # A worker has loaded nothing; what it saves is made from what its task has loaded.
    monkeypatch.setattr(loaded, "_keys", {})
    assert type(again) is CurrentModel
    assert dict(again.loaded) == {saved["key"]: path}
    assert again.loaded.info == model.loaded.info
    of_worker = again.save(content)
    assert (of_worker["pathspec"], of_worker["parents"]) == ("Flow/1/train/2", [saved["key"]])
    other = again.load(of_worker)
    again.close()
    assert (Path(other).exists(), Path(path).exists()) == (False, True)


@pytest.mark.parametrize("root", [".metaflow", "elsewhere"])
def test_a_model_is_deleted_once_and_again(
    content: Path, tmp_path: Path, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".metaflow").mkdir()
    monkeypatch.chdir(tmp_path)
    store = open_store(tmp_path / root)
    saved = store.save_model(content)
    assert delete_model(saved) is True
    # A step that deletes can be retried.
    assert delete_model(saved) is True
    for reference in (saved["key"], saved["url"]):
        with pytest.raises(ArtifactNotFound):
            delete_model(reference)
    assert delete_model(store.save_model(content)["url"]) is True
    assert list(store.list()) == []


def test_a_reference_to_a_store_that_is_not_here_is_not_deleted(
    content: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = open_store(tmp_path / "store").save_model(content)
    (tmp_path / "store").rename(tmp_path / "on another machine")
    (tmp_path / ".metaflow").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactNotFound, match="is no directory on this machine"):
        delete_model(saved)
    assert len(list(open_store(tmp_path / "on another machine").list())) == 1


class Held:
    """A flow that holds `value` in the artifact `x`."""

    def __init__(self, value: object) -> None:
        self.x = value


@pytest.mark.parametrize("value", [None, "", "  ", {}], ids=repr)
def test_a_parameter_that_was_not_given_is_nothing_to_load(value: object) -> None:
    assert resolve([["x", None]], Held(value), "train", None, best_effort=True) == ([], ["x"])
    with pytest.raises(InvalidReference, match=r"^step train: 'x' in @model\(load=…\) holds .*best_effort_load=True"):
        resolve([["x", None]], Held(value), "train", None, best_effort=False)


class Series:
    """Compares each element, as arrays and tables do."""

    def __eq__(self, other: object) -> Any:
        raise ValueError("the truth value of a series is ambiguous")

    __hash__ = None  # type: ignore[assignment]


def test_a_join_compares_references_that_hold_arrays(model: CurrentModel) -> None:
    saved, other = model.save({"a": b""}), model.save({"a": b""})
    branches = [{"x": {**saved, "losses": Series()}}, {"x": {**saved, "losses": Series()}}]
    [wanted], _ = resolve([["x", None]], object(), "join", branches, best_effort=False)
    assert wanted.key == saved["key"]
    for value in ({**other, "losses": Series()}, Series()):
        with pytest.raises(InvalidReference, match=r"'x' in .* differs between the branches"):
            resolve([["x", None]], object(), "join", [*branches, {"x": value}], best_effort=False)


@pytest.mark.parametrize("value", ["a typing error", {"loss": 0.5}, 5], ids=repr)
def test_best_effort_still_refuses_what_is_no_reference(value: object) -> None:
    with pytest.raises(InvalidReference, match=r"^step train: 'x' in"):
        resolve([["x", None]], Held(value), "train", None, best_effort=True)


@pytest.mark.parametrize(
    ("load", "entries"),
    [
        (None, []),
        ([], []),
        ("a", [["a", None]]),
        (["a", "b"], [["a", None], ["b", None]]),
        # A tuple is a list, also of two names.
        (("a", "b"), [["a", None], ["b", None]]),
        ((("a", "p"),), [["a", "p"]]),
        ([("a", Path("p")), "b", ("c", None)], [["a", "p"], ["b", None], ["c", None]]),
        ((("a", "p"), "b", "c"), [["a", "p"], ["b", None], ["c", None]]),
        # As it arrives in a remote task, having gone through JSON.
        ([["a", "p"], ["b", None]], [["a", "p"], ["b", None]]),
    ],
)
def test_all_forms_of_load_become_one(load: object, entries: list[list[str | None]]) -> None:
    assert parse_load(load, "train") == entries
    assert parse_load(entries, "train") == entries


@pytest.mark.parametrize(
    "load",
    [
        3,
        {"a": "p"},
        ["a", 3],
        [("a", "p", "q", "r")],
        [("a", 3)],
        [[]],
        {"a"},
        ("a", "./p"),
        [""],
        [("", "p")],
        "a/b",
        True,
    ],
)
def test_other_forms_are_refused(load: object) -> None:
    with pytest.raises(UsageError, match=r"^step train: @model\(load=…\) takes a name, or a list of") as raised:
        parse_load(load, "train")
    assert "\n" not in str(raised.value)
