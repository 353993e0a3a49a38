"""Steps with a card get another one for what `@model` loads and saves; other steps get none, and pay nothing."""

from __future__ import annotations

from pathlib import Path

# Metaflow imports the extension, not the other way around.
import metaflow  # noqa: F401
import pytest

from metaflow_artifacts.testing.flows import FlowRunner
from metaflow_extensions.artifacts_model.plugins.model_deco.report import Report

FLOWS = Path(__file__).parent / "flows"


def cards_of(runner: FlowRunner, step: str) -> dict[str, str]:
    """The cards of a step, by the begin of their files' names."""
    found = Path(runner.local_root, "mf.cards").rglob(f"steps/{step}/tasks/*/cards/*.html")
    return {path.name.rsplit("-", 1)[0]: path.read_text() for path in found}


def test_steps_with_a_card_get_another_one(tmp_path: Path) -> None:
    runner = FlowRunner(tmp_path)
    result = runner.run(FLOWS / "cards_flow.py", fails=True)
    assert "WARNING" not in result.output
    assert "Warning" not in result.output
    saved = result.fact("saved")

    start = cards_of(runner, "start")
    assert set(start) == {"default-report", "model-model"}
    page = start["model-model"]
    assert "Loaded: nothing" in page
    for text in (saved["key"], "a &lt;line&gt;", "5 B", "accuracy 0.5, kind linear", ">done<"):
        assert text in page
    assert "http://" not in page
    assert "https://" not in page

    assert cards_of(runner, "plain") == {}
    assert result.fact("reports without a card") is False
    assert set(cards_of(runner, "hidden")) == {"default"}

    absent = cards_of(runner, "absent")["model-model"]
    assert "InvalidReference: step absent: &#x27;typo&#x27; in @model(load=…) is not an artifact" in absent
    assert ">failed<" in absent

    end = cards_of(runner, "end")["model-model"]
    assert "ValueError: the &lt;reason&gt;" in end
    assert "raise ValueError" in end
    assert "Nothing was saved." in end
    for text in (saved["key"], saved["pathspec"], "here", result.fact("loaded again"), "load()", "10 B", ">failed<"):
        assert text in end


def reference(number: int) -> dict[str, object]:
    return {
        "key": f"key of {number}",
        "type": "model",
        "label": f"label {number}",
        "pathspec": "Flow/1/start/1",
        "created_on": "2026-01-31T13:05:09+00:00",
        "size": 1 << 20,
        "metadata": {"number": number, "text": "x" * 10_000},
    }


@pytest.fixture
def report() -> Report:
    return Report("Flow/1/train/2", 3)


def test_what_is_noted_counts_once_and_is_listed_newest_first(report: Report) -> None:
    assert report.changed() is False
    report.note_saved(reference(1), 1000, 0.25)
    report.note_loaded("base", reference(2), "/tmp/base", 1.5, 1 << 20)
    assert report.changed() is True
    assert report.changed() is False
    report.note_saved(reference(3), 24, 0.25)
    page = "".join(report.parts("running"))
    assert "Models of train" in page
    assert "Flow/1/train/2, attempt 3" in page
    assert "<b>2</b><span>models</span>" in page
    assert "<b>2 MiB</b><span>content saved</span>" in page
    assert "<b>1 KiB</b><span>new bytes stored</span>" in page
    assert "<b>0.5 s</b><span>the step waited for saves</span>" in page
    assert "<b>1.5 s</b><span>spent on loading</span>" in page
    assert page.index("key of 3") < page.index("key of 1")
    assert "<code>/tmp/base</code>" in page


def test_of_a_part_the_card_shows_the_bytes_that_were_loaded(report: Report) -> None:
    report.note_loaded("base", reference(2), "/tmp/base", 1.5, 4096)
    page = "".join(report.parts("running"))
    assert "4 KiB of 1 MiB" in page
    assert "<b>4 KiB</b><span>content loaded</span>" in page


def test_the_card_shows_what_came_from_the_cache(report: Report) -> None:
    report.note_loaded("base", reference(2), "/tmp/base", 1.5, 1 << 20, 2048)
    assert "1 MiB, 2 KiB from the node&#x27;s cache" in "".join(report.parts("running"))


def test_however_much_is_saved_the_card_stays_small(report: Report) -> None:
    for number in range(1000):
        report.note_saved(reference(number), 0, 0.0)
    page = "".join(report.parts("done"))
    assert len(page) < 300_000
    assert "<b>1,000</b><span>models</span>" in page
    assert "key of 999" in page
    assert "key of 799" not in page
    assert "and 800 earlier ones" in page
