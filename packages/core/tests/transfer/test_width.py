"""How many connections a transfer uses, found on links that a clock of our own simulates."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._storage.s3 import S3Storage
from metaflow_artifacts._transfer.threads import ordered
from metaflow_artifacts._transfer.width import Width, width_of

STEP_S = 0.05


class Link:
    """A link that moves `rate(connections)` bytes a second, with all connections busy."""

    def __init__(self, rate: Callable[[int], float], start: int = 24, most: int = 64, *, quick: bool = False) -> None:
        self.rate = rate
        self.time = 0.0
        self.width = Width(start, most, clock=lambda: self.time, quick=quick)
        self.widths: list[int] = []
        """The widths in turn."""

    def passes(self, seconds: float, idle: int = 0) -> None:
        """Time passes while `idle` of the connections have nothing to do."""
        for _ in range(round(seconds / STEP_S)):
            self.width.running = self.width.now - idle
            self.time += STEP_S
            self.width.moved(round(self.rate(self.width.running) * STEP_S))
            if not self.widths or self.widths[-1] != self.width.now:
                self.widths.append(self.width.now)


def test_it_grows_to_the_most_while_each_connection_adds_as_much() -> None:
    link = Link(lambda connections: connections * 2e6)
    link.passes(20)
    assert link.widths == sorted(link.widths)
    assert link.widths[-1] == 64


def test_saves_have_no_more_connections_in_their_first_second() -> None:
    """A slow server would have more chunks at once than it stores while a client waits for an answer."""
    link = Link(lambda connections: connections * 2e6)
    link.passes(1)
    assert link.widths == [24]


def test_a_slow_link_has_the_most_connections_for_loads_within_a_second() -> None:
    link = Link(lambda connections: connections * 2e6, quick=True)
    link.passes(1.3)
    assert link.widths == [24, 48, 64]
    # They move more, so there is no reason to look for fewer.
    link.passes(20)
    assert link.widths == [24, 48, 64]


def test_a_burst_at_the_beginning_does_not_end_the_growth() -> None:
    link = Link(lambda connections: connections * (2e6 if link.time > 0.3 else 2e7), quick=True)
    link.passes(30)
    assert link.width.now == 64


def test_a_link_that_moves_nothing_has_no_more_connections() -> None:
    link = Link(lambda connections: 0, quick=True)
    link.passes(30)
    assert link.widths == [24]


def test_it_stops_growing_where_the_link_is_full() -> None:
    link = Link(lambda connections: min(connections, 40) * 2e6)
    link.passes(60)
    assert 36 <= link.width.now < 64
    assert max(link.widths) <= 64


def test_it_narrows_where_fewer_move_as_much() -> None:
    link = Link(lambda connections: min(connections, 6) * 2e6)
    link.passes(30)
    assert 6 <= link.width.now <= 8


def test_it_never_tries_fewer_than_four() -> None:
    link = Link(lambda connections: 2e6)
    link.passes(30)
    assert link.width.now == min(link.widths) == 4


def test_a_transfer_that_does_not_use_all_connections_says_nothing_about_them() -> None:
    link = Link(lambda connections: connections * 2e6)
    link.passes(60, idle=3)
    assert link.widths == [24]


def test_it_searches_again_after_a_while() -> None:
    full = [6]
    link = Link(lambda connections: min(connections, full[0]) * 2e6)
    link.passes(30)
    full[0] = 100
    link.passes(120)
    assert link.width.now == 64


def test_servers_that_ask_to_slow_down_get_half_as_many_once_for_all_that_are_told() -> None:
    link = Link(lambda connections: connections * 2e6)
    for _ in range(24):
        link.width.slow_down()
    assert link.width.now == 12
    link.passes(2)
    link.width.slow_down()
    assert link.width.now == 6
    # Then there is quiet for a while, before more are tried.
    link.passes(8)
    assert link.width.now == 6
    link.passes(60)
    assert link.width.now == 64


def test_short_transfers_long_after_a_bad_minute_have_as_many_as_the_first() -> None:
    link = Link(lambda connections: connections * 2e6)
    for _ in range(10):
        link.width.slow_down()
        link.passes(2)
    link.width.running = 0
    link.width.begin()
    # A minute has not passed yet.
    assert link.width.now == 1
    link.time += 600
    link.width.begin()
    assert link.width.now == 24


def test_calls_that_move_few_bytes_have_as_many_as_at_first_again() -> None:
    link = Link(lambda connections: 0)
    for _ in range(10):
        link.width.slow_down()
        link.passes(2)
    assert link.width.now == 1
    link.passes(30)
    assert link.width.now == max(link.widths) == 24


def test_small_requests_report_that_they_are_done(storage: Storage) -> None:
    width = width_of(storage, "small requests")
    time = [0.0]
    width._clock = lambda: time[0]
    for _ in range(10):
        width.slow_down()
        time[0] += 2

    def call(number: int) -> int:
        time[0] += 1
        return number

    assert list(ordered(storage, call, range(200))) == list(range(200))
    assert width.now > 1


def test_what_was_found_stays_for_the_next_transfer() -> None:
    link = Link(lambda connections: min(connections, 6) * 2e6)
    link.passes(30)
    found = link.width.now
    link.width.running = 0
    link.time += 600
    link.width.begin()
    assert link.width.now == found < 24


def test_the_time_between_two_transfers_does_not_count() -> None:
    link = Link(lambda connections: connections * 2e6, quick=True)
    for _ in range(40):
        link.passes(0.2)
        link.width.running = 0
        link.time += 600
        link.width.begin()
    # None of them was long enough to tell anything.
    assert link.widths == [24]
    link.passes(1.3)
    assert link.width.now == 64


def test_it_gets_down_to_one_connection() -> None:
    link = Link(lambda connections: connections * 2e6)
    for _ in range(10):
        link.width.slow_down()
        link.passes(2)
    assert link.width.now == 1


def test_a_fixed_width_stays() -> None:
    link = Link(lambda connections: connections * 2e6, start=2, most=0)
    link.width.slow_down()
    link.passes(60)
    assert link.widths == [2]


@pytest.fixture
def storage() -> Storage:
    return S3Storage("s3://bucket/prefix")


def test_what_one_transfer_has_found_is_where_the_next_begins(storage: Storage) -> None:
    width_of(storage, "save").slow_down()
    assert width_of(storage, "save").now == 12
    assert width_of(storage, "load").now == 24
    assert width_of(S3Storage("s3://bucket/prefix"), "save").now == 24
