"""An interrupt (KeyboardInterrupt) may come at any moment of a transfer, and costs other transfers nothing.

CPython handles a signal at the begin of a function and after a call of a C function. There a profile function is called
too, and what it raises is raised where the interrupt would be: so each of these moments is tried, one after the other.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from metaflow_artifacts._storage.job import Cancelled, current
from metaflow_artifacts._transfer.engine import Engine, Group
from metaflow_artifacts._transfer.width import Width

THREADS = 4


class Interrupt(KeyboardInterrupt):
    pass


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    """What is raised in a callback of the garbage collector is printed and goes nowhere."""
    gc.disable()
    yield
    gc.enable()


@contextmanager
def interrupted_at(number: int) -> Iterator[list[int]]:
    """Interrupt this thread at so many moments after the begin of the block. What it yields counts those left."""
    left = [number]

    def profile(frame: FrameType, event: str, arg: object) -> None:
        # So it is in a callback of a weak reference.
        if event in ("call", "c_return") and frame.f_globals["__name__"] not in (__name__, "_weakrefset"):
            left[0] -= 1
            if left[0] == 0:
                sys.setprofile(None)
                raise Interrupt

    sys.setprofile(profile)
    try:
        yield left
    finally:
        sys.setprofile(None)


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.001)


def one_call(shared: Engine, width: Width) -> None:
    shared.run([(60, lambda: None)], width)


def many_calls(shared: Engine, width: Width) -> None:
    shared.run([(60, lambda: None)] * 3, width)


def results_in_order(shared: Engine, width: Width) -> None:
    assert list(shared.ordered(lambda item: item, range(3), width)) == [0, 1, 2]


def calls_beside(shared: Engine, width: Width) -> None:
    with Group(shared, width) as group:
        assert [later.result() for later in [group.later(lambda: 1) for _ in range(3)]] == [1, 1, 1]


def calls_that_no_thread_makes(shared: Engine, width: Width) -> None:
    many_calls(shared, width)


def calls_of_calls(shared: Engine, width: Width) -> None:
    def outer() -> None:
        assert [later.result() for later in [group.later(lambda: 1) for _ in range(3)]] == [1, 1, 1]

    group = Group(shared, width)
    shared.run([(60, outer)] * 2, width, group)


def calls_of_calls_that_no_thread_makes(shared: Engine, width: Width) -> None:
    calls_of_calls(shared, width)


def cannot_start(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


WITHOUT_THREADS = [calls_that_no_thread_makes, calls_of_calls_that_no_thread_makes]
TRANSFERS = [one_call, many_calls, results_in_order, calls_beside, calls_of_calls, *WITHOUT_THREADS]


@pytest.mark.parametrize("beside", [0, 2])
@pytest.mark.parametrize("transfer", TRANSFERS, ids=lambda transfer: transfer.__name__)
def test_an_interrupt_at_any_moment_costs_other_transfers_nothing(
    transfer: Callable[[Engine, Width], None], beside: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither memory, nor threads, nor connections. Others that want the memory too make it wait."""
    shared, enough, failed = Engine(budget=100, most_threads=THREADS), threading.Event(), []

    def others() -> None:
        try:
            while not enough.is_set():
                shared.run([(60, lambda: time.sleep(0.0005))] * 2, Width(2))
                shared.run([(60, lambda: time.sleep(0.0005))], Width(1))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=others, daemon=True) for _ in range(beside)]
    for thread in threads:
        thread.start()
    if transfer in WITHOUT_THREADS:
        monkeypatch.setattr(threading.Thread, "start", cannot_start)
    number = 0
    while True:
        number += 1
        width = Width(2, 4)
        try:
            with interrupted_at(number) as left:
                transfer(shared, width)
        except Interrupt:
            pass
        assert current() is None, number
        # A thread says that a call is done just before it ceases to count as running.
        wait_until(lambda width=width: not width.running)  # type: ignore[misc]
        if left[0] > 0:
            break
    monkeypatch.undo()
    enough.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    wait_until(lambda: not shared._held)
    assert (failed, list(shared._tickets), list(shared._groups)) == ([], [], [])
    assert number > 30
    together = threading.Barrier(THREADS)

    def meet() -> None:
        together.wait(30)

    shared.run([(0, meet)] * THREADS, Width(THREADS))


def test_a_call_whose_transfer_is_interrupted_waits_for_no_other_call() -> None:
    waits, interrupted, ends = threading.Event(), threading.Event(), threading.Event()
    outcome: list[Any] = []

    def outer() -> None:
        later = group.later(lambda: None)
        waits.set()
        assert interrupted.wait(30)
        try:
            outcome.append(later.result())
        except Cancelled as error:
            outcome.append(error)
        ends.set()

    def transfer() -> None:
        with group:
            group.add(0, outer)
            assert waits.wait(30)
            raise Interrupt

    def stop() -> None:
        plain_stop()
        interrupted.set()

    group = Group(Engine(most_threads=1), Width(1))
    plain_stop, group._job.stop = group._job.stop, stop  # type: ignore[method-assign]
    with pytest.raises(Interrupt):
        transfer()
    assert ends.wait(30)
    assert [type(found) for found in outcome] == [Cancelled]
