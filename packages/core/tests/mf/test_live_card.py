"""The card of a running task is kept up to date, and a card that fails never fails the step."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from metaflow.plugins.cards.card_decorator import CardDecorator
from metaflow.plugins.datastores.local_storage import LocalStorage

from metaflow_artifacts._mf import live_card
from metaflow_artifacts._mf.card import Html, code
from metaflow_artifacts._mf.errors import in_flow
from metaflow_artifacts._mf.live_card import CardReport, LiveCard, has_card, shown_on
from metaflow_artifacts.errors import StorageError


class Numbers(CardReport):
    name = "numbers"
    title = "Numbers"
    pathspec = "Flow/1/train/2"

    def __init__(self) -> None:
        self.number = 0
        self.looks = 0
        self._seen = 0

    def changed(self) -> bool:
        self.looks += 1
        seen, self._seen = self._seen, self.number
        return seen != self._seen

    def parts(self, state: str) -> Sequence[Html]:
        return [code(state), code(f"number {self.number}")]


class KeepsItsRoot(LocalStorage):
    """Has the root that it had when it was first used, as Metaflow's storages for Azure and Google have."""

    first_root: str | None = None

    def full_uri(self, path: str) -> str:
        self.first_root = self.first_root or str(self.datastore_root)
        return os.path.join(self.first_root, path)


class Task:
    """A task with a card, in a local datastore of its own; its updates come without a pause."""

    def __init__(self, root: Path) -> None:
        self.root = root / ".metaflow"
        self.root.mkdir()
        self.report = Numbers()
        self.warnings: list[str] = []
        storage: Any = KeepsItsRoot(str(self.root))  # type: ignore[no-untyped-call]
        storage.is_file(["anything"])
        datastore = SimpleNamespace(TYPE="local", flow_name="Flow", _storage_impl=storage)
        self.card = LiveCard(self.report, datastore, self.warnings.append)

    def run(self, function: Callable[[], Any] = lambda: None) -> Any:
        return self.card.wrap(function)()

    def file(self, kind: str) -> Path | None:
        found = list((self.root / "mf.cards/Flow/runs/1/steps/train/tasks/2" / kind).glob("numbers-numbers-*"))
        assert len(found) <= 1
        return found[0] if found else None

    @property
    def page(self) -> str:
        found = self.file("cards")
        return found.read_text() if found else ""

    @property
    def update(self) -> dict[str, Any]:
        found = self.file("runtime")
        # Older versions of Metaflow write it in place: it may be empty for a moment.
        return json.loads(found.read_text() or "{}") if found else {}

    def wait_for(self, shown: str) -> None:
        """Come back when the page and the update for it show a text."""
        end = time.monotonic() + 60
        while shown not in self.page or shown not in str(self.update):
            assert time.monotonic() < end
            time.sleep(0.001)


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Task]:
    monkeypatch.setattr(live_card, "_POLL_S", 0.001)
    monkeypatch.setattr(live_card, "_FIRST_REFRESH_S", 0.0)
    monkeypatch.chdir(tmp_path)
    task = Task(tmp_path)
    yield task
    assert task.warnings == []


def test_a_step_that_ends_has_a_card_which_viewers_do_not_update(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_card, "_POLL_S", 1000.0)
    assert task.run(lambda: 7) == 7
    assert "<code>done</code><code>number 0</code>" in task.page
    assert "<title>Numbers of Flow/1/train/2</title>" in task.page
    assert 'METAFLOW_RELOAD_TOKEN = "final"' in task.page
    assert "metaflow_card_update" not in task.page
    assert task.update == {}


def test_while_the_step_runs_the_card_follows_its_report(task: Task) -> None:
    def step() -> None:
        task.wait_for("number 0")
        assert 'METAFLOW_RELOAD_TOKEN = "never"' in task.page
        assert "metaflow_card_update" in task.page
        task.report.number = 5
        task.wait_for("number 5")
        assert task.update["data"] == {"content": "<code>running</code><code>number 5</code>"}
        assert task.update["reload_token"] == "never"

    task.run(step)
    # A viewer that shows the live page loads the final one.
    assert task.update["reload_token"] == "final"
    assert "<code>done</code><code>number 5</code>" in task.page


def test_reports_in_quick_succession_are_written_once(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_card, "_FIRST_REFRESH_S", 1000.0)

    def step() -> None:
        task.wait_for("number 0")
        task.report.number = 1
        looks = task.report.looks
        while task.report.looks < looks + 3:
            time.sleep(0.001)
        assert "number 0" in task.page

    task.run(step)
    assert "number 1" in task.page


def test_the_card_of_a_step_that_fails_shows_the_error_and_the_lines_of_the_user(task: Task) -> None:
    @in_flow
    def save() -> None:
        raise StorageError("no <room> left")

    def step() -> None:
        task.report.number = 3
        save()

    with pytest.raises(StorageError):
        task.run(step)
    assert "<code>failed</code>" in task.page
    assert "StorageError: no &lt;room&gt; left" in task.page
    assert "<code>number 3</code>" in task.page
    assert f"{os.path.basename(__file__)}&quot;, line " in task.page
    assert "save()" in task.page
    assert f"{os.sep}metaflow_artifacts{os.sep}" not in task.page
    assert "raise StorageError" not in task.page


def test_an_error_before_the_step_is_on_the_card_too(task: Task) -> None:
    with pytest.raises(StorageError), shown_on(task.card):
        raise StorageError("cannot load")
    assert "<code>failed</code>" in task.page
    assert "StorageError: cannot load" in task.page
    assert "Traceback" not in task.page
    with pytest.raises(StorageError), shown_on(None):
        raise StorageError("no card")


def test_a_card_that_cannot_be_written_is_a_warning(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def save_bytes(*arguments: Any, **options: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(LocalStorage, "save_bytes", save_bytes)
    monkeypatch.setattr(live_card, "_POLL_S", 1000.0)
    assert task.run(lambda: 7) == 7
    assert task.warnings == ["the card is not up to date: OSError('no space')"]
    task.warnings.clear()


def test_a_card_that_has_no_place_is_a_warning(tmp_path: Path) -> None:
    warnings: list[str] = []
    card = LiveCard(Numbers(), SimpleNamespace(TYPE="nowhere", _storage_impl=None), warnings.append)
    assert card.wrap(lambda: 7)() == 7
    assert len(warnings) == 1
    assert "nowhere" in warnings[0]


def test_a_step_that_changes_the_working_directory_writes_its_card_where_it_began(task: Task, tmp_path: Path) -> None:
    other = tmp_path / "other" / ".metaflow"
    other.mkdir(parents=True)
    task.run(lambda: os.chdir(other.parent))
    assert "number 0" in task.page
    assert list(other.iterdir()) == []


@pytest.mark.parametrize(("show_card", "expected"), [(True, True), (False, False)], ids=repr)
def test_a_step_with_a_card_of_the_user_gets_another_one(show_card: bool, expected: bool) -> None:
    decorators = [object(), CardDecorator(), CardDecorator()]
    assert has_card(decorators, show_card) is expected
    assert has_card(decorators[:1], show_card) is False
