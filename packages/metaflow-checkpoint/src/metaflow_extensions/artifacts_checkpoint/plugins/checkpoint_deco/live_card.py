"""Keeps the card of a running task up to date with what its processes save."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from metaflow_artifacts.plugin import LiveCard, Log, with_card

from .journal import Journal
from .report import CARD_TYPE, Report

__all__ = ["with_checkpoint_card"]

_JOURNAL_POLL_S = 1.0
"""Seconds between two looks at the journal, which is a small local file."""
_FIRST_REFRESH_S, _LONGEST_REFRESH_S = 5.0, 60.0
"""Seconds between two renderings of the card, each of which costs a process of one second. The interval grows by one
second for each minute that the attempt runs."""


def with_checkpoint_card(
    step_function: Callable[..., Any], report: Report, journal: Journal, log: Log
) -> Callable[..., Any]:
    """The function of a step, with a thread beside it that reads the journal and updates the card."""

    def read_journal() -> bool:
        saves = journal.new_saves()
        report.add(saves)
        return bool(saves)

    def collect(state: str) -> dict[str, Any]:
        read_journal()
        return report.data(state)

    @contextmanager
    def updating(card: LiveCard) -> Iterator[None]:
        stop = threading.Event()

        def follow() -> None:
            card.update()
            while not stop.wait(_JOURNAL_POLL_S):
                minutes = (time.time() - report.begin) / 60
                if card.seconds_since_refresh() < min(_LONGEST_REFRESH_S, _FIRST_REFRESH_S + minutes):
                    continue
                with card.guarded():
                    if read_journal():
                        card.update()

        thread = threading.Thread(target=follow, name="checkpoint-card", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    return with_card(step_function, CARD_TYPE, collect, updating, log.warning)
