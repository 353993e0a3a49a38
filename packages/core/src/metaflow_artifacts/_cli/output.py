"""Prints tables for people and JSON for programs, without characters that a terminal would obey."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from metaflow_artifacts._format.floats import without_floats

__all__ = ["Table", "escape", "escape_lines", "print_json", "print_table", "warn"]

_HELD_S = 1.0
_NARROWEST = 8


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


class Table:
    """Prints rows below titles, and each row as soon as the widths of the columns are known: when the table ends, or
    a second after it began. Later rows may be wider.

    On a terminal that is too narrow, the last column has lines of its own, and the others are cut short.
    """

    def __init__(self, titles: Sequence[str], right: Sequence[str] = ()) -> None:
        """The columns named in `right` are aligned to the right."""
        self._titles = list(titles)
        self._right = set(right)
        self._held: list[list[str]] = []
        self._widths: list[int] | None = None
        self._apart = False
        self._begin = time.monotonic() + _HELD_S

    def add(self, row: Sequence[str]) -> None:
        """Add a row."""
        cells = [escape(cell) for cell in row]
        if self._widths is not None:
            self._print(cells, self._widths)
            sys.stdout.flush()
            return
        self._held.append(cells)
        if time.monotonic() >= self._begin:
            self.end()
            sys.stdout.flush()

    def end(self) -> None:
        """Print what was held back."""
        if self._widths is None:
            self._widths = self._layout()
            for cells in [self._titles, *self._held]:
                self._print(cells, self._widths)
            self._held = []

    def _layout(self) -> list[int]:
        widths = [max(map(len, column)) for column in zip(self._titles, *self._held, strict=True)]
        space = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        if space is None or _line_width(widths) <= space:
            return widths
        self._apart = True
        cut = [index for index, title in enumerate(self._titles[:-1]) if title not in self._right]
        while cut and _line_width(widths[:-1]) > space:
            widest = max(cut, key=lambda index: widths[index])
            if widths[widest] <= _NARROWEST:
                break
            widths[widest] -= 1
        return widths

    def _print(self, cells: Sequence[str], widths: Sequence[int]) -> None:
        shown = list(cells[:-1]) if self._apart else list(cells)
        padded = []
        for title, cell, width in zip(self._titles, shown, widths, strict=False):
            text = cell if not self._apart or len(cell) <= width else cell[: width - 1] + "\N{HORIZONTAL ELLIPSIS}"
            padded.append(text.rjust(width) if title in self._right else text.ljust(width))
        print("  ".join(padded).rstrip())
        if self._apart:
            print(f"  {cells[-1]}")


def _line_width(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print rows below titles, as a `Table`."""
    table = Table(titles, right)
    for row in rows:
        table.add(row)
    table.end()


def warn(text: str) -> None:
    """Print a warning on stderr. The command goes on."""
    print(f"metaflow-artifacts: {escape(text)}", file=sys.stderr)
