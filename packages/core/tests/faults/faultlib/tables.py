"""The tables of docs/reliability.md: rows of a case and its outcome, in Markdown."""

from __future__ import annotations

import re
from collections import defaultdict

__all__ = ["Rows", "pairs", "tables", "with_tables"]

_BREAK = "<br>"
_TABLE = re.compile(r"(<!-- table: (?P<section>[^>]*?) -->\n)(?P<rows>.*?)(?=<!-- end -->)", re.DOTALL)


class Rows:
    """What all tests have found: section, case, outcome."""

    def __init__(self) -> None:
        self.sections: dict[str, dict[str, str]] = defaultdict(dict)
        self.conflicts: list[str] = []
        """Cases that several tests see, for instance on several storages, with different outcomes."""

    def add(self, section: str, case: str, outcome: str) -> None:
        """One row."""
        known = self.sections[section].setdefault(case, outcome)
        if known != outcome:
            self.conflicts.append(f"{section}, {case}: both {known!r} and {outcome!r}")

    def table(self, section: str) -> str:
        """A section in Markdown: cases of one outcome in one row, all in alphabetical order."""
        grouped: dict[str, list[str]] = defaultdict(list)
        for case, outcome in sorted(self.sections[section].items()):
            grouped[outcome].append(case)
        rows = [f"| {_BREAK.join(cases)} | {outcome} |" for outcome, cases in grouped.items()]
        return "\n".join(["| case | outcome |", "| --- | --- |", *rows, ""])


def pairs(table: str) -> dict[str, str]:
    """The outcome of each case of a table."""
    found = {}
    for row in table.splitlines()[2:]:
        cases, outcome = row.strip("| ").split(" | ", 1)
        found.update(dict.fromkeys(cases.split(_BREAK), outcome))
    return found


def tables(page: str) -> dict[str, str]:
    """The tables of a page by section."""
    return {match["section"]: match["rows"] for match in _TABLE.finditer(page)}


def with_tables(page: str, rows: Rows) -> str:
    """The page with its tables as the tests have found them."""
    return _TABLE.sub(lambda match: match[1] + rows.table(match["section"]), page)
