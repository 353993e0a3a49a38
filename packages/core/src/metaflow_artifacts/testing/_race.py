"""Writers that race for the same keys, in threads and in processes."""

from __future__ import annotations

import multiprocessing
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from metaflow_artifacts._storage.base import Storage

__all__ = ["race_in_processes", "race_in_threads"]

_TIMEOUT_S = 120


def race_in_threads(storage: Storage, prefix: str, writers: int, rounds: int) -> list[tuple[str, bytes]]:
    """All writers put each of the keys `<prefix>/<round>` at the same time. Returns key and content of the winners."""
    return _race(storage, prefix, writers, rounds, threading.Barrier(writers))


def race_in_processes(
    opener: Callable[[], Storage], prefix: str, processes: int, threads: int, rounds: int
) -> list[tuple[str, bytes]]:
    """As `race_in_threads`, with `threads` threads in each of several processes, which open the storage themselves."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes * threads)
    results: Any = context.SimpleQueue()
    workers = [
        context.Process(target=_worker, args=(opener, prefix, threads, rounds, barrier, results))
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
            worker.join(_TIMEOUT_S)
            worker.kill()
            worker.join()
    return wins


def _worker(opener: Callable[[], Storage], prefix: str, threads: int, rounds: int, barrier: Any, results: Any) -> None:
    try:
        results.put(_race(opener(), prefix, threads, rounds, barrier))
    except Exception as error:
        results.put(f"{type(error).__name__}: {error}")


def _race(storage: Storage, prefix: str, threads: int, rounds: int, barrier: Any) -> list[tuple[str, bytes]]:
    def write(_: int) -> list[tuple[str, bytes]]:
        mine = uuid.uuid4().hex.encode()
        wins = []
        try:
            for number in range(rounds):
                key = f"{prefix}/{number}"
                barrier.wait(_TIMEOUT_S)
                if storage.put_if_absent(key, mine):
                    wins.append((key, mine))
        except BaseException:
            barrier.abort()
            raise
        return wins

    with ThreadPoolExecutor(threads) as pool:
        return [win for wins in pool.map(write, range(threads)) for win in wins]
