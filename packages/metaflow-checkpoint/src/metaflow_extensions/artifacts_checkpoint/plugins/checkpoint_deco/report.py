"""What the card shows: the data that a task collects, and the page that is made of it."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from metaflow_artifacts.plugin import (
    CardReport,
    Html,
    TimelinePoint,
    code,
    count_text,
    duration_text,
    facts,
    metadata_text,
    note,
    notice,
    paragraph,
    seconds_of,
    section,
    size_text,
    table,
    task_heading,
    tiles,
    time_text,
    timeline,
)

__all__ = ["Report"]

_MAX_ROWS = 200
"""Saves that the table shows."""
_MAX_POINTS = 300
"""Saves that the timeline shows."""
_KEPT_POINTS = 8
"""A name with at most this many points keeps all of them when the timeline is thinned out."""


def _none_pending() -> tuple[int, float]:
    return 0, 0.0


class Report(CardReport):
    """Collects what the card shows. Its size stays below a limit, however many checkpoints are saved.

    `new_saves` returns what was saved since its last call: entries of the journal. `background` returns how many saves
    in the background are pending, and how many seconds the step has waited for them.
    """

    name = "checkpoint"
    title = "Checkpoints"

    def __init__(
        self,
        pathspec: str,
        attempt: int,
        policy: str,
        new_saves: Callable[[], Sequence[Mapping[str, Any]]] = tuple,
        background: Callable[[], tuple[int, float]] = _none_pending,
    ) -> None:
        self.pathspec = pathspec
        self.begin = time.time()
        self._new_saves = new_saves
        self._background = background
        self._pending = 0
        self._head: dict[str, Any] = {"pathspec": pathspec, "attempt": attempt, "policy": policy, "begin": self.begin}
        self._loaded: dict[str, Any] = {"why": "", "warnings": [], "reference": None, "seconds": None}
        self._own_loads: dict[str, Any] = {"count": 0, "last": ""}
        self._own_loads_shown = 0
        self._total = {"count": 0, "size": 0, "stored": 0, "seconds": 0.0, "background": 0}
        self._rows: deque[dict[str, Any]] = deque(maxlen=_MAX_ROWS)
        self._points: list[dict[str, Any]] = []

    def note_loaded(
        self,
        why: str,
        reference: Mapping[str, Any] | None,
        seconds: float | None,
        warnings: Iterable[str],
        cached: int = 0,
    ) -> None:
        """Set what was loaded when the task began, and why it or nothing was; loading took `seconds`, and `cached`
        bytes came from the node's cache."""
        self._loaded = {
            "why": why,
            "warnings": list(warnings),
            "reference": _short(reference) if reference is not None else None,
            "seconds": seconds,
            "cached": cached,
        }

    def note_own_load(self, key: str) -> None:
        """Note that the code of the step has loaded `key`."""
        self._own_loads = {"count": self._own_loads["count"] + 1, "last": key}

    def changed(self) -> bool:
        saves = self._new_saves()
        self.add(saves)
        before = self._pending, self._own_loads_shown
        self._pending, self._own_loads_shown = self._background()[0], self._own_loads["count"]
        return bool(saves) or before != (self._pending, self._own_loads_shown)

    def parts(self, state: str) -> list[Html]:
        self.changed()
        return _content(self.data(state))

    def add(self, saves: Iterable[Mapping[str, Any]]) -> None:
        """Add what was saved: entries of the journal."""
        for save in saves:
            self._total["count"] += 1
            is_background = bool(save.get("background"))
            self._total["background"] += is_background
            self._total["seconds"] += 0.0 if is_background else save["seconds"]
            for name in ("size", "stored"):
                self._total[name] += save[name]
            row = {**_short(save), **{name: save[name] for name in ("stored", "seconds", "latest")}}
            self._rows.append(row)
            self._points.append({name: row[name] for name in ("created_on", "size", "name", "version_id", "latest")})
            if len(self._points) > _MAX_POINTS:
                self._thin_out()

    def _thin_out(self) -> None:
        """Drop every second point of each name that has many, but never the first and the last point."""
        counts = Counter(point["name"] for point in self._points)
        seen: Counter[str] = Counter()
        kept = []
        for point in self._points[:-1]:
            name = point["name"]
            seen[name] += 1
            if counts[name] <= _KEPT_POINTS or seen[name] % 2:
                kept.append(point)
        self._points = [*kept, self._points[-1]]

    def data(self, state: str) -> dict[str, Any]:
        """All that was collected; `state` is `running`, `done` or `failed`."""
        return {
            **self._head,
            "now": time.time(),
            "state": state,
            "loaded": self._loaded,
            "own_loads": self._own_loads,
            "total": self._total,
            "pending": self._background()[0],
            "waited": self._total["seconds"] + self._background()[1],
            "rows": list(self._rows)[::-1],
            "points": self._points,
        }


