"""Steps with a card get another one for their checkpoints, which stays small, and leaves the first one alone."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

# Metaflow imports the extension, not the other way around.
import metaflow  # noqa: F401
import pytest

from metaflow_artifacts.testing.flows import FlowRunner, Result
from metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.report import Report

CARDS = """
import sys
from metaflow import Flow
from metaflow.cards import get_cards
from metaflow.plugins.cards.exception import CardNotPresentException
from metaflow_artifacts.testing.flows import emit
for step in Flow(sys.argv[1]).latest_run:
    try:
        for card in get_cards(step.task):
            emit(step.id, [card.type, card.id, card.get()])
    except CardNotPresentException:
        pass
"""


def cards_of(result: Result, step: str) -> dict[tuple[str, str | None], str]:
    return {(kind, name): html for kind, name, html in result.facts(step)}


def test_steps_with_a_card_get_another_one(runner: FlowRunner, flows: Path) -> None:
    result = runner.run(flows / "cards_flow.py")
    assert "WARNING" not in result.output
    assert "Card render failed" not in result.output
    assert result.fact("has a card") is False
    found = runner.python(CARDS, "CardsFlow")

    assert cards_of(found, "start") == {}
    with_id = cards_of(found, "with_id")
    assert set(with_id) == {("default", "report"), ("checkpoint", "checkpoint")}
    html = with_id["checkpoint", "checkpoint"]
    assert "no run has saved a checkpoint at this place" in html
    assert "with &lt;id&gt;" in html
    assert "rate 0.5" in html
    assert f"<code>{result.fact('saved')['key']}</code>" in html
    assert "1000 B" in html
    assert "http://" not in html
    assert "https://" not in html

    two = cards_of(found, "two_cards")
    assert set(two) == {("blank", None), ("blank", "other"), ("checkpoint", "checkpoint")}
    assert "Nothing has been saved in this attempt." in two["checkpoint", "checkpoint"]
    assert "nothing is loaded automatically" in two["checkpoint", "checkpoint"]
    # @catch ends this step well; its card tells of the error.
    assert "RuntimeError: no &lt;luck&gt;" in two["checkpoint", "checkpoint"]
    assert "raise RuntimeError" in two["checkpoint", "checkpoint"]
    # The user's code sees its own cards alone.
    assert result.fact("cards of the step") == 0
    assert set(cards_of(found, "end")) == {("default", None)}


@pytest.mark.long
@pytest.mark.parametrize("either", ["runner", "s3_runner"], indirect=True)
def test_a_card_from_the_command_line_brings_ours_too(either: FlowRunner, flows: Path) -> None:
    either.with_environment(WHO="me").run(flows / "shared_flow.py", "--with", "card")
    found = either.python(CARDS, "SharedFlow")
    assert set(cards_of(found, "start")) == {("default", None), ("checkpoint", "checkpoint")}


def save(number: int) -> dict[str, Any]:
    return {
        "key": "k",
        "name": "best" if number % 4 == 0 else "rare" if number == 5001 else "every",
        "version_id": number,
        "pathspec": "F/1/s/2",
        "attempt": 0,
        "created_on": datetime.fromtimestamp(1_000_000 + number, timezone.utc).isoformat(),
        "size": 1000,
        "metadata": {"number": number, "text": "x" * 10_000},
        "stored": 10,
        "seconds": 0.5,
        "latest": True,
    }


def test_however_much_is_saved_the_card_stays_small() -> None:
    report = Report("F/1/s/2", 0, "fresh")
    report.begin = 1_000_000
    report.add(save(number) for number in range(10_000))
    data = report.data("running")
    assert len(json.dumps(data)) < 300_000
    total = {"count": 10_000, "size": 10_000_000, "stored": 100_000, "seconds": 5000.0, "background": 0}
    assert data["total"] == total
    assert [row["version_id"] for row in data["rows"]] == list(range(9999, 9799, -1))

    points = [point["version_id"] for point in data["points"]]
    assert points == sorted(points)
    assert (points[0], points[-1]) == (0, 9999)
    assert 100 < len(points) <= 300
    assert {point["name"] for point in data["points"]} == {"best", "every", "rare"}

    html = "".join(report.parts("running"))
    assert "10,000" in html
    assert f"The timeline shows {len(points)} of them" in html
    assert "and 9,800 older checkpoints" in html
