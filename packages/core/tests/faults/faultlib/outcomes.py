"""What each fault leads to, in words, for the tables of docs/reliability.md."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faultlib.tables import pairs
from metaflow_artifacts import ArtifactError, Store

PROPERTY = "row of docs/reliability.md"
"""The name under which a row stands in a test's report."""

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
    """Load into a new directory. Returns the outcome: the right bytes, or an ArtifactError that left nothing."""
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
    """What one test finds. It goes into the test's report, from which `faultlib.page` makes the tables.

    `properties` are the test's `user_properties`. `shown` are the tables of the page, None while they are written.
    """

    def __init__(self, properties: list[tuple[str, object]], shown: dict[str, str] | None) -> None:
        self._properties = properties
        self._shown = shown

    def record(self, section: str, case: str, outcome: str) -> None:
        """One row of the page. The test fails where the page has another outcome for the case."""
        if self._shown is not None:
            assert section in self._shown, f"docs/reliability.md has no table {section!r}"
            on_page = pairs(self._shown[section]).get(case)
            assert on_page == outcome, f"docs/reliability.md, {section}, {case}: {on_page!r}, and found: {outcome!r}"
        row = (PROPERTY, [section, case, outcome])
        if row not in self._properties:
            self._properties.append(row)
