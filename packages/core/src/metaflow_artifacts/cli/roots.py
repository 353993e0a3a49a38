"""Which store a command is about."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec

from metaflow_artifacts.errors import InvalidReference, StorageError
from metaflow_artifacts.store import Store, open_store
from metaflow_artifacts.survey import ARTIFACT_PREFIXES

__all__ = ["resolve", "store_of"]


def store_of(options: argparse.Namespace) -> Store:
    """The store at `--root`, or the one that Metaflow is configured for. Raises StorageError."""
    root: str | None = options.root
    with_metaflow = find_spec("metaflow") is not None
    if root is None:
        if not with_metaflow:
            raise StorageError("which store? pass --root: a directory, or s3://bucket/prefix")
        from metaflow_artifacts.mf.datastore import default_store

        try:
            return default_store()
        except StorageError as error:
            raise type(error)(f"{error}; or pass --root") from error
    if root.startswith("s3://"):
        if with_metaflow:
            # With the endpoint, role and encryption that Metaflow is configured for.
            from metaflow_artifacts.mf.datastore import store_at

            return store_at("s3", root)
        return open_store(root)
    if not os.path.isdir(root):
        raise StorageError(f"{root}: there is no such directory; pass the root of an existing store")
    return open_store(root)


def resolve(options: argparse.Namespace, keys: list[str]) -> tuple[Store, list[str]]:
    """The store, and the keys in what was given as keys: a `url` of a reference names its store too."""
    roots, found = set(), []
    for text in keys:
        start = next((at for prefix in ARTIFACT_PREFIXES if (at := text.find(prefix)) > 0 and text[at - 1] == "/"), 0)
        if start:
            roots.add(text[: start - 1])
        found.append(text[start:])
    if roots and options.root is None:
        if len(roots) > 1:
            raise InvalidReference(f"the keys are in different stores ({', '.join(sorted(roots))}); ask one at a time")
        options.root = roots.pop()
    return store_of(options), found
