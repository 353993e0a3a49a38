"""The parts of cards: what users write is escaped, and numbers are for people."""

from __future__ import annotations

import pytest

from metaflow_artifacts._mf.card import (
    Html,
    Mark,
    code,
    count_text,
    duration_text,
    facts,
    metadata_text,
    notice,
    page,
    section,
    size_text,
    table,
    tiles,
    time_text,
    timeline,
)

EVIL = '"><script>alert(1)</script>&'


def test_text_is_escaped_wherever_it_goes() -> None:
    parts = [
        section(EVIL, EVIL),
        facts([(EVIL, EVIL)]),
        tiles([(EVIL, EVIL)]),
        table([(EVIL, "text")], [[EVIL]]),
        notice(EVIL),
        code(EVIL),
        timeline(
            [Mark(0, 1, EVIL, EVIL), Mark(1, 0, "other", "", hollow=True)], 1, height_label=EVIL, hollow_label=EVIL
        ),
    ]
    whole = page(EVIL, [EVIL, *parts], live=False)
    assert "<script>alert" not in whole
    assert '""' not in whole
    assert whole.count("&lt;script&gt;alert(1)&lt;/script&gt;&amp;") == 17


def test_what_is_finished_goes_in_as_it_is() -> None:
    assert "<b>x</b>" in section("title", Html("<b>x</b>"))
    assert "<code>a</code>" in facts([("name", code("a"))])


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (12_345, "12.3 kB"),
        (999_499, "999 kB"),
        (999_600, "1.00 MB"),
        (4_000_000_000, "4.00 GB"),
        (3.2e15, "3200 TB"),
    ],
)
def test_sizes(size: float, text: str) -> None:
    assert size_text(size) == text


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
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_times_are_in_utc() -> None:
    assert time_text("2026-01-31T13:05:09.123456+02:00") == "2026-01-31 11:05:09 UTC"
    assert time_text("2026-01-31T13:05:09") == "2026-01-31 13:05:09 UTC"
    assert time_text(0) == "1970-01-01 00:00:00 UTC"


def test_counts() -> None:
    assert [count_text(n, "checkpoint") for n in (1, 1234)] == ["1 checkpoint", "1,234 checkpoints"]


def test_metadata_is_one_line_of_limited_length() -> None:
    metadata = {"epoch": 3, "loss": 0.123456789, "tags": ["a", 1], "none": None, "text": "a b"}
    assert metadata_text(metadata) == 'epoch 3, loss 0.123457, tags ["a", 1], none null, text a b'
    assert len(metadata_text({str(n): "x" * 1000 for n in range(1000)}, limit=50)) == 51
    assert metadata_text({}) == ""


@pytest.mark.parametrize("length", [0, 0.3, 7, 100, 5000, 90_000, 40 * 86400])
def test_a_timeline_of_any_length_has_a_few_ticks(length: float) -> None:
    drawn = timeline([], length, height_label="size")
    assert 2 <= drawn.count("<text") <= 9
