"""docs/coming-from-metaflow-checkpoint.md says of each name, argument and property whether it is the same here.

`pytest tests/peer --write` writes its tables anew, and drops reasons that nothing needs any more. `nox -s peer` runs
metaflow-checkpoint too; otherwise, what it gives is read from a file.
"""

from __future__ import annotations

import json
from pathlib import Path

from comparison import Facts, compare, faults, needed, table_of, with_table

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "coming-from-metaflow-checkpoint.md"
REASONS = Path(__file__).with_name("reasons.json")


def test_the_page_has_what_the_probes_find(theirs: Facts, here: Facts, writes: bool) -> None:
    reasons = json.loads(REASONS.read_text())
    rows = compare(theirs, here, reasons)
    if writes:
        reasons = needed(rows, reasons)
        REASONS.write_text(json.dumps(reasons, indent=1, ensure_ascii=False) + "\n")
        rows = compare(theirs, here, reasons)
        PAGE.write_text(with_table(PAGE.read_text(), table_of(theirs, rows)))
    assert faults(rows, reasons) == []
    page = PAGE.read_text()
    assert page == with_table(page, table_of(theirs, rows)), "the page has another table; see pytest tests/peer --write"
