"""The engines of this process, and which of them a thread uses.

All transfers share one engine, and so its threads and its memory. Saves in the background have another one, which
leaves the processor to the training (decision 14). A forked child begins with engines of its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from metaflow_artifacts._transfer.engine import BUDGET_BYTES, MOST_THREADS, Engine, Manners

__all__ = ["engine", "in_background"]

_local = threading.local()


def _belong_to(engine: Engine) -> None:
    """Let this thread use an engine: what a call transfers is done by the engine that makes the call."""
    _local.engine = engine


def _new_engine() -> Engine:
    return Engine(BUDGET_BYTES, MOST_THREADS, Manners(), _belong_to)


def _new_background_engine() -> Engine:
    """The engine for saves in the background; its memory is in addition to that of the other one.

    Each block that is read, hashed or sent takes the interpreter's lock from the training: so blocks are large, and few
    threads work. Their priority is that of others: a thread that holds this lock and waits for a processor holds up the
    training.
    """
    manners = Manners(block_bytes=4 << 20, send_bytes=1 << 20, fills_cache=True)
    return Engine(64 << 20, 4, manners, _belong_to)


_engine, _background = _new_engine(), _new_background_engine()


def _renew() -> None:
    global _engine, _background, _local
    _local = threading.local()
    _engine, _background = _new_engine(), _new_background_engine()


os.register_at_fork(after_in_child=_renew)


def engine() -> Engine:
    """The engine that this thread belongs to; that of this process for all others."""
    return getattr(_local, "engine", None) or _engine


@contextmanager
def in_background() -> Iterator[None]:
    """What this thread transfers in the block leaves the processor to others: few threads, large blocks."""
    before = getattr(_local, "engine", None)
    _local.engine = _background
    try:
        yield
    finally:
        _local.engine = before
