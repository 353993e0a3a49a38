"""Calls in several threads, for callers that need no more of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._transfer.current_engine import engine
from metaflow_artifacts._transfer.engine import Call, Group
from metaflow_artifacts._transfer.width import Width, width_of

__all__ = ["beside", "in_threads", "ordered"]

_T = TypeVar("_T")
_R = TypeVar("_R")


def in_threads(threads: int, calls: Iterable[Call]) -> None:
    """Make the calls, at most `threads` at once, each with the bytes of memory that it needs.

    Raises the first error; calls that have not begun are not made.
    """
    engine().run(calls, Width(threads))


def beside(threads: int) -> Group:
    """A group whose `later` makes a call beside the one that wants it. At most `threads` run at once."""
    return Group(engine(), Width(threads))


def ordered(storage: Storage, call: Callable[[_T], _R], items: Iterable[_T], most: int | None = None) -> Iterator[_R]:
    """The results of a call that makes small requests to `storage`, for each item, in order.

    At most `most` calls run at once, and results of up to twice as many are held. Raises the first error.
    """
    width = width_of(storage, "small requests") if most is None else Width(min(most, storage.threads))

    def reporting(item: _T) -> _R:
        result = call(item)
        width.moved(0)
        return result

    return engine().ordered(reporting, items, width)
