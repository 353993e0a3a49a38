"""Checks what metaflow-checkpoint has stored below the same root."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from metaflow_artifacts._format.foreign import ForeignArtifact, json_key
from metaflow_artifacts._format.tar import BLOCK, is_tar
from metaflow_artifacts._storage import Storage
from metaflow_artifacts._store.foreign import foreign_problem, read_foreign
from metaflow_artifacts._transfer.threads import ordered
from metaflow_artifacts._upkeep.report import Problem
from metaflow_artifacts._upkeep.survey import Strays
from metaflow_artifacts.errors import ArtifactNotFound, CorruptArtifact

__all__ = ["check_foreign", "is_own"]


def check_foreign(
    storage: Storage, strays: Strays, wanted: Sequence[ForeignArtifact] | None, *, read: bool
) -> tuple[int, list[Problem]]:
    """Check artifacts of metaflow-checkpoint, or all of them: how many there are, and what is wrong with them.

    With `read`, the headers of tars are read too. Raises StorageError.
    """
    found: Iterable[tuple[str, ForeignArtifact | CorruptArtifact]]
    found = read_foreign(storage, strays.foreign.keys()) if wanted is None else [(one.key, one) for one in wanted]

    def check_one(item: tuple[str, ForeignArtifact | CorruptArtifact]) -> Problem | None:
        key, one = item
        problem = str(one) if isinstance(one, CorruptArtifact) else foreign_problem(storage, one, read=read)
        # It may have been deleted since it was listed; and JSON beside a manifest of ours means nothing.
        if problem is None or storage.stat(json_key(key)) is None or is_own(storage, key):
            return None
        kind: Literal["manifest", "content"] = "manifest" if isinstance(one, CorruptArtifact) else "content"
        return Problem(key, kind, problem)

    results = list(ordered(storage, check_one, found))
    return len(results), [problem for problem in results if problem is not None]


def is_own(storage: Storage, key: str) -> bool:
    """Whether an object is at a key that is no tar: a manifest, maybe a damaged one. Raises StorageError."""
    try:
        return not is_tar(storage.get(key, 0, BLOCK))
    except ArtifactNotFound:
        return False
