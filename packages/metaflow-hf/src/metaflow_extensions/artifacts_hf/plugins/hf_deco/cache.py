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
import re
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace

from metaflow_artifacts.plugin import (
    HUB,
    CheckpointWriter,
    FileEntry,
    Manifest,
    ModelArtifact,
    ObjectInfo,
    Progress,
    SnapshotId,
    Snapshots,
    TemporaryDirectories,
    count_text,
    single_flight,
    size_text,
    staged_target,
)

from .arguments import RepoRequest
from .download import download
from .errors import CannotStream, HubError, HubUnavailable
from .hub import Hub, Resolved
from .streams import HubFile, HubStreams

__all__ = ["Cache", "SnapshotResult"]

_ATTEMPTS_WITH_FALLBACK = 2
_MAX_RETRY_AFTER_WITH_FALLBACK_S = 5.0
"""How patiently the Hub is asked for a commit if the datastore has a snapshot that can be used instead."""
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
        return _commit_of(self.artifact)


class Cache:
    """What the requests of one task share: the log, and the commits that it knows."""

    def __init__(
        self,
        writer_of: Callable[[RepoRequest], CheckpointWriter],
        label: str,
        log: Callable[[str], None],
        warn: Callable[[str], None],
        temp_dir_root: str | os.PathLike[str] | None = None,
    ) -> None:
        """`writer_of` returns the writer for the place of a request's snapshots, which depends on the cache scope.

        `label` becomes the label of new snapshots. `log` and `warn` are called with one line. `temp_dir_root` is the
        directory for downloads that cannot be streamed; None is the system's.
        """
        self.writer_of = writer_of
        self.label = label
        self.log = log
        self.warn = warn
        self.temp_dir_root = temp_dir_root
        self.resolved: dict[tuple[str | None, ...], Resolved] = {}
        self._noted: set[str] = set()

    def obtain(self, request: RepoRequest, path: str | os.PathLike[str] | None = None) -> SnapshotResult:
        """A snapshot of what `request` asks for. It is in the datastore when this returns.

        With `path`, files are also written there while they are downloaded; if the datastore already has some of
        them, no file is. Raises HubError if neither the Hub nor the datastore has the repo, UsageError if
        huggingface_hub is needed and not installed, StorageError if the datastore fails.
        """
        return _Resolver(self, request, path).obtain()

    def note(self, message: str) -> None:
        """Log a line, unless it was logged before."""
        if message not in self._noted:
            self._noted.add(message)
            self.log(message)


