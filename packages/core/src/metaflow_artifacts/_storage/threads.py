"""Many small calls at once, in threads that live as long as one such run."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

__all__ = ["for_each"]

_T = TypeVar("_T")


def for_each(call: Callable[[_T], object], items: Iterable[_T], threads: int) -> None:
    """Make the call for each item, `threads` calls at once, and raise the first error.

    After an error no further call begins; those under way are waited for. The caller's own thread takes part, so that
    all is done where no thread can be started any more, such as at the interpreter's end.
    """
    remaining = iter(items)
    errors: list[BaseException] = []
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if errors:
                    return
                try:
                    item = next(remaining)
                except StopIteration:
                    return
            try:
                call(item)
            except BaseException as error:
                with lock:
                    errors.append(error)
                return

    others = [threading.Thread(target=work, daemon=True) for _ in range(threads - 1)]
    started = []
    with contextlib.suppress(RuntimeError):
        for thread in others:
            thread.start()
            started.append(thread)
    work()
    for thread in started:
        thread.join()
    if errors:
        try:
            raise errors[0]
        finally:
            # Break the cycle error, traceback, frame, list.
            errors.clear()
