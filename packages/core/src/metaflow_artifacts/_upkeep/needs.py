"""What a program has to understand before it may judge what in a store nobody needs.

A store says so itself. Whoever first writes an object of a kind that version 0.1 does not know writes before it one
empty object for that feature, `mf.artifacts/needs/<feature>.<version>`; `<version>` is the first version of
metaflow-artifacts that knows the feature (`rounds.0.3.0`). What deletes by its own judgement (`gc`, `retain`) lists
these objects when it plans and again when it executes, and refuses where it does not know one: an object that it does
not understand may need any chunk. Saves, loads and the deletion of a named artifact judge nothing and ask nothing.
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
    "add_need",
    "refuse_unknown_needs",
    "reserved_objects",
    "unknown_needs",
]

KNOWN: frozenset[str] = frozenset()
"""The features that this version understands, without their versions."""

SHOWN = 10
"""How many keys an error or a report names; it gives the number of the others."""


@dataclass(frozen=True)
class Need:
    """A feature that a store uses."""

    feature: str
    version: str
    """The first version of metaflow-artifacts that knows it; empty where the object's name does not say."""

    @property
    def key(self) -> str:
        """Storage key of the object that says so."""
        return NEEDS + self.feature + ("." + self.version if self.version else "")

    def __str__(self) -> str:
        known = f"metaflow-artifacts {self.version} and later know it" if self.version else "of a later version"
        return f"{self.feature!r} ({known})"


def add_need(storage: Storage, feature: str, version: str) -> None:
    """Make the store say that it uses `feature`, which the version `version` was the first to know.

    To be called before the first object of a new kind is written; once a process and store is enough. `feature` is a
    word without `.`. Raises StorageError.
    """
    assert "." not in feature
    storage.put_if_absent(Need(feature, version).key, b"")


def unknown_needs(storage: Storage) -> list[Need]:
    """The features that a store uses and this version does not understand. One listing. Raises StorageError."""
    needs = []
    for info in storage.list(NEEDS):
        feature, _, version = info.key[len(NEEDS) :].partition(".")
        # Names that begin with a dot are those of file systems and desktops.
        if feature and feature not in KNOWN:
            needs.append(Need(feature, version))
    return sorted(needs, key=lambda need: need.key)


def reserved_objects(storage: Storage) -> list[ObjectInfo]:
    """What lies below the prefixes of later versions. One short listing for each. Raises StorageError."""
    found = [info for prefix in RESERVED for info in storage.list(prefix)]
    return sorted(found, key=lambda info: info.key)


def refuse_unknown_needs(storage: Storage) -> None:
    """Raise StorageError where the store holds something of a later version, known by its needs or by its prefix."""
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
