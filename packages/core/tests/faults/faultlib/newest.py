"""The checkpoint that a search for the latest finds first."""

from __future__ import annotations

from typing import Any

from metaflow_artifacts import Store
from metaflow_artifacts._format.keys import CheckpointPlace
from metaflow_artifacts._format.reference import ModelArtifact
from metaflow_artifacts._store.checkpoints import latest_checkpoints

__all__ = ["find_latest"]


def find_latest(store: Store, place: CheckpointPlace, **options: Any) -> ModelArtifact | None:
    """The first of `latest_checkpoints`, None where there is none."""
    return next(latest_checkpoints(store, place, **options), None)
