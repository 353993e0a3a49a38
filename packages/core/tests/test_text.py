"""Sizes, counts, times and durations are printed in one way, whoever prints them."""

from __future__ import annotations

import pytest

from metaflow_artifacts._text import (
    count_text,
    duration_text,
    parse_period,
    period_text,
    seconds_of,
    size_text,
    time_text,
)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1000 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (10 << 20, "10 MiB"),
        (5_046_586_573, "4.7 GiB"),
        (5 << 40, "5 TiB"),
        (3 << 60, "3072 PiB"),
    ],
)
def test_sizes_have_units_of_1024(size: int, text: str) -> None:
    assert size_text(size) == text


def test_counts_have_a_plural_and_separate_thousands() -> None:
    assert [count_text(n, "checkpoint") for n in (0, 1, 1234)] == ["0 checkpoints", "1 checkpoint", "1,234 checkpoints"]
    assert count_text(2, "reply", "replies") == "2 replies"


def test_times_are_in_utc_to_the_second() -> None:
    assert time_text("2026-01-31T13:05:09.123456+02:00") == "2026-01-31 11:05:09"
    assert time_text("2026-01-31T13:05:09") == "2026-01-31 13:05:09"
    assert time_text("2026-01-31T13:05:09Z") == "2026-01-31 13:05:09"
    assert time_text(0) == "1970-01-01 00:00:00"
    assert seconds_of("1970-01-01T01:00:00+01:00") == 0


@pytest.mark.parametrize(
    ("date", "text"),
    [
        ("yesterday, or the day before", "yesterday, or the d"),
        ("0001-01-01T00:00:00+23:00", "0001-01-01 00:00:00"),
        ("9999-12-31T23:59:59-23:00", "9999-12-31 23:59:59"),
    ],
)
def test_a_date_that_is_no_moment_is_printed_as_it_is(date: str, text: str) -> None:
    assert time_text(date) == text
    with pytest.raises(ValueError, match=date[:9]):
        seconds_of(date)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.004, "0 s"),
        (0.12, "0.12 s"),
        (9.97, "10 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (4 * 86400 + 3 * 3600 + 5, "4 d 3 h"),
    ],
)
def test_durations_have_at_most_two_units(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("12h", 43200), ("7d", 604800), ("2w", 1209600), ("1.5h", 5400)],
)
def test_a_period_is_read_in_its_unit(text: str, seconds: float) -> None:
    assert parse_period(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "7 d", "7y", "\N{ARABIC-INDIC DIGIT ONE}d"])
def test_what_is_not_a_period_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no time"):
        parse_period(text)


def test_a_period_is_printed_as_it_is_read() -> None:
    assert [period_text(value) for value in (604800, 86400, 90, 0, 5400)] == ["7d", "1d", "90s", "0s", "90m"]
