"""The page of faults is compared with what tests find, and written, also where pytest-xdist splits the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]

CONFTEST = """
from pathlib import Path
import pytest
from faultlib.page import PageCheck, pytest_addoption

def pytest_configure(config):
    here = Path(__file__).parent
    config.pluginmanager.register(PageCheck(config, here / "page.md", here), "page")

@pytest.fixture
def outcomes(request):
    return request.config.pluginmanager.get_plugin("page").outcomes_of(request.node)
"""
TESTS = """
import pytest

@pytest.mark.parametrize("case", ["a bit", "a byte", "a word"])
def test_damage(case, outcomes):
    outcomes.record("damage", case, "the right bytes")

def test_loss(outcomes):
    outcomes.record("loss", "a file", "`ArtifactNotFound`: KEY")
"""
PAGE = """# Faults
<!-- table: damage -->
| case | outcome |
| --- | --- |
| a bit<br>a byte<br>a word | the right bytes |
<!-- end -->
<!-- table: loss -->
| case | outcome |
| --- | --- |
| a file | `ArtifactNotFound`: KEY |
<!-- end -->
"""
EXTRA = PAGE.replace("a bit<br>", "a bit<br>a block<br>")
OTHER = PAGE.replace("`ArtifactNotFound`", "`CorruptArtifact`")


@pytest.fixture(params=[[], pytest.param(["-n", "2"], marks=pytest.mark.long)], ids=["one process", "two workers"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Runs a suite of four tests with a page; returns exit code, output and the page."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_damage.py").write_text(TESTS.partition("def test_loss")[0])
    (tmp_path / "test_loss.py").write_text("def test_loss" + TESTS.partition("def test_loss")[2])
    (tmp_path / "pytest.ini").write_text("[pytest]\n")

    def run(page: str, *options: str) -> tuple[int, str, str]:
        (tmp_path / "page.md").write_text(page)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "no:cacheprovider", ".", *request.param, *options],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr, (tmp_path / "page.md").read_text()

    return run


def test_a_page_that_says_what_was_found_passes(run: Run) -> None:
    code, output, _ = run(PAGE)
    assert code == 0, output


def test_a_row_that_no_test_found_fails_the_session(run: Run) -> None:
    code, output, page = run(EXTRA)
    assert code == 1, output
    assert "no test found ['a block']" in output
    assert page == EXTRA


def test_another_outcome_fails_the_test_that_found_it(run: Run) -> None:
    code, output, _ = run(OTHER)
    assert code == 1, output
    assert "1 failed, 3 passed" in output
    assert "FAILED test_loss.py::test_loss" in output


def test_a_part_of_the_suite_says_nothing_about_other_rows(run: Run) -> None:
    code, output, _ = run(EXTRA, "-k", "loss or byte")
    assert code == 0, output


def test_the_tables_are_written(run: Run) -> None:
    code, output, page = run(OTHER.replace("a bit<br>", "a block<br>"), "--write-page")
    assert code == 0, output
    assert page == PAGE


def test_a_part_of_the_suite_writes_nothing(run: Run) -> None:
    code, output, page = run(OTHER, "--write-page", "-k", "loss")
    assert code == 1, output
    assert "these have not passed: ['test_damage.py::test_damage[a bit]'" in output
    assert page == OTHER
