"""What the card of a step with `@checkpoint` shows, while the task runs and when it has ended."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from metaflow_artifacts.testing.flows import FlowRunner, Result

FLOW = Path(__file__).with_name("checkpoint_card_flow.py")
WRITE_CARDS = """
from metaflow import Flow
from metaflow.cards import get_cards
task = Flow("CheckpointCardFlow").latest_run["start"].task
for kind in ("checkpoint", "model"):
    for number, card in enumerate(get_cards(task, id=kind)):
        with open(f"{kind} {number}.html", "w") as file:
            file.write(card.get())
"""


def facts_of(browser: webdriver.Chrome, section: int) -> dict[str, str]:
    found = browser.find_elements(By.TAG_NAME, "section")[section]
    names = [one.text for one in found.find_elements(By.TAG_NAME, "dt")]
    return dict(zip(names, [one.text for one in found.find_elements(By.TAG_NAME, "dd")], strict=True))


def rows_of(browser: webdriver.Chrome, table: int = 0) -> list[dict[str, str]]:
    found = browser.find_elements(By.TAG_NAME, "table")[table]
    titles = [one.text for one in found.find_elements(By.CSS_SELECTOR, "th")]
    rows = found.find_elements(By.CSS_SELECTOR, "tbody tr:not(.detail)")
    return [
        dict(zip(titles, [cell.text for cell in row.find_elements(By.TAG_NAME, "td")], strict=True)) for row in rows
    ]


def keys_of(browser: webdriver.Chrome, table: int = 0) -> list[str]:
    found = browser.find_elements(By.TAG_NAME, "table")[table]
    return [one.text for one in found.find_elements(By.CSS_SELECTOR, "tbody tr.detail code")]


def count_rows(browser: webdriver.Chrome) -> int:
    """In one go: an update may come at any time."""
    return int(browser.execute_script("return document.querySelectorAll('tbody tr.detail').length"))


def state_of(browser: webdriver.Chrome) -> str:
    return str(browser.execute_script("return document.querySelector('.state').textContent"))


def select_card(browser: webdriver.Chrome, address: str, wait_for: Callable[..., None]) -> None:
    """Choose the newest checkpoint card in Metaflow's viewer, and go into its frame."""
    with urllib.request.urlopen(f"{address}/runinfo") as response:
        cards: list[dict[str, Any]] = json.load(response)["cards"]
    values = [card["card"] for card in cards if card["card_object"]["id"] == "checkpoint"]
    browser.switch_to.default_content()
    select = Select(browser.find_element(By.TAG_NAME, "select"))
    for value in values:
        select.select_by_value(value)
        browser.switch_to.frame(browser.find_element(By.ID, "card-frame"))
        wait_for(lambda: browser.find_elements(By.CLASS_NAME, "state"))
        if "attempt 1" in browser.execute_script("return document.querySelector('.sub').textContent"):
            return
        browser.switch_to.default_content()
    raise AssertionError(f"no card of attempt 1 among {cards}")


def test_the_card_follows_the_task_and_stays(
    browser: webdriver.Chrome, runner: FlowRunner, card_server: Callable[[Path], str], wait_for: Callable[..., None]
) -> None:
    process = runner.start(FLOW, "run")
    try:
        wait_for(lambda: list(Path(runner.local_root).glob("mf.cards/**/*.html")))
        address = card_server(FLOW)
        # Two attempts, each with the card of @checkpoint and that of @model.
        wait_for(lambda: _count(address) == 4)
        browser.get(address)
        wait_for(lambda: len(browser.find_elements(By.CSS_SELECTOR, "select option")) == 4)
        select_card(browser, address, wait_for)
        browser.execute_script("window.sameDocument = true")
        assert state_of(browser) == "running"
        seen = count_rows(browser)
        wait_for(lambda: count_rows(browser) > seen)
        assert browser.execute_script("return window.sameDocument") is True
    finally:
        (runner.work / "enough").touch()
        output = process.communicate()[0]
    assert process.returncode == 0, output
    result = Result(0, output)
    assert "WARNING" not in output

    runner.python(WRITE_CARDS)
    pages = sorted(runner.work.glob("checkpoint *.html"))
    assert len(pages) == 2
    # Metaflow's own viewer asks for fonts from elsewhere.
    browser.get("about:blank")
    browser.get_log("browser")
    for page in pages:
        browser.get(page.as_uri())
        if "attempt 1" in browser.find_element(By.CLASS_NAME, "sub").text:
            assert_final(browser, result)
        else:
            assert_failed(browser, result)
        assert_reads_well(browser)
    models = sorted(runner.work.glob("model *.html"))
    assert len(models) == 2
    for page in models:
        browser.get(page.as_uri())
        assert [row["label"] for row in rows_of(browser, 1)] == ["<b>both</b> parts"]
        assert [row["name"] for row in rows_of(browser, 0)] == ["load()"]
        assert set(keys_of(browser, 1)) <= {one["key"] for one in result.facts("model")}
        assert_reads_well(browser)


