"""The features that a program must know before it may decide which objects of a store are unneeded.

The store itself says which. Before a later version writes an object of a kind that version 0.1 does not know, it writes
an empty object for that feature, `mf.artifacts/needs/<feature>.<version>`, where `<version>` is the first version of
metaflow-artifacts that knows the feature (`rounds.0.3.0`). `gc` and `retain` list these objects when they plan and
again when they execute, and refuse to run if they do not know a feature, because an object of an unknown kind may need
any chunk. Saves, loads and the deletion of a named artifact do not depend on this.
"""

from __future__ import annotations

from dataclasses import dataclass

from metaflow_artifacts import __version__
from metaflow_artifacts._layout import NEEDS, RESERVED
from metaflow_artifacts._storage.base import ObjectInfo, Storage
from metaflow_artifacts.errors import StorageError

__all__ = [
    "KNOWN",
    "Need",
    "refuse_unknown_needs",
    "reserved_objects",
    "unknown_needs",
]

KNOWN: frozenset[str] = frozenset()
"""The features that this version understands, without their versions."""

SHOWN = 10
"""Most keys that an error or a report names; for the others, it gives their number."""


@dataclass(frozen=True)
class Need:
    """A feature that a store uses."""

    feature: str
    version: str
    """The first version of metaflow-artifacts that knows it; empty if the name of the object does not contain it."""

    @property
    def key(self) -> str:
        """Storage key of the object that stands for this need."""
        return NEEDS + self.feature + ("." + self.version if self.version else "")

    def __str__(self) -> str:
        known = f"metaflow-artifacts {self.version} and later know it" if self.version else "of a later version"
        return f"{self.feature!r} ({known})"


def unknown_needs(storage: Storage) -> list[Need]:
    """The features that a store uses and this version does not understand. One listing. Raises StorageError."""
    needs = []
    for info in storage.list(NEEDS):
        feature, _, version = info.key[len(NEEDS) :].partition(".")
        # Names that begin with a dot come from file systems and desktops.
        if feature and feature not in KNOWN:
            needs.append(Need(feature, version))
    return sorted(needs, key=lambda need: need.key)


def reserved_objects(storage: Storage) -> list[ObjectInfo]:
    """The objects below the prefixes that are reserved for later versions. One listing each. Raises StorageError."""
    found = [info for prefix in RESERVED for info in storage.list(prefix)]
    return sorted(found, key=lambda info: info.key)


def refuse_unknown_needs(storage: Storage) -> None:
    """Raise StorageError if the store has an unknown need, or objects below a reserved prefix."""
    if needs := unknown_needs(storage):
        raise StorageError(
            f"nothing was removed: {storage.root} needs what version {__version__} does not know: "
            f"{listed([str(need) for need in needs])}; upgrade metaflow-artifacts"
        )
    if found := reserved_objects(storage):
        raise StorageError(
            f"nothing was removed: {storage.root} holds objects of a later version than {__version__}: "
            f"{listed([info.key for info in found])}; upgrade metaflow-artifacts"
        )


def listed(names: list[str]) -> str:
    """The first ten of some names, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
