"""What the card shows: what a task has loaded and saved, and the page that is made of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metaflow_artifacts.plugin import (
    CardReport,
    Html,
    background_saves,
    code,
    count_text,
    duration_text,
    metadata_text,
    note,
    paragraph,
    section,
    size_text,
    table,
    task_heading,
    tiles,
    time_text,
)

__all__ = ["Report"]

_MAX_ROWS = 200
"""Loads that the card shows, and saves."""


@dataclass(frozen=True)
class _Event:
    """A load or a save."""

    artifact: Mapping[str, Any]
    seconds: float
    size: int
    """Bytes that were loaded or saved."""
    stored: int = 0
    """Bytes that were new to the datastore."""
    cached: int = 0
    """Bytes that came from the node's cache."""
    name: str = ""
    path: str = ""
    background: bool = False
    """Whether it was made while the step went on."""


class _Events:
    """Loads or saves: their totals, and the last of them, each as a row of the table and its key."""

    def __init__(self, row: Callable[[_Event], list[object]]) -> None:
        self._row = row
        # Noted by threads of the step, taken out by the one that writes the card.
        self._new: deque[_Event] = deque()
        self.count = self.size = self.stored = 0
        self.seconds = 0.0
        self.last: deque[tuple[list[object], str]] = deque(maxlen=_MAX_ROWS)

    def note(self, event: _Event) -> None:
        self._new.append(event)

    def take_new(self) -> bool:
        """Count what was noted since the last call; whether there was anything."""
        is_new = bool(self._new)
        while self._new:
            event = self._new.popleft()
            self.count += 1
            self.size += event.size
            self.stored += event.stored
            self.seconds += 0.0 if event.background else event.seconds
            self.last.append((self._row(event), event.artifact["key"]))
        return is_new


class Report(CardReport):
    """Collects what the card shows. Any thread may note a load or a save."""

    name = "model"
    title = "Models"

    def __init__(self, pathspec: str, attempt: int) -> None:
        self.pathspec = pathspec
        self._attempt = attempt
        self._loaded = _Events(_loaded_row)
        self._saved = _Events(_saved_row)

    def note_loaded(
        self, name: str | None, artifact: Mapping[str, Any], path: str, seconds: float, size: int, cached: int = 0
    ) -> None:
        """Note that `size` bytes of `artifact` were loaded into the directory `path`, `cached` of them from the node's
        cache.

        `name` is its name in `@model(load=…)`.
        """
        self._loaded.note(_Event(artifact, seconds, size, cached=cached, name=name or "load()", path=path))

    def note_saved(self, artifact: Mapping[str, Any], stored: int, seconds: float, *, background: bool = False) -> None:
        """Note that `artifact` was saved; `stored` bytes of it were new to the datastore."""
        self._saved.note(_Event(artifact, seconds, artifact["size"], stored, background=background))

    def changed(self) -> bool:
        return any([self._loaded.take_new(), self._saved.take_new()])

    def parts(self, state: str) -> list[Html]:
        self.changed()
        data = {"pathspec": self.pathspec, "attempt": self._attempt, "state": state, "now": time.time()}
        saves = background_saves()
        waited = self._saved.seconds + saves.seconds_waited
        return [task_heading(self.title, data), _loaded(self._loaded), _saved(self._saved, saves.pending, waited)]


def _loaded_row(event: _Event) -> list[object]:
    artifact = event.artifact
    return [
        event.name,
        artifact["type"],
        artifact["label"],
        artifact["pathspec"],
        _size(event),
        f"{event.seconds:.3f}",
        code(event.path),
        metadata_text(artifact["metadata"]),
    ]


def _size(event: _Event) -> str:
    """How much was loaded; where that is a part, of how much; and how much came from the node's cache."""
    whole = size_text(event.artifact["size"])
    loaded = whole if event.size == event.artifact["size"] else f"{size_text(event.size)} of {whole}"
    return f"{loaded}, {size_text(event.cached)} from the node's cache" if event.cached else loaded


def _saved_row(event: _Event) -> list[object]:
    artifact = event.artifact
    return [
        artifact["label"],
        time_text(artifact["created_on"]),
        size_text(artifact["size"]),
        size_text(event.stored),
        f"{event.seconds:.3f}",
        metadata_text(artifact["metadata"]),
    ]


def _loaded(events: _Events) -> Html:
    if not events.count:
        return section("Loaded: nothing")
    columns = [
        ("name", "text"),
        ("type", "short"),
        ("label", "text"),
        ("saved by", "text"),
        ("size", "number"),
        ("seconds", "number"),
        ("loaded to", "text"),
        ("metadata", "text"),
    ]
    numbers = [
        (f"{events.count:,}", "artifact" if events.count == 1 else "artifacts"),
        (size_text(events.size), "content loaded"),
        (duration_text(events.seconds), "spent on loading"),
    ]
    return section("Loaded", tiles(numbers), *_table(columns, events))


def _saved(events: _Events, pending: int, waited: float) -> Html:
    notes = [note(f"{count_text(pending, 'save')} in the background not stored yet")] if pending else []
    if not events.count:
        return section("Saved", paragraph("Nothing was saved."), *notes)
    columns = [
        ("label", "text"),
        ("created (UTC)", "short"),
        ("size", "number"),
        ("new bytes stored", "number"),
        ("seconds", "number"),
        ("metadata", "text"),
    ]
    numbers = [
        (f"{events.count:,}", "model" if events.count == 1 else "models"),
        (size_text(events.size), "content saved"),
        (size_text(events.stored), "new bytes stored"),
        (duration_text(waited), "the step waited for saves"),
    ]
    return section("Saved", tiles(numbers), *notes, *_table(columns, events))


def _table(columns: Sequence[tuple[str, str]], events: _Events) -> list[Html]:
    """The last events with their keys, the newest first."""
    newest_first = list(events.last)[::-1]
    shown = table(columns, [row for row, _ in newest_first], [code(key) for _, key in newest_first])
    older = events.count - len(newest_first)
    return [shown, note(f"and {count_text(older, 'earlier one')}")] if older else [shown]
