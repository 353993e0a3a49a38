"""The engine: one budget of memory, no deadlock, forks, the end of the interpreter."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from metaflow_artifacts._storage.job import Cancelled, check
from metaflow_artifacts._transfer.current_engine import engine
from metaflow_artifacts._transfer.engine import BUDGET_BYTES, Call, Engine, Group
from metaflow_artifacts._transfer.waiting import Changes
from metaflow_artifacts._transfer.width import Width


class Ledger:
    """What calls hold at the moment, and the most that they held at once."""

    def __init__(self) -> None:
        self.held = self.most = self.running = self.most_running = self.made = 0
        self._lock = threading.Lock()

    def call(self, need: int, inside: Callable[[], None] = lambda: None) -> Call:
        def run() -> None:
            self._add(need, 1)
            inside()
            self._add(-need, -1)

        return need, run

    def _add(self, need: int, one: int) -> None:
        with self._lock:
            self.held += need
            self.running += one
            self.made += one > 0
            self.most = max(self.most, self.held)
            self.most_running = max(self.most_running, self.running)


def in_own_threads(calls: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_many_jobs_together_never_hold_more_than_the_budget() -> None:
    """Jobs of one call, which the caller's thread makes, and of many; needs up to the whole budget."""
    shared, ledger, numbers = Engine(budget=100, most_threads=16), Ledger(), random.Random(1)
    jobs = [[ledger.call(numbers.randint(0, 100)) for _ in range(numbers.choice((1, 40)))] for _ in range(12)]
    in_own_threads([lambda job=job: shared.run(job, Width(6)) for job in jobs])  # type: ignore[misc]
    assert ledger.made == sum(map(len, jobs))
    assert ledger.most <= 100
    assert shared._held == 0


def test_a_call_that_needs_more_than_the_budget_holds_it_alone() -> None:
    shared, ledger = Engine(budget=100, most_threads=8), Ledger()
    beside: list[int] = []
    large = [ledger.call(250, lambda: beside.append(ledger.held - 250)) for _ in range(5)]
    small = [[ledger.call(40) for _ in range(50)] for _ in range(3)]
    in_own_threads([lambda job=job: shared.run(job, Width(6)) for job in [large, *small]])  # type: ignore[misc]
    assert beside == [0] * 5
    assert ledger.made == 155


def test_a_single_call_is_made_by_the_caller_and_starts_no_thread() -> None:
    shared = Engine()
    made_by: list[threading.Thread] = []
    shared.run([(1, lambda: made_by.append(threading.current_thread()))], Width(8))
    shared.run([], Width(8))
    assert list(shared.ordered(lambda item: item + 1, [1], Width(8))) == [2]
    assert made_by == [threading.current_thread()]
    assert shared._threads == 0


def test_no_more_calls_run_at_once_than_the_width_allows_over_all_jobs() -> None:
    shared, ledger, width = Engine(), Ledger(), Width(3)
    jobs = [[ledger.call(0, lambda: os.sched_yield()) for _ in range(60)] for _ in range(4)]
    in_own_threads([lambda job=job: shared.run(job, width) for job in jobs])  # type: ignore[misc]
    assert ledger.most_running <= 3
    assert width.running == 0


def test_as_many_calls_run_from_the_start_as_the_width_allows() -> None:
    """None of them has to end before the last one begins."""
    together = threading.Barrier(24)

    def call() -> None:
        together.wait(240)

    Engine().run([(1, call) for _ in range(24)], Width(24))


def test_a_width_that_grows_during_the_last_calls_gets_its_threads() -> None:
    width, together = Width(2), threading.Barrier(6)

    def call() -> None:
        width.now = 6
        together.wait(240)

    Engine().run([(1, call) for _ in range(6)], width)


def test_what_waits_begins_as_soon_as_the_width_grows_and_not_only_when_a_call_ends() -> None:
    seconds = iter(range(100))
    width = Width(2, 4, clock=lambda: float(next(seconds)), quick=True)
    all_wait, first_two, all_four = threading.Event(), threading.Barrier(2), threading.Barrier(4)

    def call(number: int) -> None:
        if number < 2:
            first_two.wait(30)
        if number == 0:
            all_wait.wait(30)
            while width.now == 2:
                width.moved(1)
        all_four.wait(30)

    with Group(Engine(), width) as group:
        for number in range(4):
            group.add(1, partial(call, number))
        all_wait.set()


