"""Prints tables for people and JSON for programs, without characters that a terminal would obey."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from metaflow_artifacts._format.floats import without_floats

__all__ = ["escape", "escape_lines", "print_json", "print_table", "warn"]


def escape(text: str) -> str:
    """`text` with escape sequences for characters that are not printable: they could control the terminal."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    # Python decodes a byte of a file name that is not UTF-8 to one of these characters.
    raw = 0xDC80 <= ord(character) <= 0xDCFF
    return f"\\x{ord(character) - 0xDC00:02x}" if raw else character.encode("unicode_escape").decode()


def escape_lines(text: str) -> str:
    """The same as `escape`, but line ends and tabs are kept."""
    return "".join(part if part in "\n\t" else escape(part) for part in re.split(r"([\n\t])", text))


def print_json(value: Any) -> None:
    """Print one JSON document, in ASCII. NaN and infinities become texts, because JSON has no numbers for them."""
    plain, _ = without_floats({"value": value})
    print(json.dumps(plain["value"], ensure_ascii=True, indent=1))


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print rows below titles. The columns named in `right` are aligned to the right."""
    cells = [[escape(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    for row in [list(titles), *cells]:
        padded = (
            cell.rjust(width) if title in right else cell.ljust(width)
            for title, cell, width in zip(titles, row, widths, strict=True)
        )
        print("  ".join(padded).rstrip())


def warn(text: str) -> None:
    """Print a warning on stderr. The command goes on."""
    print(f"metaflow-artifacts: {escape(text)}", file=sys.stderr)
