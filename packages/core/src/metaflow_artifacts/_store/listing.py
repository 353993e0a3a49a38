"""The objects of a listing as the artifacts that they are, and reading those, which may be gone by then."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from metaflow_artifacts._format.keys import CheckpointKey, ModelKey, parse_key, parse_tombstone
from metaflow_artifacts._storage.base import ObjectInfo
from metaflow_artifacts.errors import ArtifactNotFound, CorruptArtifact, InvalidReference

__all__ = ["artifacts", "checkpoints", "filename", "read_listed", "tombstones"]

_Key = TypeVar("_Key")
_T = TypeVar("_T")


def artifacts(
    objects: Iterable[ObjectInfo], on_other: Callable[[ObjectInfo], None] | None = None
) -> Iterator[tuple[ModelKey | CheckpointKey, ObjectInfo]]:
    """The objects at keys of artifacts, each with its parsed key. `on_other` is called with every other object."""
    return _parsed(objects, parse_key, on_other)


def checkpoints(objects: Iterable[ObjectInfo]) -> Iterator[tuple[CheckpointKey, ObjectInfo]]:
    """The objects at keys of checkpoints, each with its parsed key."""
    return ((key, info) for key, info in artifacts(objects) if isinstance(key, CheckpointKey))


def tombstones(objects: Iterable[ObjectInfo]) -> Iterator[tuple[CheckpointKey, ObjectInfo]]:
    """The objects at keys of tombstones, each with the key of its checkpoint."""
    return _parsed(objects, parse_tombstone, None)


def _parsed(
    objects: Iterable[ObjectInfo], parse: Callable[[str], _Key], on_other: Callable[[ObjectInfo], None] | None
) -> Iterator[tuple[_Key, ObjectInfo]]:
    for info in objects:
        try:
            key = parse(info.key)
        except InvalidReference:
            if on_other is not None:
                on_other(info)
            continue
        yield key, info


def filename(info: ObjectInfo) -> str:
    """The last part of an object's key."""
    return info.key.rpartition("/")[2]


def read_listed(read: Callable[[str], _T], key: str) -> _T | CorruptArtifact | None:
    """What `read` returns for an artifact that was listed, the damage it finds, or None if it was deleted since."""
    try:
        return read(key)
    except ArtifactNotFound:
        return None
    except CorruptArtifact as error:
        return error
