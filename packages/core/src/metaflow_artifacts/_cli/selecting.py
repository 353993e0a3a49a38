"""Which artifacts a command is about: by patterns of keys, by flow, step, label, kind and age."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from metaflow_artifacts._cli.roots import is_pattern
from metaflow_artifacts._format.keys import CHECKPOINTS, CheckpointKey, ModelKey
from metaflow_artifacts._format.reference import ModelArtifact
from metaflow_artifacts._layout import ARTIFACT_PREFIXES
from metaflow_artifacts._storage import ObjectInfo, Storage
from metaflow_artifacts._store.checkpoints import created_at
from metaflow_artifacts._store.foreign import keys_of_foreign
from metaflow_artifacts._store.listing import artifacts
from metaflow_artifacts._text import parse_period
from metaflow_artifacts._transfer.gc_marks import CLOCK_SKEW_S
from metaflow_artifacts._transfer.threads import ordered
from metaflow_artifacts._upkeep.survey import artifact_objects
from metaflow_artifacts.errors import ArtifactNotFound, InvalidReference

__all__ = ["PATTERN_HELP", "Matches", "Selection", "add_selection", "count", "matching", "seconds"]

PATTERN_HELP = "a pattern that keys match (* and ? are wildcards; * also matches /)"


def seconds(text: str) -> float:
    """A period as an option takes it. Raises ArgumentTypeError."""
    try:
        return parse_period(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    """A number from 0 as an option takes it. Raises ArgumentTypeError."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected a number from 0, found {text!r}")
    return int(text)


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add the options from which `Selection.of` is made."""
    parser.add_argument("patterns", metavar="PATTERN", nargs="*", help=f"only these keys: {PATTERN_HELP}")
    parser.add_argument("--type", choices=["model", "checkpoint"], help="only models, or only checkpoints")
    parser.add_argument(
        "--flow", metavar="PATTERN", help="only what flows of this name have saved (* and ? are wildcards)"
    )
    parser.add_argument("--step", metavar="PATTERN", help="only what steps of this name have saved")
    parser.add_argument("--label", metavar="PATTERN", help="only what was saved under this label")
    parser.add_argument("--younger", type=seconds, metavar="TIME", help="only what was saved within this time")
    parser.add_argument("--older", type=seconds, metavar="TIME", help="only what was saved before this time")


@dataclass(frozen=True)
class Selection:
    """Artifacts that a command is about. What a listing shows decides first, so that few manifests are read."""

    patterns: tuple[str, ...]
    type: str | None
    flow: str | None
    step: str | None
    label: str | None
    younger: float | None
    older: float | None
    now: float
    """Seconds since the epoch, by the storage's clock."""

    @classmethod
    def of(cls, options: argparse.Namespace, storage: Storage) -> Selection:
        """What the options of `add_selection` say."""
        return cls(
            tuple(options.patterns),
            options.type,
            options.flow,
            options.step,
            options.label,
            options.younger,
            options.older,
            storage.now(),
        )

    @property
    def is_part(self) -> bool:
        """Whether there may be artifacts that are not among them."""
        # An empty text is a pattern too: of what was saved outside of flows.
        wanted = (self.type, self.flow, self.step, self.label, self.younger, self.older)
        return bool(self.patterns) or any(value is not None for value in wanted)

    def objects(self, storage: Storage) -> Iterator[ObjectInfo]:
        """The objects of a store that may be among them, by key and time. Raises InvalidReference, StorageError."""
        return (info for prefix in self._prefixes() for info in self._objects(storage, prefix))

    def all_objects(self, storage: Storage) -> tuple[list[ObjectInfo], list[str]]:
        """All of `objects`, and the keys of what metaflow-checkpoint has stored that may be among them.

        The prefixes are listed at the same time. Raises as `objects`.
        """
        prefixes = self._prefixes()

        def listed(number: int) -> tuple[list[ObjectInfo], list[str]]:
            prefix = prefixes[number // 2]
            return ([], self._foreign(storage, prefix)) if number % 2 else ([*self._objects(storage, prefix)], [])

        found = [*ordered(storage, listed, range(2 * len(prefixes)))]
        return [info for infos, _ in found for info in infos], [key for _, keys in found for key in keys]

    def _objects(self, storage: Storage, prefix: str) -> Iterator[ObjectInfo]:
        return (info for key, info in artifacts(storage.list(prefix)) if self._may_be(key, info))

    def _foreign(self, storage: Storage, prefix: str) -> list[str]:
        return [
            key
            for key in keys_of_foreign(storage, [prefix])
            if not self.patterns or any(fnmatchcase(key, pattern) for pattern in self.patterns)
        ]

    def _prefixes(self) -> list[str]:
        kinds = [
            prefix
            for prefix in ARTIFACT_PREFIXES
            if self.type is None or (self.type == "model") is ("/models/" in prefix)
        ]
        if not self.patterns:
            return kinds
        found = {prefix for pattern in self.patterns for prefix in prefixes_of(pattern)}
        # A prefix that lies below another one is listed with it.
        found = {prefix for prefix in found if not any(prefix != more and prefix.startswith(more) for more in found)}
        return sorted(prefix for prefix in found if prefix.startswith(tuple(kinds)))

    def _may_be(self, key: ModelKey | CheckpointKey, info: ObjectInfo) -> bool:
        if self.younger is not None and info.modified < self.now - self.younger - CLOCK_SKEW_S:
            return False
        if self.patterns and not any(fnmatchcase(info.key, pattern) for pattern in self.patterns):
            return False
        if isinstance(key, ModelKey):
            return _fits(self.label, key.label)
        # The place of a snapshot of the Hub may stand for many flows.
        is_of_task = key.place.root == CHECKPOINTS
        return not is_of_task or (_fits(self.flow, key.place.flow) and _fits(self.step, key.place.step))

    def matches(self, artifact: ModelArtifact) -> bool:
        """Whether an artifact whose object may be among them is."""
        flow, _, step, *_ = (*artifact["pathspec"].split("/"), "", "", "")
        wanted = ((self.flow, flow), (self.step, step), (self.label, artifact["label"]))
        if not all(_fits(pattern, value) for pattern, value in wanted):
            return False
        if self.younger is None and self.older is None:
            return True
        age = self.now - created_at(artifact)
        return (self.younger is None or age <= self.younger) and (self.older is None or age > self.older)


def _fits(pattern: str | None, value: str) -> bool:
    return pattern is None or fnmatchcase(value, pattern)


@dataclass(frozen=True)
class Matches:
    """What the keys and patterns of a command name."""

    given: list[str]
    """Keys that were given."""
    listed: list[str]
    """Keys that match a pattern."""
    foreign: list[str]
    """Artifacts of metaflow-checkpoint that match one."""


def matching(storage: Storage, texts: Iterable[str]) -> Matches:
    """The artifacts that keys and patterns name; the keys are not looked up.

    Raises ArtifactNotFound for a pattern that no artifact matches, InvalidReference for one that no key can match.
    """
    keys: dict[str, None] = {}
    listed: dict[str, None] = {}
    foreign: set[str] = set()
    for text in texts:
        if not is_pattern(text):
            keys[text] = None
            continue
        prefixes = prefixes_of(text)
        met = {key for key in keys_of_foreign(storage, prefixes) if fnmatchcase(key, text)}
        objects = artifact_objects(storage, prefixes)
        found = [info.key for info in objects if fnmatchcase(info.key, text) and info.key not in met]
        if not found and not met:
            raise ArtifactNotFound(f"{storage.root}: no artifact has a key that matches {text!r}; `ls` lists them")
        listed.update(dict.fromkeys(found))
        foreign |= met
    return Matches(list(keys), list(listed), sorted(foreign))


def prefixes_of(pattern: str) -> list[str]:
    """The prefixes to list for the keys that match a pattern, or for one key. Raises InvalidReference for none."""
    begin = pattern[: min((at for at in map(pattern.find, "*?[") if at >= 0), default=len(pattern))]
    found = [
        begin if begin.startswith(prefix) else prefix
        for prefix in ARTIFACT_PREFIXES
        if begin.startswith(prefix) or prefix.startswith(begin)
    ]
    if not found:
        raise InvalidReference(
            f"{pattern!r}: no key begins like this pattern; pass a pattern for keys, such as '*' or 'mf.models/*', "
            "and name the store with --root"
        )
    return found
