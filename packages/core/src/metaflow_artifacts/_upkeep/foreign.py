"""Recognises what metaflow-checkpoint has stored below the same root, so that it is not reported as damage.

These are facts about metaflow-checkpoint 0.2.14, found by running it. Its keys share the prefixes of ours, and often
their grammar:

```
mf.models/models/artifacts/<label>_<32 hex>
mf.checkpoints/checkpoints/artifacts/<Flow>/<step>/<12 hex>/<12 hex>/<8 hex>.<attempt>.<name>.<n>
mf.huggingface_hub/checkpoints/artifacts/…      the same, or below
    mf:internal/huggingface-hub/registry:flow/<Flow>/ and mf:internal/huggingface-hub/registry:global/fully-global/
```
Labels and names are not encoded: they may hold spaces, slashes and characters outside of ASCII (a storage lists only
keys of ASCII, so the last are not seen here). What lies at such a key depends on the member `storage_format`:

- `tar` (the default of models): one object at the key, a POSIX tar without compression.
- `files` (the default of checkpoints and snapshots): no object at the key, one for each file at `<key>/<path>`. An
  empty directory leaves no object at all.

JSON about it lies twice beside it, with `key`, `type`, `size`, `storage_format`, `pathspec`, `attempt`, `created_on`,
`url` and `metadata` among its members:

- at the key with `artifact_metadata` for `artifacts` and `.metadata` at the end;
- below `<root>/{models,checkpoints}/metadata/<Flow>/<run>/<step>/<task>/`, as `<attempt>.<rest>.metadata`.

Below `artifact_metadata`, each place also has an object `latest`, a copy of the JSON of one checkpoint. The content is
written before the JSON, and a deletion removes the content first. So content without JSON comes from a save that was
killed or is still running.

None of these objects names a chunk.
"""

from __future__ import annotations

import threading

from metaflow_artifacts._format.keys import CHECKPOINTS, HUB, MODELS
from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts.errors import ArtifactNotFound

__all__ = ["ForeignArtifacts"]

_KINDS = (f"{MODELS}/models/", f"{CHECKPOINTS}/checkpoints/", f"{HUB}/checkpoints/")
_CONTENT, _ABOUT, _ENDING = "artifacts/", "artifact_metadata/", ".metadata"
_BLOCK = 512
_MAGIC = slice(257, 262)


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
            block = self._storage.get(key, 0, _BLOCK)
        except ArtifactNotFound:
            return False
        if block[_MAGIC] != b"ustar":
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
                    kind + _CONTENT + info.key[len(kind + _ABOUT) : -len(_ENDING)]
                    for kind in _KINDS
                    for info in self._storage.list(kind + _ABOUT)
                    if info.key.endswith(_ENDING)
                }
            return self._keys

    def _is_new(self, key: str) -> bool:
        """Whether it was saved since the listing."""
        for kind in _KINDS:
            if key.startswith(kind + _CONTENT):
                return self._storage.stat(kind + _ABOUT + key[len(kind + _CONTENT) :] + _ENDING) is not None
        return False