def test_a_transfer_long_after_a_server_asked_to_slow_down_has_all_connections_again() -> None:
    time = [0.0]
    width = Width(4, 8, clock=lambda: time[0])
    width.slow_down()
    assert width.now == 2
    time[0] = 600
    together = threading.Barrier(4)

    def call() -> None:
        together.wait(30)

    Engine().run([(0, call)] * 4, width)
    assert width.now == 4


def test_calls_of_a_call_are_made_in_its_thread() -> None:
    shared = Engine(budget=10, most_threads=2)
    seen: list[bool] = []

    def outer() -> None:
        mine = threading.current_thread()
        # If these asked for memory or for a thread, all would wait for each other.
        shared.run([(10, lambda: seen.append(threading.current_thread() is mine)) for _ in range(3)], Width(4))
        seen.extend(shared.ordered(lambda _: threading.current_thread() is mine, range(3), Width(4)))

    shared.run([(10, outer) for _ in range(8)], Width(4))
    assert seen == [True] * 48


def test_results_come_in_order_while_later_ones_are_worked_on() -> None:
    shared, gate = Engine(), threading.Event()

    def call(item: int) -> int:
        # The first one ends after a later one.
        if item == 0:
            assert gate.wait(240)
        elif item == 5:
            gate.set()
        return item

    assert list(shared.ordered(call, range(100), Width(8))) == list(range(100))


def test_the_first_error_is_raised_and_nothing_begins_after_it() -> None:
    shared, made = Engine(), []

    def fail() -> None:
        raise ValueError("broken")

    def calls() -> Iterator[Call]:
        yield 0, fail
        # More than can be made before a thread that was interrupted in the first call goes on.
        for number in range(1_000_000):
            yield 0, lambda number=number: made.append(number)  # type: ignore[misc]

    with pytest.raises(ValueError, match="broken"):
        shared.run(calls(), Width(4))
    assert len(made) < 1_000_000
    assert (shared._held, len(shared._groups)) == (0, 0)
    assert list(shared.ordered(str, range(50), Width(4))) == [str(number) for number in range(50)]


def test_a_call_asks_for_no_other_one_after_an_error() -> None:
    """Nobody would wait for it: it would be made after the transfer has ended."""
    group, begun, made, found = Group(Engine(most_threads=2), Width(2)), threading.Event(), [], []

    def asks() -> None:
        begun.set()
        while not group._is_dropped:
            time.sleep(0.001)
        later = group.later(lambda: made.append(1))
        try:
            later.result()
        except ValueError as error:
            found.append(error)

    def fails() -> None:
        assert begun.wait(30)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        group._engine.run([(0, asks), (0, fails)], group.width, group)
    assert (len(found), made, list(group._engine._groups)) == (1, [], [])


def test_an_error_ends_the_pauses_of_the_others() -> None:
    """A call that waits before its next attempt is told that nobody needs it any more."""
    shared, waiting, stopped = Engine(), threading.Barrier(2), []

    def wait() -> None:
        waiting.wait(240)
        while True:
            try:
                check()
            except Cancelled:
                stopped.append(1)
                raise

    def fail() -> None:
        waiting.wait(240)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        shared.run([(0, wait), (0, fail)], Width(2))
    assert stopped == [1]


def test_a_caller_takes_a_call_back_that_no_thread_has_begun() -> None:
    shared = Engine(most_threads=1)
    here: list[object] = []

    def outer(group: Group) -> None:
        later = group.later(threading.current_thread)
        here.append(later.result() is threading.current_thread())

    with Group(shared, Width(1)) as group:
        shared.run([(0, lambda: outer(group)) for _ in range(4)], Width(2))
    assert here == [True] * 4


def test_a_call_that_holds_memory_gets_its_result_while_another_caller_waits_for_memory() -> None:
    """So does a download from the Hub, whose calls have their chunks stored beside them."""
    shared, holds, results = Engine(budget=100, most_threads=1), threading.Event(), []

    def outer() -> None:
        holds.set()
        while not shared._tickets:
            time.sleep(0.001)
        results.append(group.later(lambda: "stored").result())

    def transfer() -> None:
        shared.run([(60, outer)] * 2, Width(1))

    def save() -> None:
        while len(results) < 2:
            shared.run([(60, lambda: None)], Width(1))

    group = Group(shared, Width(1))
    threads = [threading.Thread(target=call, daemon=True) for call in (transfer, save)]
    for thread in threads:
        thread.start()
        assert holds.wait(30)
    for thread in threads:
        thread.join(30)
    assert results == ["stored"] * 2


