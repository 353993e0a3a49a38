"""The card of a running task is kept up to date, and a card that fails never fails the step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from metaflow.metaflow_current import current

from metaflow_artifacts._mf.card import Html, code
from metaflow_artifacts._mf.live_card import DecoratorCard, LiveCard, with_card

TYPE = "numbers"


class Manager:
    """Takes the place of Metaflow's manager of one card, which starts a process for each rendering."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.rendered: list[tuple[dict[str, Any], bool]] = []
        self.data: dict[str, Any] = {}

    def refresh(self, data: dict[str, Any], force: bool) -> None:
        if self.error is not None:
            raise self.error
        self.data = data
        self.rendered.append((dict(data), force))


class Cards:
    """Takes the place of `current.card`."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager

    def get(self, type: str) -> list[Manager]:
        return [self.manager] if type == TYPE else []


class NumbersCard(DecoratorCard):
    type = TYPE  # type: ignore[assignment]
    title = "Numbers"

    def parts(self, data: Mapping[str, Any]) -> Sequence[Html]:
        return [code(str(data.get("number", "none yet")))]


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch, warnings: list[str]) -> Any:
    """Runs a function as the code of a step with the card of a manager."""

    def run(manager: Manager | None, function: Any, every: float = 0.0) -> Any:
        state: dict[str, int] = {"number": 0}

        @contextmanager
        def updating(card: LiveCard) -> Iterator[None]:
            def report(number: int) -> None:
                state["number"] = number
                card.update(every)

            reports.append(report)
            yield

        reports: list[Any] = [lambda number: None]
        if manager is not None:
            monkeypatch.setitem(current.__dict__, "card", Cards(manager))
        monkeypatch.setattr(current, "get", lambda name: current.__dict__.get(name))
        wrapped = with_card(
            lambda: function(reports[-1]), TYPE, lambda name: {**state, "state": name}, updating, warnings.append
        )
        return wrapped()

    return run


def test_each_report_of_the_step_renders_the_card(step: Any, warnings: list[str]) -> None:
    manager = Manager()
    assert step(manager, lambda report: [report(1), report(2)]) == [None, None]
    assert [data["number"] for data, _ in manager.rendered] == [1, 2]
    # Metaflow renders the final card from the object that it was given.
    assert manager.data == {"number": 2, "state": "done"}
    assert warnings == []


def test_a_card_that_was_just_rendered_waits_and_keeps_the_data(step: Any) -> None:
    manager = Manager()
    step(manager, lambda report: [report(1), report(2)], every=1000.0)
    assert [data["number"] for data, _ in manager.rendered] == [1]
    assert manager.data == {"number": 2, "state": "done"}


def test_the_card_of_a_step_that_fails_is_rendered_last_and_by_force(step: Any) -> None:
    manager = Manager()

    def fail(report: Any) -> None:
        report(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        step(manager, fail)
    assert manager.rendered[-1] == ({"number": 1, "state": "failed"}, True)


def test_a_card_that_cannot_be_rendered_is_a_warning(step: Any, warnings: list[str]) -> None:
    assert step(Manager(OSError("no process")), lambda report: report(1)) is None
    assert warnings == ["the card is not up to date: OSError('no process')"]


def test_a_step_without_the_card_runs_as_it_is(step: Any) -> None:
    assert step(None, lambda report: 7) == 7


def test_the_page_and_its_updates_have_the_same_parts() -> None:
    card = NumbersCard()  # type: ignore[no-untyped-call]
    task = SimpleNamespace(pathspec="Flow/1/start/2")
    data = {"user": {"number": 5}}
    assert card.refresh(task, data) == {"content": "<code>5</code>"}
    assert "<code>5</code>" in card.render_runtime(task, data)
    card.runtime_data = data  # type: ignore[assignment]
    page = card.render(task)
    assert "<code>5</code>" in page
    assert "<title>Numbers of Flow/1/start/2</title>" in page


@pytest.mark.parametrize("data", [None, {}, {"user": {}}])
def test_before_the_first_update_the_page_has_no_data(data: Any) -> None:
    card = NumbersCard()  # type: ignore[no-untyped-call]
    assert card.refresh(None, data) == {"content": "<code>none yet</code>"}
