"""What a check reports: problems, which are damage, and notes, which are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from metaflow_artifacts._storage import Storage
from metaflow_artifacts._upkeep.needs import SHOWN, reserved_objects, unknown_needs
from metaflow_artifacts._upkeep.survey import Strays

__all__ = ["CheckReport", "Note", "Problem", "notes_on"]


@dataclass(frozen=True)
class Problem:
    """One fault of an artifact."""

    key: str
    """Key of the artifact."""
    kind: Literal["manifest", "missing", "size", "content"]
    """Its manifest cannot be read; a chunk does not exist, has another size, or has other content."""
    detail: str
    """What was found, and what to do about it; one line."""
    chunk: str | None = None
    """Storage key of the chunk."""


@dataclass(frozen=True)
class Note:
    """Something that this version does not understand. It is not damage, but `gc` and `retain` refuse to run."""

    kind: Literal["need", "stray"]
    """`need`: the store has a need of a later version, or objects of one. `stray`: objects that are no artifacts are
    among the artifacts."""
    keys: tuple[str, ...]
    """Storage keys of the first ten objects."""
    count: int
    """How many there are."""
    detail: str
    """What was found, and what to do about it; one line."""


@dataclass(frozen=True)
class CheckReport:
    """The result of `check`."""

    artifacts: int
    """Manifests that were read."""
    files: int
    """Files in them."""
    size: int
    """Bytes of content in them."""
    chunks: int
    """Distinct chunks that they name."""
    stored: int
    """Bytes of these chunks, each counted once."""
    read: int
    """Bytes of chunks that were read and hashed."""
    foreign: int
    """Artifacts of metaflow-checkpoint that were found. They have no digests: their sizes were checked, and with `read`
    the headers of tars."""
    problems: tuple[Problem, ...]
    notes: tuple[Note, ...]
    """What is not understood; only if the whole store was checked."""

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged. Notes do not count."""
        return not self.problems


def notes_on(storage: Storage, strays: Strays) -> tuple[Note, ...]:
    """What of a store is not understood, when all of it was listed. Raises StorageError."""
    notes = [Note("need", (need.key,), 1, f"the store uses {need}; upgrade") for need in unknown_needs(storage)]
    if reserved := [info.key for info in reserved_objects(storage)]:
        detail = "objects of a later version; upgrade metaflow-artifacts"
        notes.append(Note("need", tuple(reserved[:SHOWN]), len(reserved), detail))
    if left := [info.key for info in strays.left()]:
        detail = "not understood, so gc and retain refuse to run; move them away, or pass --ignore to those"
        notes.append(Note("stray", tuple(left[:SHOWN]), len(left), detail))
    return tuple(notes)
