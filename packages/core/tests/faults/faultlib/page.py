"""A pytest plugin: docs/reliability.md says what the fault tests have found, whichever processes they ran in.

Each test compares what it finds with the page, and puts it into its report (`Outcomes.record`). pytest-xdist hands all
reports to one process. When the session ends, that process knows all rows, if all tests of the suite have passed: the
page must have these and no others. With `--write-page` the tests compare nothing, and the tables are written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from faultlib.outcomes import PROPERTY, Outcomes
from faultlib.tables import Rows, pairs, tables, with_tables

PAGE = Path(__file__).parents[5] / "docs" / "reliability.md"
SUITE = Path(__file__).parents[1]

_EXPECTED = "tests that docs/reliability.md needs"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-page", action="store_true", help="write the tables of docs/reliability.md")


class PageCheck:
    """Compares the tables of `page`, or writes them, with what the tests in the directory `suite` have found."""

    def __init__(self, config: pytest.Config, page: Path = PAGE, suite: Path = SUITE) -> None:
        self._config = config
        self._page = page
        self._suite = suite
        self._is_worker = hasattr(config, "workerinput")
        # The option does not exist where pytest finds the conftest only while it collects.
        self._write = config.getoption("--write-page", default=False)
        self._shown = None if self._write else tables(page.read_text())
        self._rows = Rows()
        self._expected: set[str] = set()
        self._passed: set[str] = set()

    def outcomes_of(self, item: pytest.Item) -> Outcomes:
        """Where a test puts what it finds."""
        return Outcomes(item.user_properties, self._shown)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Note which tests must pass before the page can be compared: all of the suite, even if only a part is run."""
        mine = [item for item in items if item.path.parent == self._suite]
        if mine:
            self._expected.update(item.nodeid for item in mine)
            self._expected.update(
                {path.name for path in self._suite.glob("test_*.py")} - {item.path.name for item in mine}
            )
            self._expected.update(f"all but {argument}" for argument in config.args if "::" in argument)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and not self._is_worker:
            if report.passed:
                self._passed.add(report.nodeid)
            for name, value in report.user_properties:
                if name == PROPERTY:
                    self._rows.add(*value)  # type: ignore[misc]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._expected.update(getattr(node, "workeroutput", {}).get(_EXPECTED, ()))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._is_worker:
            self._config.workeroutput[_EXPECTED] = sorted(self._expected)  # type: ignore[attr-defined]
            return
        fault = self._fault() if self._expected else None
        if fault is not None:
            name = self._page.name
            report = pytest.TestReport(name, (name, None, name), {}, "failed", fault, "call")
            self._config.hook.pytest_runtest_logreport(report=report)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _fault(self) -> str | None:
        """What is wrong with the page, None where it is right, or where too few tests ran to tell."""
        missing = sorted(self._expected - self._passed)
        if self._write:
            if missing:
                return f"the page was not written, since that needs all of the suite; these have not passed: {missing}"
            if self._rows.conflicts:
                return "the page was not written: " + "; ".join(self._rows.conflicts)
            self._page.write_text(with_tables(self._page.read_text(), self._rows))
        elif missing:
            return None
        shown = tables(self._page.read_text())
        faults = [f"there is no table {section!r}" for section in self._rows.sections.keys() - shown.keys()]
        for section, table in shown.items():
            found = self._rows.table(section)
            unseen = sorted(pairs(table).keys() - pairs(found).keys())
            if table != found:
                faults.append(f"table {section!r}: " + (f"no test found {unseen}" if unseen else "write it anew"))
        return "; ".join(faults) + "; see pytest --write-page" if faults else None
