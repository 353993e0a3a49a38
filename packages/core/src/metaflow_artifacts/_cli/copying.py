"""The command that copies artifacts to another store."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from metaflow_artifacts._cli.bar import bar
from metaflow_artifacts._cli.output import escape, print_json, warn
from metaflow_artifacts._cli.roots import is_pattern, resolve, target_of
from metaflow_artifacts._layout import ARTIFACT_PREFIXES
from metaflow_artifacts._storage import Storage
from metaflow_artifacts._store.copying import CopyResult, copy_artifacts
from metaflow_artifacts._text import count_text, size_text
from metaflow_artifacts._upkeep.survey import Strays, artifact_objects
from metaflow_artifacts.errors import ArtifactNotFound, CorruptArtifact, InvalidReference

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
        help="the artifact's key, its url, or a pattern that keys match (* and ? are wildcards; * also matches /)",
    )
    copied.add_argument(
        "--to", metavar="ROOT", required=True, help="the other store, named as for --root; it is made if there is none"
    )
    copied.add_argument("--lineage", action="store_true", help="also copy the artifacts that these were made from")
    copied.add_argument("--verify", action="store_true", help="read and verify all content in the other store")


def _copy(options: argparse.Namespace) -> int:
    store, texts = resolve(options, options.keys, patterns=True)
    keys, listed, foreign = _matching(store.storage, texts)
    target, exists = target_of(options)
    if foreign:
        warn(f"{count_text(len(foreign), 'artifact')} of metaflow-checkpoint left out: this version cannot copy them")
    with bar("copy") as progress:
        outcome = copy_artifacts(store, target, keys, options.lineage, options.verify, progress, listed)
    result, failures = outcome.result, outcome.failures
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
                "left_out": foreign,
                "stopped": None if outcome.stopped is None else str(outcome.stopped),
                "sent": result.sent,
                "by_service": result.by_service,
            }
        )
    else:
        _print(result, store.root, target.root, exists)
    if outcome.stopped is not None:
        # `main` prints it, and gives the exit code.
        raise outcome.stopped
    if not failures:
        return 0
    damaged = all(isinstance(error, (ArtifactNotFound, CorruptArtifact)) for error in failures.values())
    return 1 if damaged else 2


def _matching(storage: Storage, texts: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
    """The keys that are given; those that match a pattern; the artifacts of metaflow-checkpoint that match.

    Raises ArtifactNotFound for a pattern that no artifact matches, InvalidReference for one that no key can match.
    """
    keys: dict[str, None] = {}
    listed: dict[str, None] = {}
    foreign: set[str] = set()
    for text in texts:
        if not is_pattern(text):
            keys[text] = None
            continue
        prefixes = _prefixes(text)
        if not prefixes:
            raise InvalidReference(
                f"{text!r}: no key begins like this pattern; pass a pattern for keys, such as '*' or 'mf.models/*', "
                "and name the store with --root"
            )
        strays = Strays(storage)
        found = [
            info.key
            for info in artifact_objects(storage, prefixes, strays)
            if fnmatchcase(info.key, text) and not strays.foreign.is_tar(info.key, look=False)
        ]
        met = {key for key in strays.foreign.met if fnmatchcase(key, text)}
        if not found and not met:
            raise ArtifactNotFound(f"{storage.root}: no artifact has a key that matches {text!r}; `ls` lists them")
        listed.update(dict.fromkeys(found))
        foreign |= met
    return list(keys), list(listed), sorted(foreign)


def _prefixes(pattern: str) -> list[str]:
    """The prefixes to list for the keys that match a pattern."""
    begin = pattern[: min(at for at in map(pattern.find, "*?[") if at >= 0)]
    return [
        begin if begin.startswith(prefix) else prefix
        for prefix in ARTIFACT_PREFIXES
        if begin.startswith(prefix) or prefix.startswith(begin)
    ]


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
