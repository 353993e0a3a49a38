"""`current.model` without a run: calls from many threads, the log of slow saves, and the forms of `load`."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import metaflow  # noqa: F401  # Has to come first: it imports the decorators.
import pytest

from metaflow_artifacts import UsageError, open_store
from metaflow_artifacts._mf import loaded
from metaflow_artifacts._mf.log import Log
from metaflow_extensions.artifacts_model.plugins.model_deco import current_model
from metaflow_extensions.artifacts_model.plugins.model_deco.current_model import CurrentModel
from metaflow_extensions.artifacts_model.plugins.model_deco.names import parse_load


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


@pytest.mark.parametrize(
    ("load", "entries"),
    [
        (None, []),
        ([], []),
        ("a", [["a", None]]),
        (["a", "b"], [["a", None], ["b", None]]),
        (("a", "p"), [["a", "p"]]),
        ([("a", Path("p")), "b", ("c", None)], [["a", "p"], ["b", None], ["c", None]]),
        ((("a", "p"), "b", "c"), [["a", "p"], ["b", None], ["c", None]]),
        # As it arrives in a remote task, having gone through JSON.
        ([["a", "p"], ["b", None]], [["a", "p"], ["b", None]]),
    ],
)
def test_all_forms_of_load_become_one(load: object, entries: list[list[str | None]]) -> None:
    assert parse_load(load, "train") == entries
    assert parse_load(entries, "train") == entries


@pytest.mark.parametrize("load", [3, {"a": "p"}, ["a", 3], [("a", "p", "q")], [("a", 3)], [[]], {"a"}])
def test_other_forms_are_refused(load: object) -> None:
    with pytest.raises(UsageError, match=r"^step train: @model\(load=…\) takes a name, or a list of") as raised:
        parse_load(load, "train")
    assert "\n" not in str(raised.value)
