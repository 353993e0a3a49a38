"""From a request to a reference: what the datastore has, what the Hub says, and what is downloaded.

1. A branch or tag is resolved to its commit, with one small request for all tasks of a run.
2. A snapshot of that commit at the place of the request (flow, step, scope, foreach value) is used as it is.
3. A snapshot of that commit at another place gets a second manifest at this place. No content is transferred.
4. Else the files are downloaded from the Hub, by one of all tasks that want them at the same time. They are streamed
   into the store. Where that is not possible, huggingface_hub downloads them into a temporary directory first.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace

from metaflow_artifacts.plugin import (
    HUB,
    ArtifactNotFound,
    CheckpointKey,
    CheckpointWriter,
    CorruptArtifact,
    FileEntry,
    InvalidReference,
    Manifest,
    ModelArtifact,
    ObjectInfo,
    Progress,
    TemporaryDirectories,
    TransientStorageError,
    count_text,
    parse_key,
    size_text,
    staged_target,
)

from .arguments import RepoRequest
from .dedupe_index import DedupeIndex
from .errors import CannotStream, HubError, HubUnavailable
from .fetch import Content, fetch
from .hub import Hub, HubFile, Resolved
from .lease import TTL_S, single_flight
from .library_hub import LibraryHub
from .previous_snapshot import PreviousSnapshot

__all__ = ["Cache", "SnapshotResult"]

_ATTEMPTS_WITH_FALLBACK = 2
_MAX_RETRY_AFTER_WITH_FALLBACK_S = 5.0
"""How patiently the Hub is asked for a commit if the datastore has a snapshot that can be used instead."""
_CLOCK_RESOLUTION_S = 2.0
"""Storages may date objects in whole seconds: objects closer than this are compared by their manifests."""
_MAX_COMMIT_WAIT_S = 5.0
"""Seconds to wait for another task of the run that resolves the same revision."""
_PROGRESS_INTERVAL_S = 60.0
"""Seconds between two lines about a download in the log."""


@dataclass(frozen=True)
class SnapshotResult:
    """A snapshot in the datastore, and where its content came from."""

    artifact: ModelArtifact
    from_hub: bool
    """Whether files were requested from the Hub; else the datastore had all of them."""
    downloaded: int
    """Bytes that were downloaded from the Hub."""
    files: Sequence[FileEntry]
    seconds: float
    delivered: bool = False
    """Whether the files were also written to the given path."""
    fallback_reason: str = ""
    """Why a stored snapshot was used without knowing whether the Hub has a newer commit; else empty."""

    @property
    def commit(self) -> str:
        """The commit id."""
        return str(self.artifact["metadata"]["commit"])


class Cache:
    """Snapshots for one task."""

    def __init__(
        self,
        writer_of: Callable[[RepoRequest], CheckpointWriter],
        label: str,
        log: Callable[[str], None],
        warn: Callable[[str], None],
        lease_ttl: float = TTL_S,
        temp_dir_root: str | os.PathLike[str] | None = None,
    ) -> None:
        """`writer_of` returns the writer for the place of a request's snapshots, which depends on the cache scope.

        `label` becomes the label of new snapshots. `log` and `warn` are called with one line. `lease_ttl` is the time
        in seconds after which the lease of a task that was killed expires. `temp_dir_root` is the directory for
        downloads that cannot be streamed; None is the system's.
        """
        self._writer_of = writer_of
        self._label = label
        self._log = log
        self._warn = warn
        self._lease_ttl = lease_ttl
        self._temp_dir_root = temp_dir_root
        self._noted: set[str] = set()
        self._resolved: dict[tuple[str | None, ...], Resolved] = {}

    def obtain(self, request: RepoRequest, path: str | os.PathLike[str] | None = None) -> SnapshotResult:
        """A snapshot of what `request` asks for. It is in the datastore when this returns.

        With `path`, files are also written there while they are downloaded; if the datastore already has some of
        them, no file is. Raises HubError if neither the Hub nor the datastore has the repo, UsageError if
        huggingface_hub is needed and not installed, StorageError if the datastore fails.
        """
        return SnapshotResolver(self, request, path).obtain()

    def _log_once(self, message: str) -> None:
        if message not in self._noted:
            self._noted.add(message)
            self._log(message)


class SnapshotResolver:
    """Finds or downloads the snapshot of one request: one call of `Cache.obtain`."""

    def __init__(self, cache: Cache, request: RepoRequest, path: str | os.PathLike[str] | None) -> None:
        self._cache = cache
        self._request = request
        self._path = path
        self._writer = cache._writer_of(request)
        self._store = self._writer.store
        self._index = DedupeIndex(self._store)
        self._began = self._last_progress = time.monotonic()
        self._known_hub: Hub | LibraryHub | None = None

    @property
    def _hub(self) -> Hub | LibraryHub:
        if self._known_hub is None:
            self._known_hub = Hub(self._request, self._cache._warn, self._cache._log_once)
        return self._known_hub

    def obtain(self) -> SnapshotResult:
        """As `Cache.obtain`."""
        try:
            return self._obtain()
        except CannotStream as reason:
            hub = self._known_hub = LibraryHub(self._request, self._cache._warn)
            self._cache._log_once(
                f"{reason}: files cannot be streamed into the datastore; {hub.library} downloads them into a temporary "
                "directory first, which is slower"
            )
            return self._obtain()

    def _obtain(self) -> SnapshotResult:
        request = self._request
        stored = self._listed()
        if request.force_download:
            self._cache._resolved.pop(request.revision_key, None)
        try:
            commit = request.commit or self._resolve(fallback=bool(stored)).commit
            if not request.force_download:
                found = next((m for m in self._manifests(stored) if _commit_of(m) == commit), None)
                if found is not None:
                    return self._from_datastore(found)
            return self._add(commit)
        except HubError as error:
            return self._fall_back(stored, error)

    def _resolve(self, *, fallback: bool) -> Resolved:
        """The commit of the revision. It is asked once in a run, so that all tasks of the run use the same commit."""
        known, key = self._cache._resolved, self._request.revision_key
        if key not in known:
            known[key] = self._resolve_in_run(fallback)
        return known[key]

    def _resolve_in_run(self, fallback: bool) -> Resolved:
        request = self._request
        run = "/".join(self._writer.pathspec.split("/")[:2])
        found = None if request.force_download else self._index.commit_in(run, request)
        if found is not None:
            return found

        def ask() -> Resolved:
            limits = (_ATTEMPTS_WITH_FALLBACK, _MAX_RETRY_AFTER_WITH_FALLBACK_S) if fallback else ()
            resolved = self._hub.resolve(*limits)
            self._index.note_commit(run, request, resolved)
            return resolved

        if request.force_download or self._hub.offline:
            return ask()
        return single_flight(
            self._store.storage,
            f"{HUB}/leases/{hashlib.sha256(run.encode()).hexdigest()[:20]}.{request.revision_hash}",
            lambda: self._index.commit_in(run, request),
            ask,
            lambda who: None,
            self._writer.pathspec,
            self._cache._lease_ttl,
            _MAX_COMMIT_WAIT_S,
        )

    def _listed(self) -> list[ObjectInfo]:
        """The stored snapshots of this request at its place, newest first. None of them is read."""
        found = []
        for info in self._store.storage.list(self._writer.place.prefix()):
            try:
                key = parse_key(info.key)
            except InvalidReference:
                continue
            if isinstance(key, CheckpointKey) and key.name == self._request.name:
                found.append(info)
        return sorted(found, key=lambda info: info.modified, reverse=True)

    def _manifests(self, stored: Iterable[ObjectInfo]) -> Iterator[Manifest]:
        for info in stored:
            try:
                manifest = self._store.manifest(info.key)
            except (ArtifactNotFound, CorruptArtifact) as error:
                self._cache._warn(f"skipping a stored snapshot: {error}")
                continue
            if self._is_requested(manifest.artifact):
                yield manifest

    def _newest(self, stored: list[ObjectInfo]) -> Manifest | None:
        best = next(self._manifests(stored), None)
        if best is None:
            return None
        # Of snapshots that were stored at almost the same time, the manifests say which is newest.
        times = {info.key: info.modified for info in stored}
        candidates = [info for info in stored if abs(info.modified - times[best.artifact["key"]]) < _CLOCK_RESOLUTION_S]
        return max(self._manifests(candidates), key=lambda manifest: manifest.artifact["created_on"], default=best)

    def _is_requested(self, artifact: ModelArtifact) -> bool:
        """Whether a snapshot is one of this request. Two requests can have the same name, which is a short hash."""
        metadata = artifact["metadata"]
        wanted = self._request.metadata(str(metadata.get("commit")))
        return {name: metadata.get(name) for name in wanted} == wanted

    def _fall_back(self, stored: list[ObjectInfo], error: HubError) -> SnapshotResult:
        if self._request.force_download:
            raise error
        newest = self._newest(stored)
        if newest is None:
            raise type(error)(f"{error}; the datastore has no snapshot of it for this cache_scope") from error
        offline = isinstance(error, HubUnavailable) and error.final
        reason = f"{error}; using commit {_commit_of(newest)[:12]}, stored {newest.artifact['created_on']}"
        (self._cache._log if offline else self._cache._warn)(reason)
        return replace(self._from_datastore(newest), fallback_reason=reason)

    def _from_datastore(self, manifest: Manifest, artifact: ModelArtifact | None = None) -> SnapshotResult:
        if artifact is None:
            artifact = manifest.artifact
            # The store may have been moved since, or be reached by another name.
            artifact["url"] = self._store.storage.url(artifact["key"])
        self._cache._log(f"{self._request} is in the datastore [key: {artifact['key']}]")
        return SnapshotResult(artifact, False, 0, manifest.files, time.monotonic() - self._began)

    def _add(self, commit: str) -> SnapshotResult:
        """The snapshot of a commit that this place lacks: from another place, or else from the Hub."""
        resolved = self._resolve(fallback=False)
        if self._request.force_download:
            return self._download(commit)
        return single_flight(
            self._store.storage,
            f"{HUB}/leases/{self._request.repo_hash}.{commit}.{self._request.patterns_hash}",
            lambda: self._take_over(commit, resolved),
            lambda: self._download(commit),
            lambda who: self._cache._log(f"{self._request}: waiting for {who}, which downloads it"),
            self._writer.pathspec,
            self._cache._lease_ttl,
        )

    def _take_over(self, commit: str, resolved: Resolved) -> SnapshotResult | None:
        """A snapshot that any task has stored, with a manifest at this place; None if there is none."""
        snapshot = self._index.snapshot(self._request, commit)
        if snapshot is None:
            return None
        manifest = snapshot.manifest
        key = parse_key(manifest.artifact["key"])
        if isinstance(key, CheckpointKey) and key.place == self._writer.place and self._is_requested(manifest.artifact):
            return self._from_datastore(manifest)
        if resolved.restricted:
            self._hub.check_access()
        try:
            artifact = self._commit(commit, Content(list(manifest.files), list(manifest.chunks), {}))
        except TransientStorageError:
            # Some of its chunks are gone.
            return None
        return self._from_datastore(manifest, artifact)

    def _download(self, commit: str) -> SnapshotResult:
        hub = self._hub
        return self._download_to_disk(hub, commit) if isinstance(hub, LibraryHub) else self._stream(hub, commit)

    def _download_to_disk(self, hub: LibraryHub, commit: str) -> SnapshotResult:
        request = self._request
        self._cache._log(f"Downloading {request}, commit {commit[:12]}, with {hub.library}")
        with closing(TemporaryDirectories(self._cache._temp_dir_root)) as directories:
            files = hub.download(commit, directories.new("metaflow_hf_download_"))
            self._warn_if_empty(files, commit)
            artifact = self._writer.save(
                {file.path: os.fspath(file.location) for file in files},
                request.name,
                request.metadata(commit),
                label=self._cache._label,
            )
        oids = {file.path: file.oid for file in files if file.oid is not None}
        self._index.note_snapshot(request, commit, artifact["key"], oids)
        size = sum(file.size for file in files)
        seconds = time.monotonic() - self._began
        self._cache._log(
            f"Stored {request} in {seconds:.2f} seconds: {size_text(size)} came from the Hub [key: {artifact['key']}]"
        )
        stored = self._store.manifest(artifact["key"]).files
        return SnapshotResult(artifact, True, size, stored, seconds)

    def _warn_if_empty(self, files: Sequence[object], commit: str) -> None:
        if not files:
            self._cache._warn(
                f"{self._request}: no file of commit {commit[:12]} matches the patterns; the snapshot is empty"
            )

    def _stream(self, hub: Hub, commit: str) -> SnapshotResult:
        request = self._request
        files = hub.tree(commit)
        size = sum(file.size for file in files)
        self._warn_if_empty(files, commit)
        self._cache._log(
            f"Downloading {request}, commit {commit[:12]}: {count_text(len(files), 'file')}, {size_text(size)}"
        )
        with nullcontext() if self._path is None else staged_target(self._path) as target:
            content, artifact = self._fetch(hub, commit, files, target)
        self._index.note_snapshot(request, commit, artifact["key"], content.oids)
        seconds = time.monotonic() - self._began
        self._cache._log(
            f"Stored {request} in {seconds:.2f} seconds: {size_text(content.downloaded)} came from the Hub, "
            f"{size_text(max(0, size - content.downloaded))} were in the datastore [key: {artifact['key']}]"
        )
        return SnapshotResult(artifact, True, content.downloaded, content.files, seconds, content.delivered)

    def _fetch(self, hub: Hub, commit: str, files: list[HubFile], target: str | None) -> tuple[Content, ModelArtifact]:
        snapshot = None if self._request.force_download else self._index.newest(self._request)
        previous = PreviousSnapshot(self._store.storage, snapshot) if snapshot is not None else None
        reuse = not self._request.force_download
        content = fetch(
            self._store,
            hub,
            commit,
            files,
            previous=previous,
            reuse=reuse,
            target=target,
            progress=Progress(self._log_progress),
        )
        try:
            return content, self._commit(commit, content)
        except TransientStorageError:
            # A gc has removed chunks in the meantime. Only these are downloaded again.
            again = fetch(self._store, hub, commit, files, previous=previous, reuse=reuse)
            again.downloaded += content.downloaded
            again.delivered = content.delivered
            return again, self._commit(commit, again)

    def _log_progress(self, progress: Progress) -> None:
        """Write a line to the log from time to time, while a long download runs."""
        now = time.monotonic()
        if now - self._last_progress >= _PROGRESS_INTERVAL_S:
            self._last_progress = now
            self._cache._log(f"{self._request}: {size_text(progress.done)} of {size_text(progress.total)}")

    def _commit(self, commit: str, content: Content) -> ModelArtifact:
        artifact = self._store.commit_checkpoint(
            content.files,
            content.chunks,
            self._writer.keys(self._request.name),
            self._writer.details(self._cache._label, self._request.metadata(commit)),
            since=content.since,
        )
        self._writer.saved(artifact, latest=True)
        return artifact


def _commit_of(manifest: Manifest) -> str:
    return str(manifest.artifact["metadata"]["commit"])
