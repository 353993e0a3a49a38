"""Compares what two distributions give to users, as probe_flow.py found it, and writes the tables of the page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Facts", "Reasons", "Row", "compare", "faults", "needed", "table_of", "with_table"]

Facts = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""For each group, for each entry, what it is."""

Reasons = Mapping[str, Mapping[str, list[str]]]
"""For each group, for each sentence, the entries that it explains."""

_STATUSES = ("same", "different", "missing")

_TABLE = re.compile(r"(?<=^<!-- table -->\n).*?(?=^<!-- end -->$)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Row:
    """An entry of metaflow-checkpoint, whether it is the same here, and why not."""

    group: str
    entry: str
    status: str
    """same, different or missing."""
    why: str
    """Empty if it is the same, or if no reason is given."""


def compare(theirs: Facts, here: Facts, reasons: Reasons) -> list[Row]:
    """A row for each entry of theirs, in their order."""
    return [
        Row(group, entry, _status(entry, fact, here.get(group, {})), _why(reasons, group, entry))
        for group, entries in theirs.items()
        for entry, fact in entries.items()
    ]


def faults(rows: list[Row], reasons: Reasons) -> list[str]:
    """What is wrong with the reasons: one is lacking, or explains what is the same, or is about nothing."""
    found = [f"{row.group}: {row.entry} is {row.status}, without a reason" for row in rows if _lacks_reason(row)]
    found += [f"{row.group}: {row.entry} is the same, but has a reason" for row in rows if row.why and _is_same(row)]
    known = {(row.group, row.entry) for row in rows}
    given = [(group, entry) for group, sentences in reasons.items() for one in sentences.values() for entry in one]
    found += [
        f"{group}: {entry} has a reason, but is no entry" for group, entry in given if (group, entry) not in known
    ]
    found += [f"{group}: {entry} has {n} reasons" for (group, entry), n in Counter(given).items() if n > 1]
    return found


def needed(rows: list[Row], reasons: Reasons) -> Reasons:
    """The reasons without those for entries that are the same now, or do not exist."""
    differing = {(row.group, row.entry) for row in rows if not _is_same(row)}
    kept = {
        group: {
            sentence: [one for one in entries if (group, one) in differing] for sentence, entries in sentences.items()
        }
        for group, sentences in reasons.items()
    }
    return {
        group: {sentence: entries for sentence, entries in sentences.items() if entries}
        for group, sentences in kept.items()
        if any(sentences.values())
    }


def table_of(theirs: Facts, rows: list[Row]) -> str:
    """A table for each group, after a line that counts. Entries of which the same is told share a row."""
    counts = Counter(row.status for row in rows)
    lines = [f"{len(rows)} entries: {', '.join(f'{counts[one]} {one}' for one in _STATUSES)}."]
    for group, entries in theirs.items():
        told: dict[str, list[str]] = {}
        for row in sorted((row for row in rows if row.group == group), key=lambda row: _STATUSES.index(row.status)):
            told.setdefault(_told(row), []).append(_shown(row.entry, entries))
        lines += ["", f"### {_heading(group)}", "| metaflow-checkpoint 0.2.14 | here |", "| --- | --- |"]
        lines += [f"| {'<br>'.join(shown)} | {text} |" for text, shown in told.items()]
    return "\n".join(lines) + "\n"


def with_table(page: str, table: str) -> str:
    """The page with another table between its two marks."""
    new, count = _TABLE.subn(lambda _: table, page)
    assert count == 1, "the page needs one <!-- table --> and, after it, <!-- end -->"
    return new


def _status(entry: str, fact: Mapping[str, Any], here: Mapping[str, Mapping[str, Any]]) -> str:
    if "position" in fact:
        return _status_of_argument(entry, fact, here)
    if entry not in here:
        return "missing"
    found = here[entry]
    if "any keyword" in fact and "any keyword" in found:
        alike = found["any keyword"] or not fact["any keyword"]
    elif "raises" in fact and "raises" in found:
        # Code that catches theirs catches ours.
        alike = fact["raises"][0] in found["raises"]
    else:
        alike = found == fact
    return "same" if alike else "different"


def _status_of_argument(entry: str, fact: Mapping[str, Any], here: Mapping[str, Mapping[str, Any]]) -> str:
    """It is the same if every call that gives it, or leaves it out, can be made here."""
    call, named = here.get(entry.partition("(")[0]), here.get(entry)
    if call is None or "any keyword" not in call or (named is None and not call["any keyword"]):
        return "missing"
    takes_any = call["rest"] is not None and fact["position"] is not None and call["rest"] <= fact["position"]
    position = named["position"] if named is not None else None
    by_position = fact["position"] in (None, position) or takes_any
    can_be_left_out = named is None or named["optional"] or not fact["optional"]
    return "same" if by_position and can_be_left_out else "different"


def _why(reasons: Reasons, group: str, entry: str) -> str:
    return next((sentence for sentence, entries in reasons.get(group, {}).items() if entry in entries), "")


def _is_same(row: Row) -> bool:
    return row.status == "same"


def _lacks_reason(row: Row) -> bool:
    return not row.why and not _is_same(row)


def _heading(group: str) -> str:
    """A group is named in words, by code, or by code that is called."""
    if " of " in group or " to " in group or " gets " in group:
        return group
    words, colon, code = group.rpartition(": ")
    return f"{words}{colon}`{code}`"


def _shown(entry: str, entries: Mapping[str, Mapping[str, Any]]) -> str:
    fact = entries[entry]
    if "position" in fact:
        call, _, name = entry.removesuffix(")").partition("(")
        return f"`{name}` of `{call}`" + (f", argument {fact['position']}" if fact["position"] else "")
    if "any keyword" in fact:
        arguments = list(_arguments(entry, entries)) + (["…"] if fact["any keyword"] else [])
        return f"`{entry}({', '.join(arguments)})`"
    if "default" in fact:
        return f"`{entry}={fact['default']!r}`"
    return f"`{entry}`"


def _arguments(call: str, entries: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for entry, fact in entries.items():
        if "position" in fact and entry.startswith(f"{call}("):
            yield entry.removesuffix(")").partition("(")[2]


def _told(row: Row) -> str:
    if _is_same(row):
        return "same"
    return f"**{row.status}**: {row.why}"
