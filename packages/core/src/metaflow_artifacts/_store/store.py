"""The store: artifacts saved, loaded, read, listed and deleted by key.

The order of writes makes every crash safe: the chunks are written first, then the manifest, atomically and only if its
key is free. That write is the commit: before it, nothing can be loaded; after it, everything can.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

from metaflow_artifacts._format.foreign import ForeignArtifact, ForeignManifest
from metaflow_artifacts._format.keys import CheckpointKey, ModelKey
from metaflow_artifacts._format.manifest import (
    Chunk,
    FileEntry,
    Manifest,
    encode,
)
from metaflow_artifacts._format.plan import INLINE_LIMIT
from metaflow_artifacts._format.reference import ModelArtifact, parse_reference
from metaflow_artifacts._format.tar import BLOCK as TAR_BLOCK
from metaflow_artifacts._format.tar import is_tar
from metaflow_artifacts._layout import MODEL_ARTIFACTS
from metaflow_artifacts._storage import Storage, is_url, open_storage
from metaflow_artifacts._store.background_models import BackgroundModels
from metaflow_artifacts._store.copying import CopyResult, copy_artifacts
from metaflow_artifacts._store.deleting import delete_artifact, delete_artifacts
from metaflow_artifacts._store.details import SaveDetails
from metaflow_artifacts._store.foreign import delete_foreign, find, keys_of_foreign
from metaflow_artifacts._store.limits import demand_readable
from metaflow_artifacts._store.listing import artifacts
from metaflow_artifacts._store.loading import load_files, naming
from metaflow_artifacts._store.reading import StoredManifests
from metaflow_artifacts._store.references import ParsedReference, Reference, key_of, root_of
from metaflow_artifacts._store.selection import Patterns, named_files, patterns_of
from metaflow_artifacts._transfer.cache import Cache, cache_from
from metaflow_artifacts._transfer.chunk_saving import store_chunks
from metaflow_artifacts._transfer.chunks import REFRESH_AFTER, are_safe_from_gc
from metaflow_artifacts._transfer.content import Content, source_of
from metaflow_artifacts._transfer.current_engine import engine
from metaflow_artifacts._transfer.foreign import read_part
from metaflow_artifacts._transfer.loading import read_range
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.saving import file_entries
from metaflow_artifacts._transfer.scan import Source
from metaflow_artifacts._transfer.source import read_inline
from metaflow_artifacts._transfer.threads import ordered
from metaflow_artifacts._transfer.worker_process import storing_elsewhere
from metaflow_artifacts.errors import (
    ArtifactNotFound,
    CorruptArtifact,
    InvalidInput,
    InvalidReference,
    TransientStorageError,
)

__all__ = ["CHUNK_SIZE", "INLINE_LIMIT", "Store", "key_of", "open_store", "root_of"]

CHUNK_SIZE = 16 << 20
"""Bytes at which content is cut; `docs/performance.md` has the measurements."""

_FEW = 16
"""Up to how many keys are read one by one, to see who has stored what is there."""


def open_store(root: str | os.PathLike[str], *, client: Callable[[], Any] | None = None) -> Store:
    """The store below `root`: a directory, `s3://bucket/prefix`, `gs://bucket/prefix`, or the address of an Azure
    container, `https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX`. Nothing is read or written yet.

    `client` is a function that returns the boto3 S3 client to use; without it, one with default settings is made.
    Azure and GCS take the credentials that their SDKs find. Loads from a cloud use the node's cache, if the environment
    variable METAFLOW_ARTIFACTS_CACHE names its directory. Raises InvalidInput for a root of another kind and for a
    limit of the cache that is no number or a directory that is no path, and StorageError for an address of Azure that
    no credentials are sent to.
    """
    storage = open_storage(root, client=client)
    return Store(storage, cache=cache_from(os.environ) if is_url(storage.root) else None)


class Store(StoredManifests, BackgroundModels):
    """Artifacts below one datastore root. Safe to use from several threads and processes at once.

    In all methods, a `reference` is a key, a url (`<root>/<key>`), the dict that a save returned, or what a save in the
    background returned. `progress` is a Progress that counts the bytes while the call runs.

    It can be pickled: as its root and settings, without credentials. A copy makes a client for itself.
    """

    # For stores that were pickled before there was a cache.
    cache: Cache | None = None
    _last_saved: frozenset[tuple[int, int, int]] = frozenset()
    """Inode, size and time of files of the last save: where the next one has one of them, it is hashed before anything
    is written. This decides nothing else, since the content may differ."""

    def __init__(
        self,
        storage: Storage,
        *,
        chunk_size: int = CHUNK_SIZE,
        refresh_after: float = REFRESH_AFTER,
        cache: Cache | None = None,
    ) -> None:
        """`chunk_size` is in bytes. `refresh_after` is in seconds; see `plan_gc` before changing it. `cache` is the
        node's cache, for loads and for saves in the background."""
        self.storage = storage
        self.chunk_size = chunk_size
        self.refresh_after = refresh_after
        self.cache = cache

    def __repr__(self) -> str:
        return f"Store({self.root!r})"

    @property
    def root(self) -> str:
        """The root of the store: an absolute path or a URL."""
        return self.storage.root

    def save_model(
        self,
        path: Content,
        label: str = "model",
        metadata: Mapping[str, Any] | None = None,
        *,
        pathspec: str = "",
        attempt: int = 0,
        parents: Sequence[str] = (),
        gang: str | None = None,
        progress: Progress | None = None,
    ) -> ModelArtifact:
        """Save a file, a directory, or a mapping of relative path to bytes or path, as a model; return its reference.

        `metadata` is kept with it; `pathspec`, `attempt` and `gang` say which task saved it, `parents` are the keys of
        the artifacts that it was made from. Raises InvalidInput for a label or metadata that break a rule, SourceError
        if `path` cannot be read, StorageError if the datastore fails; nothing is stored under a key then.
        """
        key = ModelKey.new(label)
        details = SaveDetails(label, metadata, pathspec, attempt, parents, gang=gang).normalised()
        return self._save(source_of(path), [(str(key), details.reference("model", key.uuid))], True, progress)

    def save_checkpoint(
        self,
        path: Content,
        keys: Iterator[CheckpointKey],
        details: SaveDetails,
        *,
        progress: Progress | None = None,
    ) -> ModelArtifact:
        """Save a file, directory or mapping as a checkpoint under the first of `keys` that is free.

        See `CheckpointWriter`, which numbers the keys and gives the details. Raises as `save_model`.
        """
        candidates = _checkpoints(keys, details)
        self.storage.require_put_if_absent()
        return self._save(source_of(path), candidates, details.latest, progress)

    def commit_checkpoint(
        self,
        files: Sequence[FileEntry],
        chunks: Sequence[Chunk],
        keys: Iterator[CheckpointKey],
        details: SaveDetails,
        *,
        since: float | None = None,
        inline: bytes | None = None,
    ) -> ModelArtifact:
        """The second half of `save_checkpoint`, for content whose chunks the caller has stored.

        Every one of `chunks` is known to be stored (`put_chunk`, `is_stored`). The first of them was stored or found
        after the time `since` (seconds since the epoch); with None, each chunk is looked at again. `files` are in the
        order of their paths' bytes, and their offsets add up. Small content may be given as `inline`, without chunks.
        Raises TransientStorageError if a `gc` has removed a chunk meanwhile, else as `save_checkpoint`.
        """
        self.storage.require_put_if_absent()
        if not are_safe_from_gc(self.storage, chunks, since, self.refresh_after):
            raise TransientStorageError(f"{self.root}: a gc removed content while it was stored; store it again")
        return self._commit(_checkpoints(keys, details), files, (), chunks, inline, details.latest)

    def _save(
        self,
        source: Source,
        candidates: Iterable[tuple[str, dict[str, Any]]],
        latest: bool,
        progress: Progress | None,
    ) -> ModelArtifact:
        transfer = progress or Progress()
        transfer.start(source.size)
        chunks: list[Chunk] = []
        digests: dict[int, str] = {}
        inline = read_inline(source, INLINE_LIMIT)
        if inline is None:
            demand_readable(source, self.chunk_size)
            chunks, digests = self._store_chunks(source, transfer)
        else:
            transfer.start(len(inline))
            transfer.add(len(inline), stored=len(inline))
        return self._commit(candidates, file_entries(source.files, digests), source.dirs, chunks, inline, latest)

    def _store_chunks(self, source: Source, transfer: Progress) -> tuple[list[Chunk], dict[int, str]]:
        files = frozenset((file.inode, file.size, file.mtime_ns) for file in source.files[:_FEW] if file.size)
        expects_new, self._last_saved = files.isdisjoint(self._last_saved), files
        # A retry of a task that saves in the background may come to the same machine.
        cache = self.cache if engine().manners.fills_cache else None
        given = self.storage, source, self.chunk_size, transfer, self.refresh_after, cache
        here = functools.partial(store_chunks, *given, expects_new=expects_new)
        elsewhere = storing_elsewhere()
        return here() if elsewhere is None else elsewhere(here, *given)

    def _commit(
        self,
        candidates: Iterable[tuple[str, dict[str, Any]]],
        files: Sequence[FileEntry],
        dirs: Sequence[str],
        chunks: Sequence[Chunk],
        inline: bytes | None,
        latest: bool,
    ) -> ModelArtifact:
        size = sum(file.size for file in files)
        key = ""
        for key, fields in candidates:
            artifact = parse_reference({**fields, "key": key, "size": size, "url": self.storage.url(key)})
            manifest = Manifest(artifact, files, dirs, chunks, self.chunk_size, inline, latest)
            if self.storage.put_if_absent(key, encode(manifest)):
                return artifact
        raise InvalidReference(f"all keys for this save are taken, the last one is {key!r}; pass a free key")

    def load(
        self,
        reference: Reference,
        path: str | os.PathLike[str],
        *,
        only: Patterns | None = None,
        progress: Progress | None = None,
    ) -> str:
        """Load an artifact's files into the directory `path`, and return that path.

        The directory is made if it does not exist. Files with the same path are replaced, and nothing else in it is
        changed; nothing at all changes until every byte was verified. What the directory holds already, or a load into
        it that was killed has left, is hashed and not fetched again (`progress.found`); nor is what the node's cache
        has (`progress.cached`). With `only`, the files are loaded whose path matches this pattern, or one of several
        (`*` and `?`; `*` matches `/` too, and `**/` also nothing). Raises as `manifest` does; InvalidInput if `only` is
        no pattern; ArtifactNotFound if a pattern matches no file, or if the artifact is deleted meanwhile and content
        is gone; CorruptArtifact if content is missing or changed; TargetError if `path` cannot be written.
        """
        patterns_of(only)
        load_files(self.storage, self.manifest(reference), path, only, progress or Progress(), self.cache)
        return os.fspath(path)

    def read_file(self, reference: Reference | Manifest, name: str, start: int = 0, length: int | None = None) -> bytes:
        """The content of one file of an artifact, or `length` bytes of it from `start`.

        Only the bytes that are needed for verification are read: the whole file if it is small, else the chunks that
        contain the range. Raises ArtifactNotFound if the artifact has no such file, InvalidInput for a negative `start`
        or `length`, else as `load` does.
        """
        manifest = reference if isinstance(reference, Manifest) else self.manifest(reference)
        file = manifest.file(name)
        if file is None:
            raise ArtifactNotFound(f"{manifest.artifact['key']}: has no file {name!r}; {named_files(manifest)}")
        if start < 0 or (length is not None and length < 0):
            raise InvalidInput(f"{name}: start and length count from 0, found {start} and {length}")
        end = file.size if length is None else min(file.size, start + length)
        if start >= end:
            return b""
        with naming(self.storage, manifest):
            if isinstance(manifest, ForeignManifest):
                return read_part(self.storage, file, manifest.locations[manifest.files.index(file)], start, end)
            if manifest.inline is not None:
                return manifest.inline[file.offset + start : file.offset + end]
            return read_range(self.storage, manifest.chunks, file, start, end, self.cache, manifest.chunk_begins)

    def copy_to(
        self,
        target: Store,
        references: Iterable[Reference],
        *,
        lineage: bool = False,
        verify: bool = False,
        progress: Progress | None = None,
    ) -> CopyResult:
        """Copy artifacts to another store: same keys, dates, metadata and parents. What is there is not sent again.

        Between two buckets of one service, and on one file system, the content does not pass this process. With
        `lineage`, the artifacts that they were made from are copied too. With `verify`, all content is read and
        verified at the target. An artifact is committed after those that it was made from, and after the older ones of
        its attempt. A copy that was interrupted goes on when it is repeated. Where an artifact cannot be copied, the
        others are, and then this raises: ArtifactNotFound or CorruptArtifact if it is not whole here, or damaged there,
        StorageError if its key belongs to another artifact there. Also raises InvalidReference, InvalidInput if both
        are one store, and StorageError if a storage fails.
        """
        outcome = copy_artifacts(self, target, references, lineage, verify, progress or Progress())
        outcome.raise_first()
        return outcome.result

    def list(self, prefix: str = MODEL_ARTIFACTS) -> Iterator[str]:
        """The keys of all artifacts that start with `prefix`, in any order; by default those of models.

        This includes the keys of what metaflow-checkpoint has stored.
        """
        foreign = {*keys_of_foreign(self.storage, [prefix])}
        own = (info.key for _, info in artifacts(self.storage.list(prefix)))
        return chain((key for key in own if key not in foreign), foreign)

    def delete(self, reference: Reference) -> None:
        """Remove an artifact. The first `gc` after the grace period frees its content.

        Raises InvalidReference for a malformed key, ArtifactNotFound if nothing is stored there, StorageError if the
        datastore fails.
        """
        parsed = ParsedReference.of(reference)
        if parsed.artifact is not None:
            # A damaged artifact can be deleted; one that took the key since cannot, by the old reference.
            with suppress(CorruptArtifact):
                self.head(parsed)
        exists, found = self._at(parsed)
        if found is not None:
            delete_foreign(self.storage, found)
        else:
            delete_artifact(self.storage, parsed.parts, exists)

    def foreign_at(self, key: str) -> ForeignArtifact | None:
        """What metaflow-checkpoint has stored at a key; None if there is nothing, or an artifact of these packages.

        Raises CorruptArtifact if the JSON about it is damaged, StorageError.
        """
        return self._at(ParsedReference.of(key))[1]

    def foreign_among(self, keys: Sequence[str]) -> Sequence[str]:
        """Those of the keys at which metaflow-checkpoint has stored something. One read for each of up to 16 keys.

        For more keys there are three listings, and a read for each that is found. Raises InvalidReference for a
        malformed key, StorageError.
        """
        if len(keys) > _FEW:
            foreign = {*keys_of_foreign(self.storage)}
            keys = [key for key in keys if key in foreign]
        found = ordered(self.storage, self.foreign_at, keys)
        return [key for key, one in zip(keys, found, strict=True) if one is not None]

    def _at(self, parsed: ParsedReference) -> tuple[bool, ForeignArtifact | None]:
        """Whether there is an object at a key, and what metaflow-checkpoint has stored there. One read for ours."""
        try:
            exists, is_other = True, is_tar(self.storage.get(parsed.own_key, 0, TAR_BLOCK))
        except ArtifactNotFound:
            exists, is_other = False, True
        return exists, find(self.storage, parsed.key) if is_other else None

    def delete_all(self, keys: Iterable[str]) -> Iterator[str]:
        """Remove artifacts with few requests: up to 1,000 manifests with one, where the storage can do that.

        Gives each key that was there, when it is gone, in the order given, but those that metaflow-checkpoint has
        stored last; nothing is removed before the first is asked for. What a killed run leaves is whole. Raises
        InvalidReference for a malformed key, before anything is removed, and StorageError if the datastore fails.
        """
        keys = [*dict.fromkeys(keys)]
        theirs = dict.fromkeys(self.foreign_among(keys))
        yield from delete_artifacts(self.storage, [key for key in keys if key not in theirs])
        for key in theirs:
            self.delete(key)
            yield key


def _checkpoints(keys: Iterator[CheckpointKey], details: SaveDetails) -> Iterable[tuple[str, dict[str, Any]]]:
    """Each key with the reference of a checkpoint saved there. Metadata is judged now, the keys are drawn later."""
    details = details.normalised()

    def candidates() -> Iterator[tuple[str, dict[str, Any]]]:
        for key in keys:
            members = details.reference("checkpoint", key.filename)
            yield str(key), {**members, "attempt": key.attempt, "name": key.name, "version_id": key.n}

    return candidates()
