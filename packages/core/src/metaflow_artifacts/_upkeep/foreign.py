"""Recognises what metaflow-checkpoint has stored below the same root, so that it is not reported as damage.

`_format/foreign.py` says what lies where.
"""

from __future__ import annotations

import threading

from metaflow_artifacts._format.foreign import json_key, json_prefix, key_of_json
from metaflow_artifacts._format.tar import BLOCK, is_tar
from metaflow_artifacts._layout import ARTIFACT_PREFIXES
from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts.errors import ArtifactNotFound

__all__ = ["ForeignArtifacts"]


class ForeignArtifacts:
    """The artifacts of metaflow-checkpoint in a store. The storage is not used before the first call."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._keys: set[str] | None = None
        self.met: set[str] = set()
        """The keys of the artifacts to which the objects of earlier calls belong."""

    @property
    def listed(self) -> bool:
        """Whether they were listed already."""
        return self._keys is not None

    def keys(self) -> list[str]:
        """The keys of all of them. Three listings, unless they were listed already. Raises StorageError."""
        return sorted(self._known())

    def owner(self, key: str) -> str | None:
        """The key of the artifact to whose content the object `key` belongs; None if it belongs to none.

        The JSON about the artifact must exist. Three listings at the first call, none later. Raises StorageError.
        """
        known = self._known()
        at = len(key)
        while at > 0:
            if key[:at] in known:
                self.met.add(key[:at])
                return key[:at]
            at = key.rfind("/", 0, at)
        return None

    def is_tar(self, key: str, *, look: bool = True) -> bool:
        """Whether the object at `key` is an artifact that is stored as a tar.

        That is so if the JSON about it exists and the object begins like a tar; no manifest of ours begins so, even if
        it is damaged. One read of 512 bytes if the JSON was listed. If it was not, `look` asks the storage whether it
        was written since the listing. Raises StorageError.
        """
        if key not in self._known() and not (look and self._is_new(key)):
            return False
        try:
            block = self._storage.get(key, 0, BLOCK)
        except ArtifactNotFound:
            return False
        if not is_tar(block):
            return False
        self.met.add(key)
        return True

    def look_again(self) -> None:
        """List the artifacts again at the next call: one may have been saved since."""
        with self._lock:
            self._keys = None

    def _known(self) -> set[str]:
        with self._lock:
            if self._keys is None:
                self._keys = {
                    key
                    for prefix in ARTIFACT_PREFIXES
                    for info in self._storage.list(json_prefix(prefix))
                    if (key := key_of_json(info.key)) is not None
                }
            return self._keys

    def _is_new(self, key: str) -> bool:
        """Whether it was saved since the listing."""
        return key.startswith(ARTIFACT_PREFIXES) and self._storage.stat(json_key(key)) is not None
