"""Which artifacts a copy takes, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from metaflow_artifacts._format.foreign import ForeignArtifact
from metaflow_artifacts._format.keys import CheckpointKey, attempt_of, parse_key
from metaflow_artifacts._format.manifest import begins_manifest
from metaflow_artifacts._format.reference import ModelArtifact
from metaflow_artifacts._store.references import ParsedReference, Reference
from metaflow_artifacts._transfer.threads import ordered
from metaflow_artifacts.errors import (
    ArtifactError,
    ArtifactNotFound,
    CorruptArtifact,
    InvalidReference,
    UnsupportedFormat,
)

if TYPE_CHECKING:
    from metaflow_artifacts._store.store import Store

__all__ = ["Plan", "Planned", "in_waves"]

_SMALL_BYTES = 128 << 10
"""A manifest below this size is read once: it may hold the content of a small artifact."""
_KEPT_BYTES = 32 << 20
"""Of how many bytes of manifests the content is kept until they are copied."""


class Planned(NamedTuple):
    """What is kept of an artifact of the source until it is copied."""

    created_on: str
    attempt: int
    version_id: int
    key: str
    pathspec: str
    size: int
    """Of its content, in bytes."""
    parents: tuple[str, ...]
    data: bytes | None
    """Its manifest, if that is small."""
    foreign: ForeignArtifact | None = None
    """What metaflow-checkpoint has stored, of which a manifest is made."""

    @classmethod
    def of(cls, artifact: ModelArtifact, data: bytes | None) -> Planned:
        return cls(
            artifact["created_on"],
            artifact["attempt"],
            artifact.get("version_id", 0),
            artifact["key"],
            artifact["pathspec"],
            artifact["size"],
            tuple(artifact.get("parents", ())),
            data,
        )

    @classmethod
    def of_foreign(cls, found: ForeignArtifact, wanted: ParsedReference) -> Planned:
        return cls.of(found.artifact, None)._replace(key=wanted.own_key, foreign=found)

    @property
    def is_checkpoint(self) -> bool:
        return isinstance(parse_key(self.key), CheckpointKey)


@dataclass
class Plan:
    """The artifacts to copy. Those that cannot be are `failures`."""

    source: Store
    listed: frozenset[str]
    """Keys that nobody has named: if nothing is there any more, that is no failure."""
    found: dict[str, Planned] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    """Ancestors that do not exist."""
    failures: dict[str, ArtifactError] = field(default_factory=dict)
    _ancestors: dict[str, str] = field(default_factory=dict)
    """What only the lineage has led to: the keys that others give, by those that the artifacts have."""
    _kept: int = 0

    def add(self, references: Iterable[Reference], lineage: bool) -> None:
        """Add the artifacts that references name; with `lineage`, also their ancestors that exist."""
        new = self._find([ParsedReference.of(reference) for reference in references])
        asked = {*new, *self.failures}
        seen = {*asked}
        while new and lineage:
            wanted = []
            for parent in {parent for one in new.values() for parent in one.parents} - seen:
                seen.add(parent)
                try:
                    wanted.append(ParsedReference.of(parent))
                except InvalidReference:
                    self.missing.append(parent)
            self._ancestors.update((one.own_key, one.key) for one in wanted if one.own_key not in asked)
            new = self._find([one for one in wanted if one.key not in self.found])

    def fail(self, key: str, error: ArtifactError) -> None:
        """Note why an artifact is not copied. It may have been deleted at any time."""
        if isinstance(error, ArtifactNotFound) and key in self._ancestors:
            self.missing.append(self._ancestors[key])
        elif not (key in self.listed and isinstance(error, ArtifactNotFound)):
            self.failures[key] = error

    def in_order(self) -> list[Planned]:
        """All artifacts, the oldest first. They are no longer kept here."""
        found, self.found = self.found, {}
        return sorted(found.values(), key=lambda one: one[:4])

    def _find(self, wanted: Iterable[ParsedReference]) -> dict[str, Planned]:
        """Add the artifacts that exist. Returns them by their keys."""
        new = {}
        distinct = {(one.key, one.artifact is None): one for one in wanted}
        for key, outcome in ordered(self.source.storage, self._read, distinct.values()):
            if isinstance(outcome, ArtifactError):
                self.fail(key, outcome)
                continue
            if outcome.data is not None:
                self._kept += len(outcome.data)
                if self._kept > _KEPT_BYTES:
                    outcome = outcome._replace(data=None)
            new[key] = outcome
        self.found.update(new)
        return new

    def _read(self, parsed: ParsedReference) -> tuple[str, Planned | ArtifactError]:
        key = parsed.own_key
        try:
            return key, self._planned(parsed)
        except (ArtifactNotFound, UnsupportedFormat) as error:
            try:
                return key, Planned.of_foreign(self.source.foreign_artifact(parsed, error), parsed)
            except (ArtifactNotFound, CorruptArtifact) as found:
                return key, self._named(parsed, found)
        except CorruptArtifact as error:
            return key, error

    def _planned(self, parsed: ParsedReference) -> Planned:
        data = self.source.storage.get(parsed.own_key, 0, _SMALL_BYTES)
        if len(data) == _SMALL_BYTES and begins_manifest(data):
            return Planned.of(self.source.info(parsed), None)
        manifest, data = self.source.manifest_and_bytes(parsed, data)
        return Planned.of(manifest.artifact, data)

    def _named(self, parsed: ParsedReference, error: ArtifactError) -> ArtifactError:
        url = self.source.storage.url(parsed.key)
        if isinstance(error, CorruptArtifact) or url in str(error):
            return error
        return ArtifactNotFound(f"nothing is stored at {url}: {error}")


def in_waves(artifacts: Iterable[Planned]) -> Iterator[list[Planned]]:
    """Groups whose members may be committed at once, in order. The artifacts come with the oldest first.

    An artifact is in a later group than those that it was made from, and than those before it of the same attempt.
    """
    waves: list[list[Planned]] = []
    places: dict[object, int] = {}
    for one in artifacts:
        attempt = _attempt(one)
        wave = 1 + max((places.get(before, -1) for before in (*one.parents, attempt)), default=-1)
        places[one.key] = wave
        if attempt is not None:
            places[attempt] = wave
        if wave == len(waves):
            waves.append([])
        waves[wave].append(one)
    return iter(waves)


def _attempt(one: Planned) -> object:
    """What the artifacts of one attempt of a task have in common; None if it was saved outside of a task."""
    key = parse_key(one.key)
    if isinstance(key, CheckpointKey):
        return attempt_of(key)
    return (one.pathspec, one.attempt) if one.pathspec else None
