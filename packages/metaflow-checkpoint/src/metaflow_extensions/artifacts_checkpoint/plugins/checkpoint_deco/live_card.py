"""Keeps the card of a running task up to date."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any

from metaflow.metaflow_current import current

from metaflow_artifacts.plugin import Log

from .journal import Journal
from .report import CARD_ID, CARD_TYPE, Report

__all__ = ["attach_card", "with_card"]

_LOOK = 1.0
"""Seconds between two looks at the journal, which costs nothing."""
_FIRST, _LONGEST = 5.0, 60.0
"""Seconds between two updates of the card, each of which costs a process of a second: few at first, more later."""


def attach_card(flow: Any, step_name: str, decorators: Any) -> bool:
    """Give a step that has a card another one for its checkpoints; False where it has none.

    To be called in `step_init`.
    """
    from metaflow.decorators import _attach_decorators_to_step
    from metaflow.plugins.cards.card_decorator import CardDecorator

    cards = [decorator for decorator in decorators if isinstance(decorator, CardDecorator)]
    if not cards:
        return False
    if not any(card.attributes["id"] == CARD_ID for card in cards):
        step = next(step for step in flow if step.__name__ == step_name)
        _attach_decorators_to_step(step, [f"card:type={CARD_TYPE},id={CARD_ID},refresh_interval=1"])
        # The step's other cards may have counted before this one came: the last one of all ends what they share.
        CardDecorator._set_card_counts_per_step(step_name, len(cards) + 1)
    return True


def with_card(step_function: Callable[..., Any], report: Report, journal: Journal, log: Log) -> Callable[..., Any]:
    """The step's function, with a thread beside it that updates the card; at its end the card is as it will stay."""

    @functools.wraps(step_function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        cards = current.get("card")
        managers = cards.get(type=CARD_TYPE) if cards is not None else []
        if not managers:
            return step_function(*args, **kwargs)
        card = _LiveCard(managers[0], report, journal, log)
        card.start()
        try:
            result = step_function(*args, **kwargs)
        except BaseException:
            card.end("failed")
            raise
        card.end("done")
        return result

    return wrapper


class _LiveCard:
    def __init__(self, manager: Any, report: Report, journal: Journal, log: Log) -> None:
        self._manager = manager
        self._report = report
        self._journal = journal
        self._log = log
        # Metaflow keeps this very object, and renders the final card from what is in it then.
        self._data: dict[str, Any] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoint-card", daemon=True)
        self._last = 0.0

    def start(self) -> None:
        self._thread.start()

    def end(self, state: str) -> None:
        """Stop, and leave the card in its last state. After a failure Metaflow renders none: it is done here."""
        self._stop.set()
        self._thread.join()
        self._guarded(lambda: self._finish(state))

    def _run(self) -> None:
        self._guarded(self._follow)

    def _follow(self) -> None:
        self._update()
        while not self._stop.wait(_LOOK):
            since = time.monotonic() - self._last
            if since < min(_LONGEST, _FIRST + (time.time() - self._report.begin) / 60):
                continue
            if self._gather():
                self._update()

    def _finish(self, state: str) -> None:
        self._gather()
        if state == "failed":
            # Metaflow leaves out an update that comes less than a second after the last one.
            time.sleep(max(0.0, 1.1 - (time.monotonic() - self._last)))
            self._update(state, force=True)
        else:
            self._data.update(self._report.data(state))

    def _gather(self) -> bool:
        saves = self._journal.new_saves()
        self._report.add(saves)
        return bool(saves)

    def _update(self, state: str = "running", force: bool = False) -> None:
        self._gather()
        self._data.update(self._report.data(state))
        self._manager.refresh(self._data, force=force)
        self._last = time.monotonic()

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # A card must never end a training that works.
            self._log.warning(f"the card of the checkpoints is not up to date: {error!r}")
