"""From a request to a reference: what the datastore has, what the Hub says, and what is fetched when.

A revision that moves is resolved to its commit first, with one small request for all tasks of a run. A snapshot of
that commit in the request's own place is used as it is. One that somebody else has stored, in another step or flow,
is entered in the own place too, and no byte moves. Only then the Hub is asked for files, by one task of all that
want them.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
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
    TransientStorageError,
    count_text,
    parse_key,
    size_text,
    staged_target,
)

from .arguments import RepoRequest
from .dedupe_index import DedupeIndex
from .errors import HubError, HubUnavailable
from .fetch import Content, fetch
from .hub import Hub, HubFile, Resolved
from .lease import TTL, single_flight
from .previous_snapshot import PreviousSnapshot

__all__ = ["Cache", "SnapshotResult"]

_ATTEMPTS_WITH_FALLBACK = 2
_PATIENCE_WITH_FALLBACK = 5.0
_CLOSE = 2.0
_PATIENCE_FOR_COMMIT = 5.0
_SECONDS_BETWEEN_LINES = 60.0


@dataclass(frozen=True)
class SnapshotResult:
    """A snapshot that is in the datastore, and how it came to be there."""

    artifact: ModelArtifact
    from_hub: bool
    """Whether the Hub was asked for files; else the datastore had them all."""
    downloaded: int
    """Bytes that came from the Hub."""
    files: Sequence[FileEntry]
    seconds: float
    delivered: bool = False
    """Whether the files lie at the path that was given, too."""
    instead: str = ""
    """Why it is not what the Hub has at present, where it is not known to be."""

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
        lease_ttl: float = TTL,
    ) -> None:
        """`writer_of` says where a request's snapshots lie, which depends on the cache scope; `lease_ttl` in
        seconds."""
        self._writer_of = writer_of
        self._label = label
        self._log = log
        self._warn = warn
        self._lease_ttl = lease_ttl
        self._resolved: dict[tuple[str | None, ...], Resolved] = {}

    def obtain(self, request: RepoRequest, path: str | os.PathLike[str] | None = None) -> SnapshotResult:
        """A snapshot of what is asked for, in the datastore when this returns.

        With `path`, files that come from the Hub are written there at the same time, unless the datastore has some.
        Raises HubError where neither the Hub nor the datastore has it, UsageError where huggingface_hub is needed
        and not installed, StorageError where the datastore fails.
        """
        return _Task(self, request, path).obtain()


class _Task:
    """One call of `Cache.obtain`."""

    def __init__(self, cache: Cache, request: RepoRequest, path: str | os.PathLike[str] | None) -> None:
        self._cache = cache
        self._request = request
        self._path = path
        self._writer = cache._writer_of(request)
        self._store = self._writer.store
        self._hints = DedupeIndex(self._store)
        self._began = self._told = time.monotonic()
        self._known_hub: Hub | None = None

    @property
    def _hub(self) -> Hub:
        if self._known_hub is None:
            self._known_hub = Hub(self._request, self._cache._warn)
        return self._known_hub

    def obtain(self) -> SnapshotResult:
        request = self._request
        stored = self._listed()
        if request.force_download:
            self._cache._resolved.pop(request.moving, None)
        try:
            commit = request.commit or self._resolve(fallback=bool(stored)).commit
            if not request.force_download:
                found = next((m for m in self._manifests(stored) if _commit_of(m) == commit), None)
                if found is not None:
                    return self._from_datastore(found)
            return self._bring(commit)
        except HubError as error:
            return self._fall_back(stored, error)

    def _resolve(self, *, fallback: bool) -> Resolved:
        """What the revision is: asked once in a run, so that all its tasks see one state of a repo."""
        known, key = self._cache._resolved, self._request.moving
        if key not in known:
            known[key] = self._resolve_in_run(fallback)
        return known[key]

    def _resolve_in_run(self, fallback: bool) -> Resolved:
        request = self._request
        run = "/".join(self._writer.pathspec.split("/")[:2])
        found = None if request.force_download else self._hints.commit_in(run, request)
        if found is not None:
            return found

        def ask() -> Resolved:
            limits = (_ATTEMPTS_WITH_FALLBACK, _PATIENCE_WITH_FALLBACK) if fallback else ()
            resolved = self._hub.resolve(*limits)
            self._hints.note_commit(run, request, resolved)
            return resolved

        if request.force_download or self._hub.offline:
            return ask()
        return single_flight(
            self._store.storage,
            f"{HUB}/leases/{hashlib.sha256(run.encode()).hexdigest()[:20]}.{request.moving_hash}",
            lambda: self._hints.commit_in(run, request),
            ask,
            lambda who: None,
            self._writer.pathspec,
            self._cache._lease_ttl,
            _PATIENCE_FOR_COMMIT,
        )

    def _listed(self) -> list[ObjectInfo]:
        """What this request has stored in its place, newest first; none of it is read."""
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
                self._cache._warn(f"passing over a stored snapshot: {error}")
                continue
            if self._is_mine(manifest.artifact):
                yield manifest

    def _newest(self, stored: list[ObjectInfo]) -> Manifest | None:
        best = next(self._manifests(stored), None)
        if best is None:
            return None
        # Storages count whole seconds: what was stored close together, the manifests themselves tell apart.
        times = {info.key: info.modified for info in stored}
        near = [info for info in stored if abs(info.modified - times[best.artifact["key"]]) < _CLOSE]
        return max(self._manifests(near), key=lambda manifest: manifest.artifact["created_on"], default=best)

    def _is_mine(self, artifact: ModelArtifact) -> bool:
        """Whether a snapshot is of what is asked for: names are short, and two can be the same."""
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
        instead = f"{error}; using commit {_commit_of(newest)[:12]}, stored {newest.artifact['created_on']}"
        (self._cache._log if offline else self._cache._warn)(instead)
        return replace(self._from_datastore(newest), instead=instead)

    def _from_datastore(self, manifest: Manifest, artifact: ModelArtifact | None = None) -> SnapshotResult:
        if artifact is None:
            artifact = manifest.artifact
            # The store may have been moved or be reached by another name since.
            artifact["url"] = self._store.storage.url(artifact["key"])
        self._cache._log(f"{self._request} is in the datastore [key: {artifact['key']}]")
        return SnapshotResult(artifact, False, 0, manifest.files, time.monotonic() - self._began)

    def _bring(self, commit: str) -> SnapshotResult:
        """Into the own place, what others have stored or the Hub has."""
        resolved = self._resolve(fallback=False)
        if self._request.force_download:
            return self._download(commit)
        return single_flight(
            self._store.storage,
            f"{HUB}/leases/{self._request.repo_hash}.{commit}.{self._request.files_id}",
            lambda: self._take_over(commit, resolved),
            lambda: self._download(commit),
            lambda who: self._cache._log(f"{self._request}: waiting for {who}, which downloads it"),
            self._writer.pathspec,
            self._cache._lease_ttl,
        )

    def _take_over(self, commit: str, resolved: Resolved) -> SnapshotResult | None:
        """What somebody has stored, if anybody has, in the own place."""
        snapshot = self._hints.snapshot(self._request, commit)
        if snapshot is None:
            return None
        manifest = snapshot.manifest
        key = parse_key(manifest.artifact["key"])
        if isinstance(key, CheckpointKey) and key.place == self._writer.place and self._is_mine(manifest.artifact):
            return self._from_datastore(manifest)
        if resolved.restricted:
            self._hub.check_access()
        try:
            artifact = self._commit(commit, Content(list(manifest.files), list(manifest.chunks), {}))
        except TransientStorageError:
            # Some of its content is gone.
            return None
        return self._from_datastore(manifest, artifact)

    def _download(self, commit: str) -> SnapshotResult:
        request = self._request
        files = self._hub.tree(commit)
        size = sum(file.size for file in files)
        if not files:
            self._cache._warn(f"{request}: no file of commit {commit[:12]} matches the patterns; the snapshot is empty")
        self._cache._log(
            f"Downloading {request}, commit {commit[:12]}: {count_text(len(files), 'file')}, {size_text(size)}"
        )
        with nullcontext() if self._path is None else staged_target(self._path) as target:
            content, artifact = self._fetch(commit, files, target)
        self._hints.note_snapshot(request, commit, artifact["key"], content.oids)
        seconds = time.monotonic() - self._began
        self._cache._log(
            f"Stored {request} in {seconds:.2f} seconds: {size_text(content.downloaded)} came from the Hub, "
            f"{size_text(max(0, size - content.downloaded))} were in the datastore [key: {artifact['key']}]"
        )
        return SnapshotResult(artifact, True, content.downloaded, content.files, seconds, content.delivered)

    def _fetch(self, commit: str, files: list[HubFile], target: str | None) -> tuple[Content, ModelArtifact]:
        snapshot = None if self._request.force_download else self._hints.newest(self._request)
        earlier = PreviousSnapshot(self._store.storage, snapshot) if snapshot is not None else None
        reuse = not self._request.force_download
        content = fetch(
            self._store,
            self._hub,
            commit,
            files,
            earlier=earlier,
            reuse=reuse,
            target=target,
            progress=Progress(self._tell),
        )
        try:
            return content, self._commit(commit, content)
        except TransientStorageError:
            # A gc was faster than this; what it left is not fetched again.
            again = fetch(self._store, self._hub, commit, files, earlier=earlier, reuse=reuse)
            again.downloaded += content.downloaded
            again.delivered = content.delivered
            return again, self._commit(commit, again)

    def _tell(self, transfer: Progress) -> None:
        """A line now and then in the log of a download that takes its time."""
        now = time.monotonic()
        if now - self._told >= _SECONDS_BETWEEN_LINES:
            self._told = now
            self._cache._log(f"{self._request}: {size_text(transfer.done)} of {size_text(transfer.total)}")

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
