"""The command that copies artifacts to another store."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from metaflow_artifacts._cli.bar import bar
from metaflow_artifacts._cli.output import escape, print_json, warn
from metaflow_artifacts._cli.roots import missing_store, resolve, target_of
from metaflow_artifacts._cli.selecting import PATTERN_HELP, matching
from metaflow_artifacts._store.copying import CopyResult, copy_artifacts
from metaflow_artifacts._text import count_text, size_text
from metaflow_artifacts.errors import ArtifactNotFound, CorruptArtifact

__all__ = ["add_commands"]


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add copy. `command` makes the parser of one command."""
    copied = command(
        "copy",
        _copy,
        "copy artifacts to another store, with the same keys, dates and parents; what is there is not sent again",
    )
    copied.add_argument(
        "keys",
        metavar="KEY",
        nargs="+",
        help=f"the artifact's key, its url, or {PATTERN_HELP}",
    )
    copied.add_argument(
        "--to", metavar="ROOT", required=True, help="the other store, named as for --root; it is made if there is none"
    )
    copied.add_argument("--lineage", action="store_true", help="also copy the artifacts that these were made from")
    copied.add_argument("--verify", action="store_true", help="read and verify all content in the other store")


def _copy(options: argparse.Namespace) -> int:
    store, texts = resolve(options, options.keys, patterns=True)
    found = matching(store.storage, texts)
    keys, listed = found.given, [*found.listed, *found.foreign]
    target, exists = target_of(options)
    with bar("copy") as progress:
        outcome = copy_artifacts(store, target, keys, options.lineage, options.verify, progress, listed)
    result, failures = outcome.result, outcome.failures
    is_missing = failures and all(isinstance(error, ArtifactNotFound) for error in failures.values())
    if is_missing and not result.copied and not result.present and (reason := missing_store(options)):
        raise ArtifactNotFound(reason)
    for error in failures.values():
        warn(str(error))
    if options.json:
        print_json(
            {
                "to": target.root,
                "copied": result.copied,
                "present": result.present,
                "missing_parents": result.missing_parents,
                "failed": {key: str(error) for key, error in failures.items()},
                "stopped": None if outcome.stopped is None else str(outcome.stopped),
                "sent": result.sent,
                "by_service": result.by_service,
            }
        )
    elif outcome.stopped is None or result.copied or result.present:
        _print(result, store.root, target.root, exists)
    options.printed = True
    if outcome.stopped is not None:
        # `main` prints it, and gives the exit code.
        raise outcome.stopped
    if not failures:
        return 0
    damaged = all(isinstance(error, (ArtifactNotFound, CorruptArtifact)) for error in failures.values())
    return 1 if damaged else 2


def _print(result: CopyResult, root: str, target: str, exists: bool) -> None:
    for key in result.copied:
        print(f"copied {escape(key)}")
    for key in result.missing_parents:
        print(f"note: {escape(key)}, which others were made from, does not exist in {escape(root)} any more")
    were = "was" if len(result.present) == 1 else "were"
    there = f"; {len(result.present):,} {were} there already" if result.present else ""
    print(
        f"{count_text(len(result.copied), 'artifact')} copied to {escape(target)}{'' if exists else ', a new store'}"
        f"{there}; {size_text(result.by_service)} copied by the service, {size_text(result.sent)} sent from here"
    )
