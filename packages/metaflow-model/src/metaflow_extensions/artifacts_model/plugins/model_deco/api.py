"""Models outside of decorated steps: in notebooks, scripts and services."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from metaflow_artifacts.plugin import in_flow, refuse_foreign_decorators, store_for

__all__ = ["delete_model", "load_model"]


@in_flow
def load_model(reference: str | Mapping[str, Any], path: str | os.PathLike[str]) -> str:
    """Load a model, checkpoint or Hub snapshot into the directory `path`, and return that path.

    `reference` is the dict that a save returned, or its key. A key is looked up in the datastore that
    Metaflow is configured for (METAFLOW_DEFAULT_DATASTORE), or in that of the flow that runs; a dict is
    loaded from where its `url` says. The directory is made, or added to: files of the same name are replaced,
    nothing else is touched. What was saved as a single file lies in it under that file's name.

    Raises `metaflow_artifacts.errors.InvalidReference` for what is no reference, `ArtifactNotFound` where
    nothing is stored at the key, `CorruptArtifact` where content is missing or changed, `TargetError` where
    `path` cannot be written, `StorageError` where the datastore cannot be reached.
    """
    # Here, because every Metaflow process imports this module.
    from metaflow_artifacts.plugin import bar, key_of, note_loaded

    refuse_foreign_decorators()
    store = store_for(reference)
    with bar("loading") as progress:
        target = store.load(reference, path, progress=progress)
    note_loaded(key_of(reference))
    return target


@in_flow
def delete_model(reference: str | Mapping[str, Any]) -> bool:
    """Delete a model, checkpoint or Hub snapshot from the datastore, and return True.

    `reference` is the dict that a save returned, or its key. What it alone used of the store is freed by the
    next garbage collection. Raises `metaflow_artifacts.errors.ArtifactNotFound` where nothing is stored at
    the key, otherwise as `load_model` does.
    """
    refuse_foreign_decorators()
    store_for(reference).delete(reference)
    return True
