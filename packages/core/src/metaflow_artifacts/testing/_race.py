"""Writers that race for the same keys, in threads and in processes of their own."""

from __future__ import annotations

import multiprocessing
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from metaflow_artifacts._storage.base import Storage

__all__ = ["race_in_processes", "race_in_threads"]

_SECONDS = 120


def race_in_threads(storage: Storage, place: str, writers: int, rounds: int) -> list[tuple[str, bytes]]:
    """All writers put each of the keys `<place>/<round>` at the same time; the key and content of each that won."""
    return _race(storage, place, writers, rounds, threading.Barrier(writers))


def race_in_processes(
    opener: Callable[[], Storage], place: str, processes: int, threads: int, rounds: int
) -> list[tuple[str, bytes]]:
    """As `race_in_threads`, of `threads` threads in each of some processes that open the storage themselves."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes * threads)
    results: Any = context.SimpleQueue()
    workers = [
        context.Process(target=_worker, args=(opener, place, threads, rounds, barrier, results))
        for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    try:
        wins: list[tuple[str, bytes]] = []
        for _ in workers:
            outcome = results.get()
            if isinstance(outcome, str):
                raise RuntimeError(outcome)
            wins.extend(outcome)
    finally:
        for worker in workers:
            worker.join(_SECONDS)
            worker.kill()
            worker.join()
    return wins


def _worker(opener: Callable[[], Storage], place: str, threads: int, rounds: int, barrier: Any, results: Any) -> None:
    try:
        results.put(_race(opener(), place, threads, rounds, barrier))
    except Exception as error:
        results.put(f"{type(error).__name__}: {error}")


def _race(storage: Storage, place: str, threads: int, rounds: int, barrier: Any) -> list[tuple[str, bytes]]:
    def write(_: int) -> list[tuple[str, bytes]]:
        mine = uuid.uuid4().hex.encode()
        wins = []
        try:
            for number in range(rounds):
                key = f"{place}/{number}"
                barrier.wait(_SECONDS)
                if storage.put_if_absent(key, mine):
                    wins.append((key, mine))
        except BaseException:
            barrier.abort()
            raise
        return wins

    with ThreadPoolExecutor(threads) as pool:
        return [win for wins in pool.map(write, range(threads)) for win in wins]
