"""What the commands print: tables for people, JSON for programs, and nothing that a terminal would obey."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from metaflow_artifacts._format.floats import without_floats

__all__ = ["count", "duration", "escape", "print_json", "print_table", "seconds", "size", "when"]

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 24 * 3600.0, "w": 7 * 24 * 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw])", re.ASCII)


def escape(text: str) -> str:
    """`text` with what is not printable as escape sequences: it may come from strangers and go to a terminal."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    # A byte of a file name that is not UTF-8.
    raw = 0xDC80 <= ord(character) <= 0xDCFF
    return f"\\x{ord(character) - 0xDC00:02x}" if raw else character.encode("unicode_escape").decode()


def escape_lines(text: str) -> str:
    """As `escape`, with line ends and tabs as they are."""
    return "".join(part if part in "\n\t" else escape(part) for part in re.split(r"([\n\t])", text))


def size(count: int) -> str:
    """Bytes, for people."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def count(number: int, thing: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def when(created_on: str) -> str:
    """A time as in a reference, to the second."""
    return created_on[:19].replace("T", " ")


def seconds(text: str) -> float:
    """A time like `7d`, `12h`, `30m` or `90s`, in seconds. Raises ValueError."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no time; write 90s, 30m, 12h, 7d or 2w")
    return float(match[1]) * _UNITS[match[2]]


def duration(value: float) -> str:
    """Seconds, as `seconds` takes them."""
    unit = next((unit for unit in "dhm" if value and value % _UNITS[unit] == 0), "s")
    return f"{value / _UNITS[unit]:g}{unit}"


def print_json(value: Any) -> None:
    """One JSON document, in ASCII. NaN and infinities, which JSON has no numbers for, are texts."""
    plain, _ = without_floats({"value": value})
    print(json.dumps(plain["value"], ensure_ascii=True, indent=1))


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Rows under titles; the columns named in `right` are set flush right."""
    cells = [[escape(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    for row in [list(titles), *cells]:
        padded = (
            cell.rjust(width) if title in right else cell.ljust(width)
            for title, cell, width in zip(titles, row, widths, strict=True)
        )
        print("  ".join(padded).rstrip())


def warn(text: str) -> None:
    """A line about something that does not stop the command."""
    print(f"metaflow-artifacts: {escape(text)}", file=sys.stderr)
