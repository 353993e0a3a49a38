"""The parts of cards: the text of users is escaped, and long content is cut."""

from __future__ import annotations

import pytest

from metaflow_artifacts._mf.card import (
    Html,
    TimelinePoint,
    code,
    facts,
    metadata_text,
    notice,
    page,
    section,
    table,
    task_heading,
    tiles,
    timeline,
)

EVIL = '"><script>alert(1)</script>&'


def test_every_part_escapes_the_text_that_it_is_given() -> None:
    parts = [
        section(EVIL, EVIL),
        facts([(EVIL, EVIL)]),
        tiles([(EVIL, EVIL)]),
        table([(EVIL, "text")], [[EVIL]]),
        notice(EVIL),
        code(EVIL),
        timeline(
            [TimelinePoint(0, 1, EVIL, EVIL), TimelinePoint(1, 0, "other", "", hollow=True)],
            1,
            height_label=EVIL,
            hollow_label=EVIL,
        ),
    ]
    whole = page(EVIL, [EVIL, *parts], live=False)
    assert "<script>alert" not in whole
    assert '""' not in whole
    assert whole.count("&lt;script&gt;alert(1)&lt;/script&gt;&amp;") == 17


def test_finished_markup_is_not_escaped_again() -> None:
    assert "<b>x</b>" in section("title", Html("<b>x</b>"))
    assert "<code>a</code>" in facts([("name", code("a"))])


def test_a_task_heading_names_the_step_the_attempt_and_the_time() -> None:
    data = {"pathspec": "Flow/1/train/2", "attempt": 3, "now": 0, "state": "running"}
    running = task_heading("Checkpoints", data, "a detail")
    assert "Checkpoints of train" in running
    assert "Flow/1/train/2, attempt 3, a detail, as of 1970-01-01 00:00:00 UTC" in running
    assert "attempt 3, ended 1970-01-01 00:00:00 UTC" in task_heading("Checkpoints", {**data, "state": "done"})


def test_metadata_is_one_line_of_limited_length() -> None:
    metadata = {"epoch": 3, "loss": 0.123456789, "tags": ["a", 1], "none": None, "text": "a b"}
    assert metadata_text(metadata) == 'epoch 3, loss 0.123457, tags ["a", 1], none null, text a b'
    assert len(metadata_text({str(n): "x" * 1000 for n in range(1000)}, limit=50)) == 51
    assert metadata_text({}) == ""


@pytest.mark.parametrize("length", [0, 0.3, 7, 100, 5000, 90_000, 40 * 86400])
def test_a_timeline_of_any_length_has_a_few_ticks(length: float) -> None:
    drawn = timeline([], length, height_label="size")
    assert 2 <= drawn.count("<text") <= 9
