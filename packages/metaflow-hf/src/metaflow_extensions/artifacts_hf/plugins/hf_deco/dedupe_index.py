"""The dedupe index: what is stored beside the snapshots, so that no content is downloaded twice.

It consists of small JSON objects below `mf.huggingface_hub/`, shared by all flows, steps and cache scopes:

- `files/<SHA-256>`: the chunks that contain a file,
- `snapshots/<repo>/<commit>.<patterns>`: the key of a snapshot with that content, and the Hub's ids of its files,
- `runs/<flow>/<run>/<revision>`: the commit to which a revision was resolved when the run first asked.

An entry is checked before it is used. An entry that is missing or wrong costs another download, and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metaflow_artifacts.plugin import (
    HUB,
    ArtifactNotFound,
    Chunk,
    CorruptArtifact,
    InvalidReference,
    Manifest,
    Store,
    encode_part,
)

from .arguments import RepoRequest
from .hub import Resolved

__all__ = ["ChunkLocation", "DedupeIndex", "Snapshot"]

_HEX40 = re.compile(r"[0-9a-f]{40}", re.ASCII)
_HEX64 = re.compile(r"[0-9a-f]{64}", re.ASCII)

_RUN_ENTRY_LIFETIME_S = 30 * 24 * 3600.0
"""Seconds for which the commits of a run are kept, by the storage's clock."""

_MAX_SNAPSHOTS_READ = 5
"""Snapshots of a repo that are looked up, the newest first, until one is found that was not deleted."""


@dataclass(frozen=True)
class ChunkLocation:
    """Where the content of a file is stored: it begins at byte `offset` of the content of `chunks`."""

    chunks: list[Chunk]
    offset: int


class Snapshot:
    """A stored snapshot, with the Hub's id of each file whose content was verified against it."""

    def __init__(self, manifest: Manifest, oids: Mapping[str, str]) -> None:
        self.manifest = manifest
        self.oids = oids


class DedupeIndex:
    """The dedupe index of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._storage = store.storage

    def file(self, sha256: str, size: int) -> ChunkLocation | None:
        """Where content of this digest and size is stored; None if the index does not say."""
        found = self._read(_file_key(sha256))
        try:
            chunks = [Chunk(str(digest), int(length)) for digest, length in found["chunks"]]
            offset = int(found["offset"])
        except (KeyError, TypeError, ValueError):
            return None
        stored = sum(chunk.size for chunk in chunks)
        if not 0 <= offset <= stored - size or not all(_HEX64.fullmatch(chunk.sha256) for chunk in chunks):
            return None
        return ChunkLocation(chunks, offset)

    def note_file(self, sha256: str, chunks: Sequence[Chunk], offset: int = 0) -> None:
        """Enter where a verified file is stored."""
        rows = [[chunk.sha256, chunk.size] for chunk in chunks]
        self._write(_file_key(sha256), {"chunks": rows, "offset": offset})

    def snapshot(self, request: RepoRequest, commit: str) -> Snapshot | None:
        """A stored snapshot of a commit with the files that `request` wants, from any flow and step."""
        return self._snapshot(_snapshot_key(request, commit))

    def newest(self, request: RepoRequest) -> Snapshot | None:
        """The newest snapshot of the repo, of whichever commit."""
        infos = sorted(self._storage.list(_snapshots(request)), key=lambda info: info.modified, reverse=True)
        found = (self._snapshot(info.key) for info in infos[:_MAX_SNAPSHOTS_READ])
        return next((snapshot for snapshot in found if snapshot is not None), None)

    def note_snapshot(self, request: RepoRequest, commit: str, key: str, oids: Mapping[str, str]) -> None:
        """Enter a snapshot that was just stored at `key`."""
        self._write(_snapshot_key(request, commit), {"key": key, "oids": dict(oids)})

    def commit_in(self, run: str, request: RepoRequest) -> Resolved | None:
        """What the revision was when a task of `run` (`flow/run id`) first asked the Hub; None if none did."""
        found = self._read(_run_key(run, request))
        commit, restricted = found.get("commit"), found.get("restricted")
        if not isinstance(commit, str) or not _HEX40.fullmatch(commit) or not isinstance(restricted, bool):
            return None
        return Resolved(commit, restricted)

    def note_commit(self, run: str, request: RepoRequest, resolved: Resolved) -> None:
        """Enter it for the other tasks of the run, and delete the entries of runs of long ago."""
        self._write(_run_key(run, request), {"commit": resolved.commit, "restricted": resolved.restricted})
        infos = list(self._storage.list(_flow_key(run)))
        newest = max((info.modified for info in infos), default=0.0)
        self._storage.delete([info.key for info in infos if newest - info.modified > _RUN_ENTRY_LIFETIME_S])

    def _snapshot(self, key: str) -> Snapshot | None:
        found = self._read(key)
        oids = found.get("oids")
        if not isinstance(oids, dict):
            return None
        try:
            return Snapshot(self._store.manifest(found.get("key", "")), oids)
        except (ArtifactNotFound, CorruptArtifact, InvalidReference):
            return None

    def _read(self, key: str) -> dict[str, Any]:
        try:
            value = json.loads(self._storage.get(key))
        except (ArtifactNotFound, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def _write(self, key: str, value: Mapping[str, Any]) -> None:
        self._storage.put(key, json.dumps(value, separators=(",", ":")).encode())


def _file_key(sha256: str) -> str:
    return f"{HUB}/files/{sha256[:2]}/{sha256[2:]}"


def _flow_key(run: str) -> str:
    return f"{HUB}/runs/{encode_part(run.partition('/')[0], 'flow')}/"


def _run_key(run: str, request: RepoRequest) -> str:
    return f"{_flow_key(run)}{encode_part(run.partition('/')[2], 'run')}/{request.revision_hash}"


def _snapshots(request: RepoRequest) -> str:
    return f"{HUB}/snapshots/{request.repo_hash}/"


def _snapshot_key(request: RepoRequest, commit: str) -> str:
    return f"{_snapshots(request)}{commit}.{request.patterns_hash}"
