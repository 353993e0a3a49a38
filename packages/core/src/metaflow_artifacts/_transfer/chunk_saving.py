"""The chunks of a save, stored beside a gc: what that removes meanwhile is stored again."""

from __future__ import annotations

from metaflow_artifacts._format.manifest import Chunk
from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._transfer.cache import Cache
from metaflow_artifacts._transfer.chunks import are_safe_from_gc
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.saving import save_chunks
from metaflow_artifacts._transfer.scan import Source
from metaflow_artifacts.errors import StorageError, TransientStorageError

__all__ = ["store_chunks"]

_SAVE_ATTEMPTS = 10
"""Most attempts of a save to store its chunks, while a concurrent gc removes some of them."""


def store_chunks(
    storage: Storage,
    source: Source,
    chunk_size: int,
    progress: Progress,
    refresh_after: float,
    cache: Cache | None,
    *,
    expects_new: bool = True,
) -> tuple[list[Chunk], dict[int, str]]:
    """As `save_chunks`; when this returns, no gc that runs removes what was stored.

    Raises TransientStorageError where a gc removes it again and again, StorageError where the store was replaced.
    """
    root = storage.identity()
    for _ in range(_SAVE_ATTEMPTS):
        since = storage.now()
        progress.start(source.size)
        chunks, digests = save_chunks(
            storage, source, chunk_size, progress, refresh_after, cache, expects_new=expects_new
        )
        if are_safe_from_gc(storage, chunks, since, refresh_after):
            break
    else:
        raise TransientStorageError(
            f"{storage.root}: chunks of this save were deleted while it ran, {_SAVE_ATTEMPTS} times in a row; is a gc "
            "running with a grace period that is shorter than a save takes?"
        )
    if root is not None and root != storage.identity():
        raise StorageError(f"{storage.root}: the store was removed or replaced during the save; save again")
    return chunks, digests