@pytest.mark.parametrize("seed", range(8))
def test_transfers_of_all_kinds_at_once_come_to_their_end(seed: int) -> None:
    numbers = random.Random(seed)
    shared, done = Engine(budget=100, most_threads=numbers.choice((1, 2, 4, 64))), []

    def nap() -> None:
        time.sleep(0.0005)

    def outer(group: Group) -> None:
        for later in [group.later(nap) for _ in range(3)]:
            later.result()

    def transfers(numbers: random.Random) -> None:
        for _ in range(8):
            width, count = Width(numbers.choice((1, 2, 6, 24))), numbers.choice((1, 2, 5, 30))
            shared.run([(numbers.randint(0, 120), nap) for _ in range(count)], width)
            assert list(shared.ordered(lambda item: item, range(count), width)) == list(range(count))
            with Group(shared, width) as group:
                for _ in range(count):
                    group.add(numbers.randint(0, 50), partial(outer, group))
        done.append(1)

    each = [random.Random(10 * seed + number) for number in range(4)]
    threads = [threading.Thread(target=transfers, args=(numbers,), daemon=True) for numbers in each]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 60
    for thread in threads:
        thread.join(max(0, end - time.monotonic()))
    assert len(done) == 4
    assert (shared._held, list(shared._tickets), list(shared._groups)) == (0, [], [])


def test_a_thread_that_cannot_be_started_holds_up_nobody_who_has_counted_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shared, made, waits = Engine(most_threads=2), [], threading.Event()
    plain_start, plain_next = threading.Thread.start, Changes.next

    def start(thread: threading.Thread) -> None:
        if thread.name != "metaflow-artifacts":
            plain_start(thread)
            return
        if threading.current_thread() is first:
            # The other transfer waits for this thread, since none could be started for itself.
            plain_start(other)
            assert waits.wait(240)
        raise RuntimeError("can't start new thread")

    def note(changes: Changes) -> threading.Lock:
        if threading.current_thread() is other:
            waits.set()
        return plain_next(changes)

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(Changes, "next", note)
    calls = [(0, lambda: made.append(threading.current_thread()))] * 3
    first, other = (threading.Thread(target=shared.run, args=(calls, Width(1)), daemon=True) for _ in range(2))
    first.start()
    for thread in (first, other):
        thread.join(60)
    assert made.count(first) == made.count(other) == 3


def test_a_forked_child_begins_afresh(tmp_path: Path) -> None:
    gate, begun = threading.Event(), threading.Event()

    def block() -> None:
        begun.set()
        assert gate.wait(240)

    # Threads of the parent hold the whole budget while it forks.
    parent = threading.Thread(target=lambda: engine().run([(BUDGET_BYTES, block)] * 3, Width(2)))
    parent.start()
    assert begun.wait(240)
    child = os.fork()
    if not child:
        signal.alarm(200)
        numbers = engine().ordered(lambda number: number * 2, range(100), Width(4))
        engine().run([(BUDGET_BYTES, lambda: None)] * 2, Width(2))
        os._exit(0 if list(numbers) == list(range(0, 200, 2)) else 1)
    _, status = os.waitpid(child, 0)
    gate.set()
    parent.join()
    assert os.waitstatus_to_exitcode(status) == 0


def test_where_no_thread_can_be_started_the_caller_makes_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    shared, made = Engine(budget=10), []
    shared.run([(25, lambda: made.append(threading.current_thread())) for _ in range(200)], Width(4))
    assert made == [threading.current_thread()] * 200
    assert list(shared.ordered(str, range(50), Width(4))) == [str(number) for number in range(50)]


AT_EXIT = """
import atexit, sys, threading
from metaflow_artifacts import open_store

def save():
    print(open_store(sys.argv[1]).save_model(sys.argv[2])["key"])

if sys.argv[3] == "atexit":
    atexit.register(save)
else:
    def after_the_main_thread():
        threading.main_thread().join()
        save()
    threading.Thread(target=after_the_main_thread).start()
"""


@pytest.mark.parametrize("when", ["atexit", "thread"])
def test_a_save_at_the_end_of_the_interpreter_is_stored(tmp_path: Path, when: str) -> None:
    from metaflow_artifacts import open_store

    content = os.urandom(40 << 20)
    (tmp_path / "weights").write_bytes(content)
    command = [sys.executable, "-c", AT_EXIT, str(tmp_path / "store"), str(tmp_path / "weights"), when]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    open_store(tmp_path / "store").load(done.stdout.strip(), tmp_path / "out")
    assert (tmp_path / "out" / "weights").read_bytes() == content