class _Resolver:
    """Finds or downloads the snapshot of one request. The methods are in the order in which they are called."""

    def __init__(self, cache: Cache, request: RepoRequest, path: str | os.PathLike[str] | None) -> None:
        self._cache = cache
        self._request = request
        self._path = path
        writer = cache.writer_of(request)
        self._who = writer.pathspec
        self._snapshots = Snapshots(writer, HUB, cache.label, cache.warn)
        self._began = self._last_progress = time.monotonic()
        self._known_hub: Hub | None = None

    @property
    def _hub(self) -> Hub:
        # Made when it is needed: what is stored loads without huggingface_hub.
        if self._known_hub is None:
            self._known_hub = Hub(self._request, self._cache.warn, self._cache.note)
        return self._known_hub

    def obtain(self) -> SnapshotResult:
        """As `Cache.obtain`."""
        request, force = self._request, self._request.force_download
        stored = self._snapshots.listed(request.name)
        try:
            commit = request.commit or self._resolve(fallback=bool(stored)).commit
            id = request.snapshot(commit)
            if force:
                return self._download(id, commit)
            for manifest in self._snapshots.read(stored, request.is_of):
                if _commit_of(manifest.artifact) == commit:
                    return self._from_datastore(manifest)
            restricted = self._resolve(fallback=False).restricted
            return single_flight(
                self._snapshots.store.storage,
                f"{HUB}/leases/{id.group}.{id.entry}",
                lambda: self._from_elsewhere(id, restricted),
                lambda: self._download(id, commit),
                lambda who: self._cache.log(f"{request}: waiting for {who}, which downloads it"),
                self._who,
            )
        except HubError as error:
            if force:
                raise
            return self._fall_back(stored, error)

    def _resolve(self, *, fallback: bool) -> Resolved:
        """The commit of the revision. It is asked once in a run, so that all tasks of the run use the same commit."""
        request, known, key = self._request, self._cache.resolved, self._request.revision_key
        if key in known and not request.force_download:
            return known[key]
        index, run = self._snapshots.index, "/".join(self._who.split("/")[:2])

        def find() -> Resolved | None:
            found = index.in_run(run, request.revision_hash)
            commit, restricted = found.get("commit"), found.get("restricted")
            if isinstance(commit, str) and re.fullmatch("[0-9a-f]{40}", commit) and isinstance(restricted, bool):
                return Resolved(commit, restricted)
            return None

        def ask() -> Resolved:
            limits = (_ATTEMPTS_WITH_FALLBACK, _MAX_RETRY_AFTER_WITH_FALLBACK_S) if fallback else ()
            resolved = self._hub.resolve(*limits)
            index.note_in_run(run, request.revision_hash, vars(resolved))
            return resolved

        found = None if request.force_download else find()
        if found is None and (request.force_download or self._hub.offline):
            found = ask()
        elif found is None:
            name = f"{HUB}/leases/{hashlib.sha256(run.encode()).hexdigest()[:20]}.{request.revision_hash}"
            storage = self._snapshots.store.storage
            found = single_flight(storage, name, find, ask, lambda who: None, self._who, max_wait=_MAX_COMMIT_WAIT_S)
        known[key] = found
        return found

    def _from_elsewhere(self, id: SnapshotId, restricted: bool) -> SnapshotResult | None:
        """A snapshot that any task has stored, with a manifest at this place; None if there is none."""
        manifest = self._snapshots.elsewhere(id)
        if manifest is None:
            return None
        if self._snapshots.is_here(manifest) and self._request.is_of(manifest.artifact):
            return self._from_datastore(manifest)
        if restricted:
            self._hub.check_access()
        artifact = self._snapshots.adopt(id, manifest)
        return None if artifact is None else self._from_datastore(replace(manifest, artifact=artifact))

    def _download(self, id: SnapshotId, commit: str) -> SnapshotResult:
        try:
            streams = HubStreams(self._hub, commit)
            return self._stream(id, streams, streams.files(), commit)
        except CannotStream as reason:
            # Another one: that of the streams may be cancelled.
            hub = self._known_hub = Hub(self._request, self._cache.warn)
            self._cache.note(
                f"{reason}: files cannot be streamed into the datastore; {hub.library_name} downloads them into a "
                "temporary directory first, which is slower"
            )
            return self._download_to_disk(id, hub, commit)

    def _stream(self, id: SnapshotId, streams: HubStreams, files: list[HubFile], commit: str) -> SnapshotResult:
        size = sum(file.size for file in files)
        self._warn_if_empty(files, commit)
        self._cache.log(
            f"Downloading {self._request}, commit {commit[:12]}: {count_text(len(files), 'file')}, {size_text(size)}"
        )
        with nullcontext() if self._path is None else staged_target(self._path) as target:
            content, artifact = self._snapshots.ingest(
                id,
                streams,
                files,
                reuse=not self._request.force_download,
                target=target,
                progress=Progress(self._log_progress),
            )
        rest = f", {size_text(max(0, size - content.downloaded))} were in the datastore"
        return self._stored(artifact, content.files, content.downloaded, rest, content.delivered)

    def _log_progress(self, progress: Progress) -> None:
        """Write a line to the log from time to time, while a long download runs."""
        now = time.monotonic()
        if now - self._last_progress >= _PROGRESS_INTERVAL_S:
            self._last_progress = now
            self._cache.log(f"{self._request}: {size_text(progress.done)} of {size_text(progress.total)}")

    def _download_to_disk(self, id: SnapshotId, hub: Hub, commit: str) -> SnapshotResult:
        self._cache.log(f"Downloading {self._request}, commit {commit[:12]}, with {hub.library_name}")
        with closing(TemporaryDirectories(self._cache.temp_dir_root)) as directories:
            files = download(hub, commit, directories.new("metaflow_hf_download_"))
            self._warn_if_empty(files, commit)
            artifact = self._snapshots.save(
                id,
                {file.path: os.fspath(file.location) for file in files},
                {file.path: file.id for file in files if file.id is not None},
            )
        stored = self._snapshots.store.manifest(artifact["key"]).files
        return self._stored(artifact, stored, sum(file.size for file in files), "", False)

    def _warn_if_empty(self, files: Sequence[object], commit: str) -> None:
        if not files:
            self._cache.warn(
                f"{self._request}: no file of commit {commit[:12]} matches the patterns; the snapshot is empty"
            )

    def _stored(
        self, artifact: ModelArtifact, files: Sequence[FileEntry], downloaded: int, rest: str, delivered: bool
    ) -> SnapshotResult:
        seconds = time.monotonic() - self._began
        self._cache.log(
            f"Stored {self._request} in {seconds:.2f} seconds: {size_text(downloaded)} came from the Hub{rest} "
            f"[key: {artifact['key']}]"
        )
        return SnapshotResult(artifact, True, downloaded, files, seconds, delivered)

    def _from_datastore(self, manifest: Manifest) -> SnapshotResult:
        artifact = manifest.artifact
        # The store may have been moved since, or be reached by another name.
        artifact["url"] = self._snapshots.store.storage.url(artifact["key"])
        self._cache.log(f"{self._request} is in the datastore [key: {artifact['key']}]")
        return SnapshotResult(artifact, False, 0, manifest.files, time.monotonic() - self._began)

    def _fall_back(self, stored: list[ObjectInfo], error: HubError) -> SnapshotResult:
        newest = self._snapshots.newest(stored, self._request.is_of)
        if newest is None:
            raise type(error)(f"{error}; the datastore has no snapshot of it for this cache_scope") from error
        offline = isinstance(error, HubUnavailable) and error.final
        reason = f"{error}; using commit {_commit_of(newest.artifact)[:12]}, stored {newest.artifact['created_on']}"
        (self._cache.log if offline else self._cache.warn)(reason)
        return replace(self._from_datastore(newest), fallback_reason=reason)


def _commit_of(artifact: ModelArtifact) -> str:
    return str(artifact["metadata"]["commit"])