def _count(address: str) -> int:
    with urllib.request.urlopen(f"{address}/runinfo") as response:
        cards = json.load(response).get("cards", [])
    return len(cards)


def assert_final(browser: webdriver.Chrome, result: Result) -> None:
    """The second attempt's card: what it resumed from and why, and all that it saved."""
    loaded = result.facts("loaded")[1]
    saved = [one for one in result.facts("saved") if one["attempt"] == 1]
    assert state_of(browser) == "done"
    facts = facts_of(browser, 0)
    assert facts["policy"] == "load_policy='fresh'"
    assert facts["why"] == "the newest checkpoint of this task's earlier attempts"
    assert facts["key"] == loaded["key"]
    assert facts["saved by"] == f"{loaded['pathspec']}, attempt 0"
    assert facts["created"].startswith(loaded["created_on"][:19].replace("T", " ") + " UTC, ")
    assert facts["created"].endswith(" s before this attempt began")
    assert facts["metadata"] == "epoch 2, loss 0.125, note <b>not bold</b> & more"

    rows = rows_of(browser)
    assert [row["number"] for row in rows] == [str(one["version_id"]) for one in reversed(saved)]
    assert [row["name"] for row in rows] == [one["name"] for one in reversed(saved)]
    assert keys_of(browser) == [one["key"] for one in reversed(saved)]
    assert [row["created (UTC)"] for row in rows] == [
        one["created_on"][:19].replace("T", " ") for one in reversed(saved)
    ]
    assert {row["size"] for row in rows} == {"16.1 MiB"}
    # The frozen part was stored by the first attempt.
    assert {row["new bytes stored"] for row in rows} == {"97.7 KiB"}
    assert all(0 <= float(row["seconds"]) < 60 for row in rows)
    assert [row["latest"] for row in rows[-2:]] == ["no", "yes"]
    assert rows[-1]["metadata"] == "epoch 0, loss 0.125, note <b>not bold</b> & more"

    marks = browser.find_elements(By.CSS_SELECTOR, "svg circle")
    assert len(marks) == len(saved)
    across = [float(mark.get_attribute("cx") or 0) for mark in marks]
    assert across == sorted(across)
    assert [one.text for one in browser.find_elements(By.CSS_SELECTOR, ".legend span")] == [
        "every",
        "best",
        "saved with latest=False",
    ]
    assert browser.find_element(By.CSS_SELECTOR, ".tile b").text == f"{len(saved):,}"


def assert_failed(browser: webdriver.Chrome, result: Result) -> None:
    """The first attempt's card: complete too, though Metaflow makes no final card of a task that failed."""
    assert state_of(browser) == "failed"
    assert browser.find_element(By.CLASS_NAME, "message").text == "RuntimeError: once, <b>not bold</b>"
    assert browser.find_element(By.TAG_NAME, "h2").text == "Loaded: nothing"
    assert facts_of(browser, 0)["why"].startswith("the first attempt starts from the beginning")
    assert [row["number"] for row in rows_of(browser)] == ["3", "2", "1", "0"]
    assert rows_of(browser)[-1]["new bytes stored"] == "16.1 MiB"


def assert_reads_well(browser: webdriver.Chrome) -> None:
    """Nothing comes from the network, nothing fails, and nothing runs out of the page, on a small screen either."""
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    for width in (1200, 420):
        browser.set_window_size(width, 900)
        wide = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert wide[0] <= wide[1], wide
    browser.set_window_size(1200, 900)
    assert not browser.find_elements(By.CSS_SELECTOR, "main b:not(.tile b)")
