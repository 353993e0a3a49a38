"""Few threads of a save hash at a time, but none waits for a slow disk."""

from __future__ import annotations

import threading

import pytest

from metaflow_artifacts._transfer import few_readers
from metaflow_artifacts._transfer.few_readers import FewReaders


@pytest.mark.parametrize(
    ("threads", "found", "reads"),
    [(1, [], False), (2, [], True), (1, [False], True), (1, [False, True], False)],
)
def test_a_thread_waits_for_its_turn(
    monkeypatch: pytest.MonkeyPatch, threads: int, found: list[bool], reads: bool
) -> None:
    monkeypatch.setattr(few_readers, "_LONGEST_S", 600)
    turns, is_reading = FewReaders(threads), threading.Event()
    for is_new in found:
        turns.found(is_new)

    def read() -> None:
        with turns.turn():
            is_reading.set()

    second = threading.Thread(target=read)
    with turns.turn():
        second.start()
        assert is_reading.wait(60 if reads else 0.3) == reads
    second.join(60)
    assert is_reading.is_set()


def test_a_read_that_takes_long_holds_nobody_up() -> None:
    turns = FewReaders(1)
    with turns.turn(), turns.turn():
        pass
    with turns.turn():
        pass


def test_all_threads_read_where_nothing_has_to_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_readers, "_LONGEST_S", 600)
    turns, together = FewReaders(1), threading.Barrier(3)

    def read() -> None:
        with turns.turn():
            together.wait(60)

    others = [threading.Thread(target=read) for _ in range(2)]
    with turns.turn():
        for thread in others:
            thread.start()
        turns.found(False)
        together.wait(60)
    for thread in others:
        thread.join(60)
