"""The card of a running task: the class that Metaflow renders, and what keeps its data up to date.

A decorator package subclasses `DecoratorCard` and lists the subclass in the `CARDS` of its card module. Its step
decorator calls `attach_card` in `step_init` and `with_card` in `task_decorate`.

Metaflow has no public function for a decorator that adds a card; this module alone uses the private ones.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from metaflow.plugins.cards.card_modules.card import MetaflowCard

# Every Metaflow process imports the cards of all packages, and with them this module.
if TYPE_CHECKING:
    from metaflow_artifacts._mf.card import Html

__all__ = ["DecoratorCard", "LiveCard", "attach_card", "with_card"]

_SHORTEST_REFRESH_S = 1.1
"""Metaflow drops an update that comes less than one second after the last one, even a forced one."""


class DecoratorCard(MetaflowCard):
    """A card that shows the data of one decorator.

    It takes no components of users. If it did, `current.card.append` could no longer tell which card is meant in a
    step that has one other card.
    """

    ALLOW_USER_COMPONENTS = False
    RUNTIME_UPDATABLE = True
    RELOAD_POLICY = MetaflowCard.RELOAD_POLICY_NEVER

    title: ClassVar[str]
    """The begin of the window title; the task's pathspec follows."""

    def parts(self, data: Mapping[str, Any]) -> Sequence[Html]:
        """The parts of the page. `data` is what the `LiveCard` of the task collected last, `{}` before the first."""
        raise NotImplementedError

    def render(self, task: Any) -> str:
        return self._page(task, self.runtime_data, live=False)

    def render_runtime(self, task: Any, data: Any) -> str:
        return self._page(task, data, live=True)

    def refresh(self, task: Any, data: Any) -> dict[str, str]:
        return {"content": "".join(self.parts(_user_data(data)))}

    def _page(self, task: Any, data: Any, *, live: bool) -> str:
        from metaflow_artifacts._mf.card import page

        return page(f"{self.title} of {task.pathspec}", self.parts(_user_data(data)), live=live)


def _user_data(data: Any) -> Mapping[str, Any]:
    return (data or {}).get("user") or {}


def attach_card(flow: Any, step_name: str, decorators: Any, card_type: str, show_card: bool) -> bool:
    """Add a card to a step that has one already, and return whether the step has the added card.

    To be called in `step_init`, with its arguments. `card_type` is the type of the added card, and its id. `show_card`
    is the decorator's argument of that name.
    """
    from metaflow.decorators import _attach_decorators_to_step
    from metaflow.plugins.cards.card_decorator import CardDecorator

    cards = [decorator for decorator in decorators if isinstance(decorator, CardDecorator)]
    if not show_card or not cards:
        return False
    if all(card.attributes["id"] != card_type for card in cards):
        step = next(step for step in flow if step.__name__ == step_name)
        _attach_decorators_to_step(step, [f"card:type={card_type},id={card_type},refresh_interval=1"])
        # The step's other cards may have been counted before this one was added. The last card that ends also ends
        # what all cards share, so that the count must include it.
        CardDecorator._set_card_counts_per_step(step_name, len(cards) + 1)
    return True


def with_card(
    step_function: Callable[..., Any],
    card_type: str,
    collect: Callable[[str], Mapping[str, Any]],
    updating: Callable[[LiveCard], AbstractContextManager[None]],
    warn: Callable[[str], None],
) -> Callable[..., Any]:
    """The function of a step, which also keeps the step's card of this type up to date. For `task_decorate`.

    `collect` returns the data of the card, as JSON can hold it; its argument is `running`, `done` or `failed`. Several
    threads may call it, one at a time. `updating` is entered while the step's code runs, and calls `LiveCard.update`
    when there is something new. A card that cannot be updated never fails the step: `warn` is called with one line.
    """

    @functools.wraps(step_function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        manager = _manager_of(card_type)
        if manager is None:
            return step_function(*args, **kwargs)
        card = LiveCard(manager, collect, warn)
        try:
            with updating(card):
                result = step_function(*args, **kwargs)
        except BaseException:
            card.end("failed")
            raise
        card.end("done")
        return result

    return wrapper


def _manager_of(card_type: str) -> Any:
    """Metaflow's manager of the running task's card of this type; None if the task has no such card."""
    from metaflow.metaflow_current import current

    cards = current.get("card")
    managers = cards.get(type=card_type) if cards is not None else []
    return managers[0] if managers else None


class LiveCard:
    """The card of a running task. Its methods may be called from any thread, and raise no Exception."""

    def __init__(self, manager: Any, collect: Callable[[str], Mapping[str, Any]], warn: Callable[[str], None]) -> None:
        self._manager = manager
        self._collect = collect
        self._warn = warn
        # Metaflow keeps this object, and renders the final card from what it contains at the end of the step.
        self._data: dict[str, Any] = {}
        self._refreshed_at: float | None = None
        self._lock = threading.RLock()

    def seconds_since_refresh(self) -> float:
        """Seconds since the page was rendered; infinity before the first time."""
        return float("inf") if self._refreshed_at is None else time.monotonic() - self._refreshed_at

    def update(self, every: float = 0.0) -> None:
        """Collect the data, and render the page unless that was done less than `every` seconds ago.

        Metaflow starts a process for each rendering, which takes about a second.
        """
        with self._lock, self.guarded():
            self._data.update(self._collect("running"))
            if self.seconds_since_refresh() >= every:
                self._refresh(force=False)

    def end(self, state: str) -> None:
        """Collect the data for the last time; `state` is `done` or `failed`.

        After a step that was done, Metaflow renders the final card. After one that failed it does not, so it is done
        here.
        """
        with self._lock, self.guarded():
            self._data.update(self._collect(state))
            if state == "failed":
                time.sleep(max(0.0, _SHORTEST_REFRESH_S - self.seconds_since_refresh()))
                self._refresh(force=True)

    def _refresh(self, *, force: bool) -> None:
        self._manager.refresh(self._data, force=force)
        self._refreshed_at = time.monotonic()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn an Exception of the block into a warning: a card must never end a step that works."""
        try:
            yield
        except Exception as error:
            self._warn(f"the card is not up to date: {error!r}")
