"""Many short calls in several threads."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from metaflow_artifacts._storage.job import Job, current, work_again_for

__all__ = ["for_each"]

_T = TypeVar("_T")


def for_each(call: Callable[[_T], object], items: Iterable[_T], threads: int) -> None:
    """Make the call for each item, `threads` calls at once, and raise the first error.

    After an error no further call begins, and those that have begun are waited for. An interrupt (KeyboardInterrupt)
    also shuts their sockets. The caller's thread makes calls too, so this also works where no thread can be started any
    more, such as at the interpreter's exit.
    """
    before = current()
    job = before or Job()
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
                with job.working():
                    call(item)
            except BaseException as error:
                with lock:
                    errors.append(error)
                if not isinstance(error, Exception):
                    job.close()
                return

    others = [threading.Thread(target=work, daemon=True) for _ in range(threads - 1)]
    started = []
    with contextlib.suppress(RuntimeError):
        for thread in others:
            thread.start()
            started.append(thread)
    try:
        work()
        for thread in started:
            thread.join()
    except BaseException:
        job.close()
        work_again_for(before)
        raise
    if errors:
        try:
            raise errors[0]
        finally:
            # Break the reference cycle of error, traceback, frame and list, which would keep buffers alive.
            errors.clear()
