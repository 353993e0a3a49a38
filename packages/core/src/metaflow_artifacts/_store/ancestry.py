"""The lineage of an artifact: what the task that saved it had loaded, what the tasks that saved those had loaded, …"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metaflow_artifacts._format.reference import ModelArtifact
from metaflow_artifacts._store.references import ParsedReference
from metaflow_artifacts._store.store import Store, open_store
from metaflow_artifacts.errors import ArtifactNotFound, CorruptArtifact, InvalidReference

__all__ = ["lineage"]


def lineage(reference: str | Mapping[str, Any], store: Store | None = None) -> list[ModelArtifact]:
    """The artifact first, then all of its ancestors that still exist, newest first.

    Without `store`, the store is the one that the `url` of the reference names. The ancestors of an artifact that was
    deleted, or that is in another store, are not found. Raises InvalidReference for a bare key without `store`, else
    as `Store.info` does for the artifact itself.
    """
    start = ParsedReference.of(reference)
    key = start.key
    if store is None:
        root = start.root
        if root is None:
            raise InvalidReference(f"{key}: a bare key does not say which datastore it is in; pass store=open_store(…)")
        store = open_store(root)
    found = {key: store.info(start)}
    pending = list(found[key].get("parents", []))
    while pending:
        parent = pending.pop()
        if parent in found:
            continue
        try:
            found[parent] = store.info(parent)
        except (ArtifactNotFound, CorruptArtifact, InvalidReference):
            continue
        pending += found[parent].get("parents", [])
    first = found.pop(key)
    return [first, *sorted(found.values(), key=lambda artifact: artifact["created_on"], reverse=True)]
