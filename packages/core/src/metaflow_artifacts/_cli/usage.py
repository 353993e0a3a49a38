"""The command `du`: how much space artifacts take, for each flow, step, label, user or age."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

from metaflow_artifacts._cli.bar import bar
from metaflow_artifacts._cli.output import print_json, print_table, warn
from metaflow_artifacts._cli.roots import store_of
from metaflow_artifacts._cli.selecting import Selection, add_selection
from metaflow_artifacts._format.manifest import Outline
from metaflow_artifacts._format.reference import ModelArtifact
from metaflow_artifacts._store.checkpoints import created_at
from metaflow_artifacts._text import count_text, size_text
from metaflow_artifacts._upkeep.survey import outlines, stored_chunks
from metaflow_artifacts.errors import CorruptArtifact, InvalidInput

__all__ = ["add_commands"]

_DAY_S = 24 * 3600.0
_AGES = ((1, "up to 1 day"), (7, "up to 1 week"), (30, "up to 30 days"), (90, "up to 90 days"), (365, "up to 1 year"))
_OLDER = "older"
_BY = ("type", "flow", "step", "label", "user", "age")


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add du. `command` makes the parser of one command."""
    du = command("du", _du, "show the size of the artifacts, and the space that they take in the store")
    du.add_argument(
        "--by",
        choices=_BY,
        action="append",
        help="a group for each value of this; may be repeated (default: type and flow). The user who started a run "
        "comes from Metaflow's metadata, with a request for each run",
    )
    add_selection(du)


@dataclass
class _Usage:
    artifacts: int = 0
    logical: int = 0
    inline: int = 0
    chunks: dict[bytes, int] = field(default_factory=dict)

    @property
    def stored(self) -> int:
        return self.inline + sum(self.chunks.values())

    def add(self, outline: Outline) -> None:
        self.artifacts += 1
        self.logical += outline.artifact["size"]
        if not outline.chunks:
            self.inline += outline.artifact["size"]
        else:
            self.chunks.update((bytes.fromhex(chunk.sha256), chunk.size) for chunk in outline.chunks)

    def merge(self, other: _Usage) -> None:
        self.artifacts += other.artifacts
        self.logical += other.logical
        self.inline += other.inline
        self.chunks.update(other.chunks)


def _du(options: argparse.Namespace) -> int:
    by: Sequence[str] = tuple(dict.fromkeys(options.by or ("type", "flow")))
    if "user" in by and find_spec("metaflow") is None:
        raise InvalidInput("--by user needs Metaflow, whose metadata says who started a run: pip install metaflow")
    store = store_of(options)
    selection = Selection.of(options, store.storage)
    groups: dict[tuple[str, ...], _Usage] = defaultdict(_Usage)
    total = _Usage()
    damaged = 0
    with bar("du") as progress:
        for _, outline in outlines(store, selection.objects(store.storage), progress=progress):
            if isinstance(outline, CorruptArtifact):
                damaged += 1
                progress.hide()
                warn(str(outline))
            elif outline is not None and selection.matches(outline.artifact):
                total.add(outline)
                names = tuple(_value(name, outline.artifact, selection.now) for name in by)
                groups[names].add(outline)
        if "user" in by:
            groups = _by_user(groups, by.index("user"))
        rows = sorted(groups.items(), key=lambda item: (-item[1].logical, item[0]))
        # What only some of the artifacts need says nothing about the other chunks.
        stored = None if selection.is_part else stored_chunks(store.storage)
    _print(options, by, rows, total, stored)
    return 1 if damaged else 0


def _value(by: str, artifact: ModelArtifact, now: float) -> str:
    flow, run, step, *_ = (*artifact["pathspec"].split("/"), "", "", "")
    if by == "age":
        days = (now - created_at(artifact)) / _DAY_S
        return next((text for most, text in _AGES if days <= most), _OLDER)
    values = {
        "type": artifact["type"],
        "flow": flow,
        "step": step,
        "label": artifact["label"],
        # The run, until all are known.
        "user": f"{flow}/{run}" if run else "",
    }
    return values[by]


def _by_user(groups: dict[tuple[str, ...], _Usage], index: int) -> dict[tuple[str, ...], _Usage]:
    from metaflow_artifacts._mf.users import users_of_runs

    users = users_of_runs(names[index] for names in groups if names[index])
    merged: dict[tuple[str, ...], _Usage] = defaultdict(_Usage)
    for names, usage in groups.items():
        named = (*names[:index], users.get(names[index], ""), *names[index + 1 :])
        merged[named].merge(usage)
    return merged


def _print(
    options: argparse.Namespace,
    by: Sequence[str],
    rows: Sequence[tuple[tuple[str, ...], _Usage]],
    total: _Usage,
    stored: dict[bytes, int] | None,
) -> None:
    everything = total.stored if stored is None else total.inline + sum(stored.values())
    unneeded = sum(value for digest, value in (stored or {}).items() if digest not in total.chunks)
    if options.json:
        sizes = [{"artifacts": u.artifacts, "logical": u.logical, "stored": u.stored} for _, u in rows]
        print_json(
            {
                "artifacts": total.artifacts,
                "logical": total.logical,
                "stored": everything,
                "unneeded": None if stored is None else unneeded,
                "groups": [
                    {**dict(zip(by, names, strict=True)), **size} for (names, _), size in zip(rows, sizes, strict=True)
                ],
            }
        )
        return
    print_table(
        (*by, "artifacts", "logical", "stored"),
        [
            (*(name or "-" for name in names), str(u.artifacts), size_text(u.logical), size_text(u.stored))
            for names, u in rows
        ],
        right=["artifacts", "logical", "stored"],
    )
    artifacts = count_text(total.artifacts, "artifact")
    print(f"\n{size_text(total.logical)} in {artifacts}, stored in {size_text(everything)}", end="")
    print(f", of which no artifact needs {size_text(unneeded)}" if unneeded else "")
