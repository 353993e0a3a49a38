"""Keeps the card of a running task up to date with the repos that it asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from metaflow_artifacts.plugin import LiveCard, with_card

from .report import CARD_TYPE, data_of

if TYPE_CHECKING:
    from .current_hub import CurrentHuggingfaceHub

__all__ = ["with_hub_card"]

_REFRESH_INTERVAL_S = 10.0
"""The shortest time in seconds between two renderings of the card, each of which costs a process."""


def with_hub_card(
    step_function: Callable[..., Any], hub: CurrentHuggingfaceHub, warn: Callable[[str], None]
) -> Callable[..., Any]:
    """The function of a step, during which each repo that is asked for updates the card."""

    @contextmanager
    def updating(card: LiveCard) -> Iterator[None]:
        card.update()
        hub.watch = lambda: card.update(every=_REFRESH_INTERVAL_S)
        try:
            yield
        finally:
            hub.watch = lambda: None

    return with_card(step_function, CARD_TYPE, lambda state: data_of(hub, state), updating, warn)
