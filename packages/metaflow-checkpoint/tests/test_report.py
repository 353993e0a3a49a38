"""The data of the card, and the page that is made of it."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

# Metaflow imports the extension, not the other way around.
import metaflow  # noqa: F401
import pytest

from metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.report import Report


def save(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "key": f"key of {number}",
        "name": "mfchckpt",
        "version_id": number,
        "pathspec": "Flow/1/train/2",
        "attempt": 0,
        "created_on": "2026-01-31T13:05:09+00:00",
        "size": 3 << 30,
        "metadata": {"epoch": number},
        "stored": 1 << 20,
        "seconds": 0.25,
        "latest": True,
        **fields,
    }


@pytest.fixture
def report() -> Report:
    return Report("Flow/1/train/2", 0, "eager")


def page(report: Report, state: str = "running") -> str:
    return "".join(report.parts(state))


def test_a_task_that_loaded_nothing_says_why(report: Report) -> None:
    report.note_loaded("no run has saved a checkpoint at this place", None, None, ["a <warning>"])
    html = page(report)
    assert "Loaded: nothing" in html
    assert "no run has saved a checkpoint at this place" in html
    assert "a &lt;warning&gt;" in html
    assert "load_policy=&#x27;eager&#x27;" in html


def test_a_task_that_loaded_a_checkpoint_says_which_and_how_old_it_is(report: Report) -> None:
    an_hour_earlier = datetime.fromtimestamp(report.begin - 3600, timezone.utc)
    report.note_loaded("the newest one", save(7, created_on=an_hour_earlier.isoformat()), 1.5, [])
    html = page(report)
    assert "key of 7" in html
    assert "Flow/1/train/2, attempt 0" in html
    assert f"{an_hour_earlier:%Y-%m-%d %H:%M:%S} UTC, 1 h before this attempt began" in html
    assert "mfchckpt, number 7" in html
    assert "3 GiB, loaded in 1.5 s<" in html
    report.note_loaded("the newest one", save(7), 1.5, [], 1 << 30)
    assert "3 GiB, loaded in 1.5 s, 1 GiB from the node&#x27;s cache" in page(report)


def test_what_the_step_loads_itself_is_told(report: Report) -> None:
    report.note_loaded("load_policy='none'", None, None, [])
    assert not report.changed()
    report.note_own_load("key of 1")
    assert report.changed()
    assert not report.changed()
    html = page(report)
    assert "Loaded at the beginning: nothing" in html
    assert "<dt>loaded by the step</dt><dd>key of 1</dd>" in html
    report.note_own_load("key of 2")
    report.note_loaded("the newest one", save(7), 1.5, [])
    assert "<dd>2 times, the last time key of 2</dd>" in page(report)


def test_saves_are_added_up_and_listed_newest_first(report: Report) -> None:
    report.add([save(0), save(1, latest=False)])
    report.add([save(2)])
    data = report.data("done")
    assert data["total"] == {"count": 3, "size": 9 << 30, "stored": 3 << 20, "seconds": 0.75, "background": 0}
    assert [row["version_id"] for row in data["rows"]] == [2, 1, 0]
    html = page(report, "done")
    assert "9 GiB" in html
    assert "epoch 1" in html
    assert "<code>key of 1</code>" in html
    assert "saved with latest=False" in html


def test_what_the_journal_has_is_taken_in_once() -> None:
    waiting = [[save(0), save(1)], [], [save(2)]]
    report = Report("Flow/1/train/2", 0, "fresh", lambda: waiting.pop(0) if waiting else [])
    assert report.changed() is True
    assert report.changed() is False
    # A save between the last look and the end of the step is on the card.
    assert "key of 2" in page(report, "done")
    assert report.data("done")["total"]["count"] == 3


@pytest.mark.parametrize(
    ("state", "text"),
    [("running", "Nothing has been saved in this attempt yet."), ("done", "Nothing has been saved in this attempt.")],
)
def test_a_task_that_saved_nothing_says_so(report: Report, state: str, text: str) -> None:
    assert text in page(report, state)


def test_saves_in_the_background_cost_what_the_step_waited() -> None:
    background = [2, 1.5]
    report = Report("Flow/1/train/2", 0, "fresh", background=lambda: (int(background[0]), background[1]))
    assert report.changed()
    assert not report.changed()
    assert "2 saves in the background not stored yet" in "".join(report.parts("running"))
    report.add([save(0), {**save(1), "background": True}])
    background[:] = [0, 1.75]
    assert report.changed()
    page = "".join(report.parts("done"))
    assert "<b>2 s</b><span>the step waited for saves</span>" in page
    assert "1 save of these in the background" in page
    assert "not stored yet" not in page
