"""What the card shows: the repos that a task asked for, and the page that is made of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
        return _content(_data_of(self._hub, state))


def _data_of(hub: CurrentHuggingfaceHub, state: str) -> dict[str, Any]:
    events = list(hub.events)
    return {
        "pathspec": hub.task.pathspec,
        "attempt": hub.task.attempt,
        "cache_scope": hub.cache_scope,
        "state": state,
        "now": time.time(),
        "count": len(events),
        "size": sum(event.result.artifact["size"] for event in events),
        "downloaded": sum(event.result.downloaded for event in events),
        "seconds": sum(event.seconds for event in events),
        "repos": [_repo(event) for event in events[-_MAX_REPOS:]],
    }


def _repo(event: Event) -> dict[str, Any]:
    result = event.result
    files = sorted(result.files, key=lambda file: file.size, reverse=True)
    return {
        **result.artifact["metadata"],
        "key": result.artifact["key"],
        "stored": result.artifact["created_on"],
        "size": result.artifact["size"],
        "from_hub": result.from_hub,
        "downloaded": result.downloaded,
        "fallback_reason": result.fallback_reason,
        "path": event.path,
        "seconds": event.seconds,
        "file_count": len(files),
        "files": [[file.path, file.size] for file in files[:_MAX_FILES]],
    }


def _content(data: Mapping[str, Any]) -> list[Html]:
    parts = [task_heading("Hugging Face repos", data, f"cache_scope={data['cache_scope']!r}")]
    repos: Sequence[Mapping[str, Any]] = data["repos"]
    if not repos:
        return [*parts, paragraph("No repo was asked for.")]
    parts.append(
        tiles(
            [
                (f"{data['count']:,}", "repo" if data["count"] == 1 else "repos"),
                (size_text(data["size"]), "content"),
                (size_text(data["downloaded"]), "came from the Hub"),
                (duration_text(data["seconds"]), "total time"),
            ]
        )
    )
    columns = [
        ("repo", "text"),
        ("revision", "text"),
        ("commit", "short"),
        ("files", "number"),
        ("size", "number"),
        ("from", "short"),
        ("came from the Hub", "number"),
        ("seconds", "number"),
    ]
    parts.append(section("Repos", table(columns, map(_row, repos))))
    if data["count"] > len(repos):
        parts.append(note(f"and {count_text(data['count'] - len(repos), 'earlier one')}"))
    parts.extend(map(_details, repos))
    return parts


def _name(repo: Mapping[str, Any]) -> str:
    return repo["repo_id"] if repo["repo_type"] == "model" else f"{repo['repo_id']} ({repo['repo_type']})"


def _source(repo: Mapping[str, Any]) -> str:
    return "the Hub" if repo["from_hub"] else "the datastore"


def _row(repo: Mapping[str, Any]) -> list[object]:
    return [
        _name(repo),
        repo["revision"],
        code(repo["commit"][:12]),
        f"{repo['file_count']:,}",
        size_text(repo["size"]),
        _source(repo),
        size_text(repo["downloaded"]),
        f"{repo['seconds']:.2f}",
    ]


def _details(repo: Mapping[str, Any]) -> Html:
    rows: list[tuple[str, object]] = [
        ("commit", code(repo["commit"])),
        ("key", code(repo["key"])),
        ("stored", f"{time_text(repo['stored'])} UTC"),
    ]
    for name in ("allow_patterns", "ignore_patterns"):
        if repo[name] is not None:
            rows.append((name, code(", ".join(repo[name]) or "none")))
    if repo["path"]:
        rows.append(("loaded to", code(repo["path"])))
    parts = [notice(repo["fallback_reason"])] if repo["fallback_reason"] else []
    parts.append(facts(rows))
    parts.append(
        table([("file", "text"), ("size", "number")], [(path, size_text(size)) for path, size in repo["files"]])
    )
    smaller = repo["file_count"] - len(repo["files"])
    if smaller:
        parts.append(note(f"and {count_text(smaller, 'smaller file')}"))
    return section(f"{_name(repo)} from {_source(repo)}", *parts)
