"""Reads the arguments of step decorators, whichever way they were given.

An argument in the source of a flow comes as it is written. One from a Config comes as the Config holds it. One from
`--with` on the command line comes as text: Metaflow passes all arguments of such a decorator to each task as text, also
those that the user has left at their defaults.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import reprlib
from typing import Any

from metaflow_artifacts.errors import UsageError

__all__ = ["ArgumentReader", "read_text"]

_FLAGS: dict[object, bool] = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
"""The numbers 1 and 0 are equal to True and False: `--with NAME:ARGUMENT=1` gives a number."""
_BEGINS = tuple("[{(\"'")
"""How JSON and Python write what is more than a word."""


def read_text(text: str) -> Any:
    """What a text says: None for `None` and for an empty text, a list or dict for JSON or Python, else the text.

    Raises ValueError for a text that begins as JSON does and cannot be read.
    """
    stripped = text.strip()
    if stripped in ("", "None", "null"):
        return None
    if not stripped.startswith(_BEGINS):
        return text
    with contextlib.suppress(ValueError):
        return json.loads(stripped)
    try:
        return ast.literal_eval(stripped)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError('neither JSON nor a literal of Python; write it as in ["a", "b"]') from None


class ArgumentReader:
    """The arguments of one decorator of a step. Each method raises UsageError for a value that it cannot read."""

    def __init__(self, decorator: Any, step: str | None = None) -> None:
        """`decorator` is a StepDecorator whose arguments Metaflow has evaluated; `step` is named in errors.

        Raises UsageError for an argument that the decorator does not have: Metaflow takes it where the arguments are
        unpacked from a Config.
        """
        self._decorator = decorator
        self._step = step
        unknown = sorted(set(decorator.attributes) - set(decorator.defaults))
        if unknown:
            known = ", ".join(decorator.defaults)
            raise UsageError(f"{self._where()}@{decorator.name} has no argument {unknown[0]!r}; it has {known}")

    def flag(self, name: str) -> bool:
        """An argument that is true or false; the default for None."""
        value = self._plain(name)
        if value is None:
            return bool(self._decorator.defaults[name])
        with contextlib.suppress(KeyError, TypeError):
            return _FLAGS[value.strip().lower() if isinstance(value, str) else value]
        raise self.error(name, "expected True or False")

    def path(self, name: str) -> str | None:
        """An argument that is the path of a directory; None for none."""
        value = self._plain(name)
        if value is None:
            return None
        path = os.fspath(value) if isinstance(value, os.PathLike) else value
        if not isinstance(path, str):
            way_out = f"; write './{path}' for a directory of this name" if isinstance(path, int) else ""
            raise self.error(name, f"expected a path (str or os.PathLike), found {type(value).__name__}{way_out}")
        return path

    def seconds(self, name: str) -> float | None:
        """An argument that is a positive number of seconds; None for none."""
        value = self._plain(name)
        if value is None:
            return None
        with contextlib.suppress(ValueError, TypeError):
            seconds = float(value)
            if 0 < seconds < float("inf") and not isinstance(value, bool):
                return seconds
        raise self.error(name, "expected a number of seconds above 0")

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """An argument that is one of a few texts; the default for None."""
        value = self._plain(name)
        if value is None:
            value = self._decorator.defaults[name]
        if not isinstance(value, str) or value not in choices:
            raise self.error(name, f"expected one of {', '.join(choices)}")
        return value

    def value(self, name: str, *, secret: bool = False) -> Any:
        """An argument of any other kind. A text that is JSON, or that Python can read, is what it says.

        With `secret`, no error shows the value.
        """
        given = self._decorator.attributes[name]
        try:
            return read_text(given) if isinstance(given, str) else given
        except ValueError as error:
            raise self.error(name, str(error), secret=secret) from None

    def error(self, name: str, expected: str, *, secret: bool = False) -> UsageError:
        """The error for a value, which it shows unless that is `secret`."""
        given = "…" if secret else _held(self._decorator.attributes[name])
        return UsageError(f"{self._where()}@{self._decorator.name}({name}={given}): {expected}")

    def _plain(self, name: str) -> Any:
        """The argument; None where it is a text that says so."""
        given = self._decorator.attributes[name]
        return None if isinstance(given, str) and given.strip() in ("", "None", "null") else given

    def _where(self) -> str:
        return "" if self._step is None else f"step {self._step}: "


def _held(value: object) -> str:
    """A short repr of a value, on one line."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 100
    return " ".join(short.repr(value).split())
