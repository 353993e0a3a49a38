"""What the card shows: the repos that a task asked for, and the page that is made of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from metaflow_artifacts.plugin import (
    CardReport,
    Html,
    code,
    count_text,
    duration_text,
    facts,
    note,
    notice,
    paragraph,
    section,
    size_text,
    table,
    task_heading,
    tiles,
    time_text,
)

if TYPE_CHECKING:
    from .current_hub import CurrentHuggingfaceHub, Event

__all__ = ["HubReport"]

_MAX_REPOS = 50
_MAX_FILES = 100
"""Files that the card lists of each repo, the largest first."""
_COLUMNS = [
    ("repo", "text"),
    ("revision", "text"),
    ("commit", "short"),
    ("files", "number"),
    ("size", "number"),
    ("from", "short"),
    ("came from the Hub", "number"),
    ("seconds", "number"),
]


class HubReport(CardReport):
    """What the card shows of the repos that a task has asked for so far."""

    name = "huggingface_hub"
    title = "Hugging Face repos"

    def __init__(self, hub: CurrentHuggingfaceHub) -> None:
        self.pathspec = hub.task.pathspec
        self._hub = hub
        self._seen = 0

    def changed(self) -> bool:
        seen, self._seen = self._seen, len(self._hub.events)
        return seen != self._seen

    def parts(self, state: str) -> list[Html]:
        hub, events = self._hub, list(self._hub.events)
        data = {"pathspec": hub.task.pathspec, "attempt": hub.task.attempt, "state": state, "now": time.time()}
        parts = [task_heading(self.title, data, f"cache_scope={hub.cache_scope!r}")]
        if not events:
            return [*parts, paragraph("No repo was asked for.")]
        parts.append(
            tiles(
                [
                    (f"{len(events):,}", "repo" if len(events) == 1 else "repos"),
                    (size_text(sum(event.result.artifact["size"] for event in events)), "content"),
                    (size_text(sum(event.result.downloaded for event in events)), "came from the Hub"),
                    (duration_text(sum(event.seconds for event in events)), "total time"),
                ]
            )
        )
        shown = events[-_MAX_REPOS:]
        parts.append(section("Repos", table(_COLUMNS, map(_row, shown))))
        if len(events) > len(shown):
            parts.append(note(f"and {count_text(len(events) - len(shown), 'earlier one')}"))
        return [*parts, *map(_details, shown)]


def _name(event: Event) -> str:
    repo = event.result.artifact["metadata"]
    return str(repo["repo_id"]) if repo["repo_type"] == "model" else f"{repo['repo_id']} ({repo['repo_type']})"


def _source(event: Event) -> str:
    return "the Hub" if event.result.from_hub else "the datastore"


def _row(event: Event) -> list[object]:
    result = event.result
    return [
        _name(event),
        result.artifact["metadata"]["revision"],
        code(result.commit[:12]),
        f"{len(result.files):,}",
        size_text(result.artifact["size"]),
        _source(event),
        size_text(result.downloaded),
        f"{event.seconds:.2f}",
    ]


def _details(event: Event) -> Html:
    result = event.result
    repo = result.artifact["metadata"]
    rows: list[tuple[str, object]] = [
        ("commit", code(result.commit)),
        ("key", code(result.artifact["key"])),
        ("stored", f"{time_text(result.artifact['created_on'])} UTC"),
    ]
    for name in ("allow_patterns", "ignore_patterns"):
        if repo[name] is not None:
            rows.append((name, code(", ".join(repo[name]) or "none")))
    if event.path:
        rows.append(("loaded to", code(event.path)))
    parts = [notice(result.fallback_reason)] if result.fallback_reason else []
    parts.append(facts(rows))
    files = sorted(result.files, key=lambda file: file.size, reverse=True)
    shown = [(file.path, size_text(file.size)) for file in files[:_MAX_FILES]]
    parts.append(table([("file", "text"), ("size", "number")], shown))
    if len(files) > len(shown):
        parts.append(note(f"and {count_text(len(files) - len(shown), 'smaller file')}"))
    return section(f"{_name(event)} from {_source(event)}", *parts)
