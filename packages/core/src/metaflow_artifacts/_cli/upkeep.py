"""The commands that check a store and remove from it: check, gc, delete, retain."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import chain
from typing import Any

from metaflow_artifacts._cli.bar import bar
from metaflow_artifacts._cli.output import escape, print_json, print_table, warn
from metaflow_artifacts._cli.roots import is_pattern, missing_store, resolve, store_of
from metaflow_artifacts._cli.selecting import PATTERN_HELP, matching, seconds
from metaflow_artifacts._format.keys import CHECKPOINTS, HUB
from metaflow_artifacts._store.deleting import delete_artifacts, stored_among
from metaflow_artifacts._text import count_text, period_text, size_text, time_text
from metaflow_artifacts._upkeep.check import check
from metaflow_artifacts._upkeep.gc import GRACE, GcStats, gc
from metaflow_artifacts._upkeep.needs import refuse_unknown_needs
from metaflow_artifacts._upkeep.retain import Group, RetentionPlan, Rules, execute_retention, plan_retention
from metaflow_artifacts.errors import ArtifactNotFound

__all__ = ["add_commands"]

_NOTHING = "nothing"
"""What gc says where it has nothing to remove."""


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add check, gc, delete and retain. `command` makes the parser of one command."""
    checked = command(
        "check", _check, "check that every artifact is whole: that its manifest is valid and its chunks exist"
    )
    checked.add_argument("keys", metavar="KEY", nargs="*", help="only these artifacts")
    checked.add_argument("--read", action="store_true", help="also read and hash every chunk")
    collected = command(
        "gc", _gc, "remove the chunks that no artifact needs; without --execute, print what would be removed"
    )
    collected.add_argument(
        "--grace",
        type=seconds,
        default=GRACE,
        metavar="TIME",
        help=f"keep what was written or needed within this time (default {period_text(GRACE)})",
    )
    collected.add_argument(
        "--exclusive",
        action="store_true",
        help="you make sure that nothing saves to this store until gc ends; then any --grace is safe",
    )
    _ignore(collected)
    _execute(collected)
    deleted = command(
        "delete",
        _delete,
        "delete artifacts; a later gc frees their space. If there is a pattern: without --execute, print which ones",
    )
    deleted.add_argument("keys", metavar="KEY", nargs="+", help=f"the artifact's key, its url, or {PATTERN_HELP}")
    _execute(deleted)
    _add_retain(command)


def _add_retain(command: Callable[..., argparse.ArgumentParser]) -> None:
    kept = command(
        "retain",
        _retain,
        "delete the checkpoints that no rule keeps; without --execute, print which ones",
    )
    kept.add_argument(
        "--last", type=int, metavar="N", help="keep the N newest; 0 also deletes the checkpoint that a retry would load"
    )
    kept.add_argument("--best", type=int, metavar="N", help="keep the N with the best value of --metric")
    kept.add_argument("--metric", metavar="NAME", help="the metadata value by which --best chooses")
    kept.add_argument("--lowest", action="store_true", help="the lowest value is the best, not the highest")
    kept.add_argument("--younger", type=seconds, metavar="TIME", help="keep what was saved within this time")
    kept.add_argument(
        "--flow", metavar="PATTERN", help="only checkpoints of flows of this name (* and ? are wildcards)"
    )
    kept.add_argument("--step", metavar="PATTERN", help="only checkpoints of steps of this name")
    kept.add_argument(
        "--per",
        choices=["task", "step"],
        default="task",
        help="the group that each rule is applied to: the checkpoints of one task in all runs (default; each namespace "
        "and foreach value is its own group), or all checkpoints of a step",
    )
    kept.add_argument(
        "--hub", action="store_true", help="apply the rules to snapshots of Hub repos instead of checkpoints"
    )
    _ignore(kept)
    _execute(kept)


def _ignore(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ignore",
        metavar="PREFIX",
        action="append",
        default=[],
        help="ignore objects at this key or below it that this version does not know; may be repeated",
    )


