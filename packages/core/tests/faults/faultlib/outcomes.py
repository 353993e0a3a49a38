"""What came of each fault, in words, and the page that has them all: docs/reliability.md."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metaflow_artifacts import ArtifactError, Store

PAGE = Path(__file__).parents[5] / "docs" / "reliability.md"

RIGHT = "the right bytes"


def content(root: str | os.PathLike[str]) -> dict[bytes, Any]:
    """Every path below `root` with what is there: a file's bytes, None for a directory, where a link leads."""
    found: dict[bytes, Any] = {}
    base = os.fsencode(root)
    for directory, names, files in os.walk(base):
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            shown = os.path.relpath(path, base)
            if os.path.islink(path):
                found[shown] = ("link", os.readlink(path))
            elif os.path.isdir(path):
                found[shown] = None
            else:
                with open(path, "rb") as file:
                    found[shown] = file.read()
    return found


def loading(store: Store, key: str, target: Path, expected: dict[bytes, Any], **options: Any) -> str:
    """Load into a new directory: the outcome, where it is one of the two that there are."""
    try:
        store.load(key, target, **options)
    except ArtifactError as error:
        assert not target.exists(), "a load that failed left something behind"
        return told(error, store, key)
    assert content(target) == expected, "wrong bytes, and no error"
    return RIGHT


def failing(call: Callable[[], Any], store: Store, *names: str) -> str:
    """The error of a call that must not succeed."""
    try:
        call()
    except ArtifactError as error:
        return told(error, store, *names)
    raise AssertionError("no error")


def told(error: ArtifactError, store: Store, *names: str) -> str:
    """An error as the page has it. It is one line, and names what it is about."""
    message = str(error)
    assert "\n" not in message
    for name in names:
        assert name in message, f"{name} is not in: {message}"
    return f"`{type(error).__name__}`: {_general(message, store, names)}"


def _general(message: str, store: Store, names: tuple[str, ...]) -> str:
    for name in sorted(names, key=len, reverse=True):
        message = message.replace(name, "KEY" if name.startswith("mf.") else "PATH")
    message = message.replace(store.root, "ROOT")
    message = re.sub(r"mf\.artifacts/chunks/sha256/[0-9a-f]{2}/[0-9a-f]{62}", "CHUNK", message)
    message = re.sub(r"mf\.artifacts/gc/[0-9a-f]+(\.\d+)?\.(run|open|done)", "MARK", message)
    message = re.sub(r"mf\.(models|checkpoints)/[^\s'`:;,)]*", "KEY", message)
    message = re.sub(r"http://127\.0\.0\.1:\d+", "ENDPOINT", message)
    message = re.sub(r"ROOT/mf\.artifacts/tmp/[^\s'`:;,)]*", "ROOT/…", message)
    message = re.sub(r"/[^\s'`:;,)]*(\.metaflow_artifacts_|/tmp/|pytest-)[^\s'`:;,)]*", "PATH", message)
    # What the libraries below say, in words that change with their versions.
    message = re.sub(r"\(its content has SHA-256 [^)]*\)", "(its content has SHA-256 …)", message)
    message = re.sub(r"(the connection to ENDPOINT broke|cannot connect to ENDPOINT) \(.*\)(?=;)", r"\1 (…)", message)
    return message.replace("|", "\\|")


class Outcomes:
    """The rows of the page: section, case, outcome."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, str]] = defaultdict(dict)

    def record(self, section: str, case: str, outcome: str) -> None:
        """One row. A case that several tests see, on several storages, must come out the same for all."""
        known = self.found[section].setdefault(case, outcome)
        assert known == outcome, f"{section}, {case}: both {known!r} and {outcome!r}"

    def table(self, section: str) -> str:
        """A section's rows in Markdown: cases of one outcome in one row, all in alphabetical order."""
        grouped: dict[str, list[str]] = defaultdict(list)
        for case, outcome in sorted(self.found[section].items()):
            grouped[outcome].append(case)
        rows = [f"| {_BREAK.join(cases)} | {outcome} |" for outcome, cases in grouped.items()]
        return "\n".join(["| case | outcome |", "| --- | --- |", *rows, ""])


_BREAK = "<br>"


def pairs(table: str) -> set[tuple[str, str]]:
    """Case and outcome of all rows of a table."""
    found = set()
    for row in table.splitlines()[2:]:
        cases, outcome = row.strip("| ").split(" | ", 1)
        found |= {(case, outcome) for case in cases.split(_BREAK)}
    return found


_TABLE = re.compile(r"(<!-- table: (?P<section>[^>]*?) -->\n)(?P<rows>.*?)(?=<!-- end -->)", re.DOTALL)


def tables(page: str) -> dict[str, str]:
    """The tables of the page by section."""
    return {match["section"]: match["rows"] for match in _TABLE.finditer(page)}


def with_tables(page: str, outcomes: Outcomes) -> str:
    """The page with its tables as the tests have found them."""
    return _TABLE.sub(lambda match: match[1] + outcomes.table(match["section"]), page)
