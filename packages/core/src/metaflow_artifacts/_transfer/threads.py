"""Calls in several threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

__all__ = ["in_threads"]


def in_threads(threads: int, calls: Iterator[Callable[[], None]]) -> None:
    """Make the calls, at most `threads` at once. Raises the first error; calls that have not begun are not made."""
    with ThreadPoolExecutor(threads, thread_name_prefix="metaflow-artifacts") as pool:
        running: set[Future[None]] = set()
        try:
            for call in calls:
                if len(running) >= 2 * threads:
                    running = _settle(running, whole=False)
                running.add(pool.submit(call))
            _settle(running, whole=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _settle(running: set[Future[None]], whole: bool) -> set[Future[None]]:
    done, pending = wait(running, return_when=FIRST_EXCEPTION if whole else FIRST_COMPLETED)
    for future in done:
        future.result()
    return pending
