"""Stage 1 of `check --read` and of an upkeep flow: all manifests are read, and what is wrong with them is noted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from metaflow_artifacts._format.manifest import Manifest, Outline
from metaflow_artifacts._storage import ObjectInfo
from metaflow_artifacts._store.listing import read_listed
from metaflow_artifacts._store.store import Store
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._upkeep.named import NamedChunks
from metaflow_artifacts._upkeep.report import Problem
from metaflow_artifacts._upkeep.survey import Strays, artifact_objects, manifests, outlines
from metaflow_artifacts.errors import CorruptArtifact

__all__ = ["Manifests", "read_manifests", "unreadable"]


@dataclass
class Manifests:
    """What was read."""

    artifacts: int = 0
    files: int = 0
    """Files in them; 0 if only the first parts of the manifests were read."""
    size: int = 0
    """Bytes of content in them."""
    problems: list[Problem] = field(default_factory=list)
    refusal: str | None = None
    """Why nothing may be removed: a manifest whose chunks cannot be read may name any chunk."""


def read_manifests(
    store: Store, strays: Strays, named: NamedChunks, *, whole: bool, progress: Progress | None = None
) -> Manifests:
    """Add the chunks that any artifact names to `named`, and what is not understood to `strays`.

    With `whole`, the manifests are checked completely, else only the parts that name chunks. `progress` counts the
    manifests that are read. Raises StorageError.
    """
    seen = Manifests()
    for info, found in _read(store, strays, whole, progress):
        if isinstance(found, CorruptArtifact):
            _note_damage(store, seen, named, info.key, found)
        elif found is not None:
            seen.artifacts += 1
            seen.files += len(found.files) if isinstance(found, Manifest) else 0
            seen.size += found.artifact["size"]
            named.add(found.chunks)
    return seen


def _read(
    store: Store, strays: Strays, whole: bool, progress: Progress | None
) -> Iterable[tuple[ObjectInfo, Manifest | Outline | CorruptArtifact | None]]:
    objects: Iterator[ObjectInfo] = artifact_objects(store.storage, strays=strays)
    return (manifests if whole else outlines)(store, objects, strays, progress)


def _note_damage(store: Store, seen: Manifests, named: NamedChunks, key: str, error: CorruptArtifact) -> None:
    # Behind the damage, the part that names the chunks may be whole.
    outline = read_listed(store.outline_at, key)
    if outline is None or store.storage.stat(key) is None:
        return
    seen.problems.append(Problem(key, "manifest", str(error)))
    if isinstance(outline, Outline):
        named.add(outline.chunks)
    elif seen.refusal is None:
        seen.refusal = unreadable(key, error)


def unreadable(key: str, error: CorruptArtifact) -> str:
    """Why nothing is removed where a manifest cannot be read."""
    return (
        f"nothing was removed: {key} cannot be read, and it may need any chunk; upgrade metaflow-artifacts, restore it "
        f"or delete it ({error})"
    )
