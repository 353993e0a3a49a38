"""Functions for models outside of decorated steps: in notebooks, scripts and services."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from metaflow_artifacts.plugin import in_flow, refuse_foreign_decorators

__all__ = ["delete_model", "load_model"]


@in_flow
def load_model(
    reference: str | Mapping[str, Any], path: str | os.PathLike[str], *, only: str | Sequence[str] | None = None
) -> str:
    """Load a model, checkpoint or Hub snapshot into a directory, and return the path of the directory.

    Parameters
    ----------
    reference : str or Mapping[str, Any]
        The dict that a save returned, or its key or url. A dict or url is loaded from the datastore in the url. A key
        is looked up in the datastore of the running flow, or else in the one that Metaflow is configured for
        (METAFLOW_DEFAULT_DATASTORE).
    path : str or os.PathLike
        The directory to load into. It is created if it does not exist; files of the same name are replaced, and other
        files are left alone. What was saved as a single file is loaded under that file's name.
    only : str or list of str, default None
        A pattern for the paths of the files to load, or several: `*.safetensors`, `tokenizer/*`. `*` and `?` are
        wildcards, and match `/` too. Each must match a file. By default, all files are loaded.

    Returns
    -------
    str
        `path`.

    Raises
    ------
    ArtifactError
        The same errors as `current.model.load`, for example ArtifactNotFound if nothing is stored at the key.
    """
    # Imported here, because every Metaflow process imports this module.
    from metaflow_artifacts.plugin import ParsedReference, bar, note_loaded, store_for

    refuse_foreign_decorators()
    parsed = ParsedReference.of(reference)
    store = store_for(parsed)
    with bar("loading") as progress:
        target = store.load(parsed, path, only=only, progress=progress)
    note_loaded(parsed.key)
    return target


@in_flow
def delete_model(reference: str | Mapping[str, Any]) -> bool:
    """Delete a model, checkpoint or Hub snapshot from the datastore, and return True.

    The next garbage collection (`metaflow-artifacts gc`) frees the space that only this artifact used. Deleting by the
    same dict again is no error, so that a step that deletes can be retried.

    Parameters
    ----------
    reference : str or Mapping[str, Any]
        The dict that a save returned, or its key or url.

    Returns
    -------
    bool
        True: the artifact is not stored any more.

    Raises
    ------
    ArtifactNotFound
        If nothing is stored at a key or url, or if the directory that a dict was saved in is not on this machine.
    """
    refuse_foreign_decorators()
    from metaflow_artifacts.plugin import ArtifactNotFound, ParsedReference, store_for

    parsed = ParsedReference.of(reference)
    try:
        store_for(parsed).delete(parsed)
    except ArtifactNotFound:
        # A key may have a typing error. A dict is of something that was saved: where its store is there, it is deleted.
        if parsed.artifact is None or not _is_reached(parsed.root):
            raise
    return True


def _is_reached(root: str | None) -> bool:
    """Whether a store that holds nothing at a key is at `root`. A bucket that is gone is another error."""
    return root is not None and ("://" in root or os.path.isdir(root))
