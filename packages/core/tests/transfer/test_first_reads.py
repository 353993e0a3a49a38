"""Few threads of a save hash at a time, but none waits for a slow disk."""

from __future__ import annotations

import threading

import pytest

from metaflow_artifacts._transfer import first_reads
from metaflow_artifacts._transfer.first_reads import FirstReads


@pytest.mark.parametrize(("threads", "reads"), [(1, False), (2, True)])
def test_a_thread_waits_for_its_turn(monkeypatch: pytest.MonkeyPatch, threads: int, reads: bool) -> None:
    monkeypatch.setattr(first_reads, "_LONGEST_S", 600)
    turns, is_reading = FirstReads(threads), threading.Event()

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
    turns = FirstReads(1)
    with turns.turn(), turns.turn():
        pass
    with turns.turn():
        pass
