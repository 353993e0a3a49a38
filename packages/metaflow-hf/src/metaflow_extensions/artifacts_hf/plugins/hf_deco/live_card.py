"""Keeps the card of a running task up to date."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from metaflow.metaflow_current import current

from .report import CARD_ID, CARD_TYPE, data_of

if TYPE_CHECKING:
    from .current_hub import CurrentHuggingfaceHub

__all__ = ["attach_card", "with_card"]

_BETWEEN = 10.0
"""Seconds between two updates at least: each costs a process."""


def attach_card(flow: Any, step_name: str, decorators: Any) -> bool:
    """Give a step that has a card another one for its repos; False where it has none. For `step_init`."""
    from metaflow.decorators import _attach_decorators_to_step
    from metaflow.plugins.cards.card_decorator import CardDecorator

    cards = [decorator for decorator in decorators if isinstance(decorator, CardDecorator)]
    if not cards:
        return False
    if all(card.attributes["id"] != CARD_ID for card in cards):
        step = next(step for step in flow if step.__name__ == step_name)
        _attach_decorators_to_step(step, [f"card:type={CARD_TYPE},id={CARD_ID},refresh_interval=1"])
        # Cards that were counted before count one too few, and the last one of all ends what they share.
        CardDecorator._set_card_counts_per_step(step_name, len(cards) + 1)
    return True


def with_card(
    step_function: Callable[..., Any], hub: CurrentHuggingfaceHub, warn: Callable[[str], None]
) -> Callable[..., Any]:
    """The step's function; around it, the card is begun and ended, and each repo that is asked for enters it."""

    @functools.wraps(step_function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        cards = current.get("card")
        managers = cards.get(type=CARD_TYPE) if cards is not None else []
        if not managers:
            return step_function(*args, **kwargs)
        card = _LiveCard(managers[0], hub, warn)
        card.update("running")
        hub.watch = lambda: card.update("running")
        try:
            result = step_function(*args, **kwargs)
        except BaseException:
            card.update("failed")
            raise
        finally:
            hub.watch = lambda: None
        card.update("done")
        return result

    return wrapper


class _LiveCard:
    def __init__(self, manager: Any, hub: CurrentHuggingfaceHub, warn: Callable[[str], None]) -> None:
        self._manager = manager
        self._hub = hub
        self._warn = warn
        # Metaflow keeps this very object, and renders the final card from what is in it then.
        self._data: dict[str, Any] = {}
        self._last = -_BETWEEN
        self._lock = threading.Lock()

    def update(self, state: str) -> None:
        with self._lock:
            try:
                self._data.update(data_of(self._hub, state))
                self._show(state)
            except Exception as error:  # A card must never end a step that works.
                self._warn(f"the card of the Hub's repos is not up to date: {error!r}")

    def _show(self, state: str) -> None:
        since = time.monotonic() - self._last
        if state == "failed":
            # Metaflow renders no last card then. It leaves out an update less than a second after another.
            time.sleep(max(0.0, 1.1 - since))
        elif state == "done" or since < _BETWEEN:
            return
        self._manager.refresh(self._data, force=state == "failed")
        self._last = time.monotonic()