def _execute(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--execute", action="store_true", help="remove or delete; without this, only print")


def _check(options: argparse.Namespace) -> int:
    store, keys = resolve(options, options.keys)
    with bar("check") as progress:
        report = check(store, keys or None, read=options.read, progress=progress)
    if options.json:
        print_json({"ok": report.ok, **asdict(report)})
        return 0 if report.ok else 1
    for problem in report.problems:
        detail = problem.detail.removeprefix(f"{problem.key}: ")
        print(escape(f"{problem.kind}: {problem.key}: {detail}"))
    for note in report.notes:
        more = f" and {note.count - len(note.keys)} more" if note.count > len(note.keys) else ""
        print(escape(f"note: {', '.join(note.keys)}{more}: {note.detail}"))
    if report.foreign:
        them = "of metaflow-checkpoint, which have no digests: only their sizes were checked"
        print(f"note: {count_text(report.foreign, 'artifact')} {them}")
    seen = f"{count_text(report.artifacts, 'artifact')}, {count_text(report.files, 'file')}, {size_text(report.size)}"
    seen += f", in {count_text(report.chunks, 'chunk')} of {size_text(report.stored)}"
    read = f", {size_text(report.read)} read" if options.read else ""
    print(f"{seen}{read}: " + ("whole" if report.ok else count_text(len(report.problems), "problem")))
    return 0 if report.ok else 1


def _gc(options: argparse.Namespace) -> int:
    store = store_of(options)
    with bar("gc") as progress:
        stats = gc(
            store,
            grace=options.grace,
            exclusive=options.exclusive,
            dry_run=not options.execute,
            ignore=options.ignore,
            progress=progress,
        )
    if options.json:
        print_json(asdict(stats))
        return 0
    artifacts = count_text(stats.artifacts, "artifact")
    print(f"{count_text(stats.chunks, 'chunk')} of {size_text(stats.stored)} in the store, for {artifacts}")
    removed = _removed_text(stats)
    hint = "; --execute does it" if stats.dry_run and removed != _NOTHING else ""
    print(f"{'would remove' if stats.dry_run else 'removed'} {removed}{hint}")
    waiting = stats.waiting
    if waiting.first is not None and waiting.last is not None:
        print(
            f"kept {count_text(waiting.chunks, 'chunk')} of {size_text(waiting.size)} that no artifact needs: written "
            f"or needed within the grace period of {period_text(options.grace)}; "
            f"gc can remove {_from(waiting.first, waiting.last)}"
        )
    if stats.keeps_versions:
        print(
            "the bucket keeps versions: what gc removes takes space until a lifecycle rule of the bucket expires "
            "noncurrent versions"
        )
    return 0


def _removed_text(stats: GcStats) -> str:
    counts = (
        (stats.removed, "chunk"),
        (stats.temporary, "temporary file"),
        (stats.tombstones, "tombstone"),
        (stats.choices, "gang choice"),
        (stats.marks, "gc mark"),
    )
    found = ", ".join(count_text(count, what) for count, what in counts if count)
    return f"{found} of {size_text(stats.freed)}" if found else _NOTHING


def _from(first: float, last: float) -> str:
    begin, end = (time_text(moment) for moment in (first, last))
    return f"them after {end} UTC" if begin == end else f"the first after {begin} UTC, all after {end} UTC"


def _delete(options: argparse.Namespace) -> int:
    store, texts = resolve(options, options.keys, patterns=True)
    selects = any(map(is_pattern, texts))
    execute = options.execute or not selects
    if selects:
        refuse_unknown_needs(store.storage)
    found = matching(store.storage, texts)
    theirs = list(dict.fromkeys((*found.foreign, *store.foreign_among(found.given))))
    given = [key for key in dict.fromkeys((*found.given, *found.listed)) if key not in set(theirs)]
    deleted = []
    with bar("delete") as progress:
        own = delete_artifacts(store.storage, given) if execute else stored_among(store.storage, given)
        for key in chain(own, theirs):
            if execute and key in theirs:
                store.delete(key)
            deleted.append(key)
            if not options.json:
                progress.hide()
                print(f"{'deleted' if execute else 'would delete'} {escape(key)}")
    # What only matched a pattern was there a moment ago.
    missing = [key for key in found.given if key not in set(deleted)]
    if missing and not deleted and (reason := missing_store(options)):
        raise ArtifactNotFound(reason)
    for key in missing:
        warn(f"nothing is stored at {store.storage.url(key)}: nothing was deleted")
    if options.json:
        done = {"deleted": deleted} if execute else {"deleted": [], "would_delete": deleted}
        print_json({**done, "missing": missing})
    elif not execute:
        print(f"\nwould delete {count_text(len(deleted), 'artifact')}; --execute does it")
    return 1 if missing else 0


def _retain(options: argparse.Namespace) -> int:
    rules = Rules(options.last, options.best, options.metric, options.lowest, options.younger)
    store = store_of(options)
    root = HUB if options.hub else CHECKPOINTS
    with bar("retain") as progress:
        plan = plan_retention(
            store,
            rules,
            flow=options.flow,
            step=options.step,
            per=options.per,
            root=root,
            ignore=options.ignore,
            progress=progress,
        )
    if not options.json:
        print_table(("created on", "size", "decision", "key"), _decisions(plan), right=["size"])
    for group in plan.groups:
        for key in group.unreadable:
            warn(f"{key} is damaged and was left alone; `check` says more")
    stats = execute_retention(store, plan) if options.execute else None
    if options.json:
        groups = [_as_json(group) for group in plan.groups]
        print_json({"executed": options.execute, "size": plan.size, "groups": groups})
        return 0
    if not plan.groups and (options.flow or options.step):
        print("\nno checkpoint matches --flow and --step")
    elif not plan.delete:
        print("\nno checkpoint to delete")
    elif stats is None:
        checkpoints = count_text(len(plan.delete), "checkpoint")
        print(f"\nwould delete {checkpoints} of {size_text(plan.size)}; --execute does it")
    else:
        print(f"\ndeleted {count_text(stats.deleted, 'checkpoint')} of {size_text(stats.size)}; gc frees their space")
    return 0


def _decisions(plan: RetentionPlan) -> Iterator[tuple[str, ...]]:
    """A row for each checkpoint: newest first in each group."""
    for group in plan.groups:
        decided = [(kept.artifact, "keep: " + ", ".join(kept.rules)) for kept in group.keep]
        decided += [(artifact, "delete") for artifact in group.delete]
        decided.sort(key=lambda pair: pair[0]["created_on"], reverse=True)
        for artifact, what in decided:
            yield time_text(artifact["created_on"]), size_text(artifact["size"]), what, artifact["key"]


def _as_json(group: Group) -> dict[str, Any]:
    return {
        "flow": group.flow,
        "step": group.step,
        "task": group.task,
        "keep": [{"key": kept.artifact["key"], "rules": kept.rules} for kept in group.keep],
        "delete": [artifact["key"] for artifact in group.delete],
        "unreadable": group.unreadable,
    }
