"""An artifact's files into a directory: what is wanted of them, and where each comes from."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from metaflow_artifacts._format.foreign import ForeignManifest
from metaflow_artifacts._format.manifest import Manifest
from metaflow_artifacts._format.paths import local_path
from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._store.foreign import find, load_foreign
from metaflow_artifacts._store.selection import Patterns, patterns_of, select
from metaflow_artifacts._transfer.cache import Cache
from metaflow_artifacts._transfer.loading import fetch_chunks
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.reuse import leftovers
from metaflow_artifacts._transfer.target import local_files, make_tree, open_target, write_file
from metaflow_artifacts.errors import ArtifactError, ArtifactNotFound, CorruptArtifact, StorageError, TargetError

__all__ = ["load_files", "load_id", "naming"]


def load_files(
    storage: Storage,
    manifest: Manifest,
    path: str | os.PathLike[str],
    only: Patterns | None,
    progress: Progress,
    cache: Cache | None = None,
) -> None:
    """Load the files that match `only` into the directory `path`. Raises as `Store.load`."""
    if isinstance(manifest, ForeignManifest):
        with naming(storage, manifest):
            load_foreign(storage, manifest, path, only, progress)
        return
    wanted = select(manifest, only)
    files = local_files(manifest.files)
    progress.start(sum(files[number].size for number in wanted))
    load = load_id(manifest.artifact["key"], only)
    with naming(storage, manifest), open_target(path, load) as target:
        stage = target.stage
        dirs = map(local_path, manifest.dirs) if only is None else ()
        make_tree(stage.files, (files[number].path for number in sorted(wanted)), dirs)
        content = memoryview(manifest.inline or b"")
        for number in sorted(wanted):
            file = files[number]
            if manifest.inline is not None or not file.size:
                write_file(stage.files, file, content[file.offset : file.offset + file.size])
                progress.add(file.size)
        stored = wanted if manifest.chunks else set()
        room: AbstractContextManager[None] = contextlib.nullcontext()
        if cache is not None and stored:
            room = cache.beside(target.path, lambda: max(0, progress.total - progress.done))
        with room, leftovers(target, load, files, manifest.chunks, stored, progress) as found:
            fetch_chunks(storage, files, manifest.chunks, stage, stored - found.in_place, progress, found, cache)
            # Others may change while these are fetched.
            while changed := found.changed():
                found.in_place -= changed
                progress.lose(sum(files[number].size for number in changed))
                fetch_chunks(storage, files, manifest.chunks, stage, changed, progress, cache=cache)


def load_id(key: str, only: Patterns | None) -> str:
    """A text that is the same for two loads of the same files of the same artifact."""
    return f"{key} {patterns_of(only)}"


@contextmanager
def naming(storage: Storage, manifest: Manifest) -> Iterator[None]:
    """Prefix errors raised in the block with the artifact's key. What is gone together with the artifact is no damage:
    then ArtifactNotFound is raised."""
    root = storage.identity()
    try:
        yield
    except (CorruptArtifact, StorageError, TargetError) as error:
        key = manifest.artifact["key"]
        # Where the whole store has disappeared, nothing says that this was deleted.
        if isinstance(error, CorruptArtifact) and root == storage.identity() and _is_deleted(storage, manifest):
            raise ArtifactNotFound(
                f"cannot load {key}: it was deleted while it was loaded, and some of its content is gone; nothing is "
                f"stored at {storage.url(key)} any more"
            ) from error
        raise type(error)(f"cannot load {key}: {error}") from error


def _is_deleted(storage: Storage, manifest: Manifest) -> bool:
    key = manifest.artifact["key"]
    # Damage that was found is the error, also where this cannot be asked.
    with contextlib.suppress(ArtifactError):
        return (find(storage, key) if isinstance(manifest, ForeignManifest) else storage.stat(key)) is None
    return False
