"""docs/reliability.md says what the tests have found."""

from __future__ import annotations

import pytest
from faultlib.outcomes import PAGE, Outcomes, pairs, tables, with_tables


def test_the_page_says_what_was_found(request: pytest.FixtureRequest, outcomes: Outcomes, unfinished: set[str]) -> None:
    """All of it, where all of the suite ran; else what was found is on it."""
    page = PAGE.read_text()
    everything = unfinished <= {request.node.nodeid}
    # The option exists where pytest was pointed at this directory.
    if request.config.getoption("--write-page", default=False):
        assert everything, f"run all of the suite to write the page; these have not passed: {sorted(unfinished)}"
        page = with_tables(page, outcomes)
        PAGE.write_text(page)
    shown = tables(page)
    assert set(outcomes.found) <= set(shown)
    for section, rows in shown.items():
        found = outcomes.table(section)
        assert pairs(found) <= pairs(rows), section
        assert not everything or rows == found
