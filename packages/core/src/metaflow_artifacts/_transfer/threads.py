"""Calls in several threads, for callers that move little."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._transfer.engine import engine
from metaflow_artifacts._transfer.width import Width, width_of

__all__ = ["in_threads", "ordered"]

_T = TypeVar("_T")
_R = TypeVar("_R")


def in_threads(threads: int, calls: Iterable[Callable[[], None]]) -> None:
    """Make the calls, at most `threads` at once. Raises the first error; calls that have not begun are not made."""
    engine().run(((0, call) for call in calls), Width(threads))


def ordered(storage: Storage, call: Callable[[_T], _R], items: Iterable[_T], most: int | None = None) -> Iterator[_R]:
    """The results of a call that makes small requests to `storage`, for each item, in order.

    At most `most` calls run at once, and results of up to twice as many are held. Raises the first error.
    """
    width = width_of(storage, "small requests") if most is None else Width(min(most, storage.threads))
    return engine().ordered(call, items, width)