def _short(reference: Mapping[str, Any]) -> dict[str, Any]:
    fields = ("key", "name", "version_id", "pathspec", "attempt", "created_on", "size")
    return {**{name: reference[name] for name in fields}, "metadata": metadata_text(reference["metadata"])}


def _content(data: Mapping[str, Any]) -> list[Html]:
    return [task_heading("Checkpoints", data), _loaded(data), _saved(data)]


def _loaded(data: Mapping[str, Any]) -> Html:
    loaded = data["loaded"]
    warnings = [notice(text) for text in loaded["warnings"]]
    policy = ("policy", code(f"load_policy={data['policy']!r}"))
    own = data["own_loads"]
    later = [("loaded by the step", own["last"])] if own["count"] == 1 else []
    if own["count"] > 1:
        later = [("loaded by the step", f"{count_text(own['count'], 'time')}, the last time {own['last']}")]
    reference = loaded["reference"]
    if reference is None:
        why = [("why", loaded["why"])] if loaded["why"] else []
        title = "Loaded at the beginning: nothing" if later else "Loaded: nothing"
        return section(title, facts([policy, *why, *later]), *warnings)
    age = data["begin"] - seconds_of(reference["created_on"])
    cached = f", {size_text(loaded['cached'])} from the node's cache" if loaded["cached"] else ""
    rows = [
        policy,
        ("why", loaded["why"]),
        ("key", code(reference["key"])),
        ("saved by", f"{reference['pathspec']}, attempt {reference['attempt']}"),
        (
            "created",
            f"{time_text(reference['created_on'])} UTC, {duration_text(max(age, 0.0))} before this attempt began",
        ),
        ("name", f"{reference['name']}, number {reference['version_id']}"),
        ("size", f"{size_text(reference['size'])}, loaded in {duration_text(loaded['seconds'])}{cached}"),
    ]
    if reference["metadata"]:
        rows.append(("metadata", reference["metadata"]))
    return section("Loaded", facts([*rows, *later]), *warnings)


def _saved(data: Mapping[str, Any]) -> Html:
    total, rows = data["total"], data["rows"]
    pending = f"{count_text(data['pending'], 'save')} in the background not stored yet" if data["pending"] else ""
    if not rows:
        parts_yet = [paragraph("Nothing has been saved in this attempt" + _yet(data))]
        return section("Saved", *parts_yet, *([note(pending)] if pending else []))
    highest = size_text(max(point["size"] for point in data["points"]))
    parts: list[Html] = [
        _totals(data),
        timeline(
            [_point(point, data["begin"]) for point in data["points"]],
            data["now"] - data["begin"],
            height_label=f"size, up to {highest}, over the time since the attempt began",
            hollow_label="saved with latest=False",
        ),
    ]
    if total["background"]:
        parts.append(note(f"{count_text(total['background'], 'save')} of these in the background"))
    if pending:
        parts.append(note(pending))
    if len(data["points"]) < total["count"]:
        parts.append(note(f"The timeline shows {len(data['points'])} of them, some of each name."))
    parts.append(
        table(
            [
                ("name", "text"),
                ("number", "number"),
                ("created (UTC)", "short"),
                ("size", "number"),
                ("new bytes stored", "number"),
                ("seconds", "number"),
                ("latest", "short"),
                ("metadata", "text"),
            ],
            [_row(row) for row in rows],
            [code(row["key"]) for row in rows],
        )
    )
    older = total["count"] - len(rows)
    if older:
        parts.append(note(f"and {count_text(older, 'older checkpoint')}, which Checkpoint().list(task=…) lists"))
    return section("Saved", *parts)


def _totals(data: Mapping[str, Any]) -> Html:
    total = data["total"]
    share = f" ({total['stored'] / total['size']:.0%} of it)" if total["size"] else ""
    since = data["now"] - seconds_of(data["rows"][0]["created_on"])
    since_what = "since the last save" if data["state"] == "running" else "from the last save to the end"
    return tiles(
        [
            (f"{total['count']:,}", "checkpoint" if total["count"] == 1 else "checkpoints"),
            (size_text(total["size"]), "content saved"),
            (size_text(total["stored"]), f"new bytes stored{share}"),
            (duration_text(data["waited"]), "the step waited for saves"),
            (duration_text(max(since, 0.0)), since_what),
        ]
    )


def _yet(data: Mapping[str, Any]) -> str:
    return " yet." if data["state"] == "running" else "."


def _point(save: Mapping[str, Any], begin: float) -> TimelinePoint:
    at = seconds_of(save["created_on"]) - begin
    label = f"{save['name']} {save['version_id']}: {size_text(save['size'])}, after {duration_text(max(at, 0.0))}"
    return TimelinePoint(at, save["size"], save["name"], label, hollow=not save["latest"])


def _row(row: Mapping[str, Any]) -> list[object]:
    return [
        row["name"],
        row["version_id"],
        time_text(row["created_on"]),
        size_text(row["size"]),
        size_text(row["stored"]),
        f"{row['seconds']:.3f}",
        "yes" if row["latest"] else "no",
        row["metadata"],
    ]
