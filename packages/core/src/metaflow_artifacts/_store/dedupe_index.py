"""The dedupe index: what is stored beside snapshots, so that no content is downloaded twice.

A snapshot is a checkpoint that has the files of one state of a remote place. The index consists of small JSON objects
below one prefix, shared by all flows, steps and places of checkpoints:

- `files/<SHA-256>`: the chunks that contain a file,
- `snapshots/<group>/<entry>`: the key of a snapshot, and the ids that its source gave to its files,
- `runs/<flow>/<run>/<name>`: what the first task of a run that asked has found out.

An entry is checked before it is used. An entry that is missing or wrong costs another download, and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metaflow_artifacts._format.keys import encode_part
from metaflow_artifacts._format.manifest import Chunk, Manifest
from metaflow_artifacts._store.store import Store
from metaflow_artifacts.errors import ArtifactNotFound, CorruptArtifact, InvalidReference

__all__ = ["ChunkLocation", "DedupeIndex", "Snapshot"]

_HEX64 = re.compile(r"[0-9a-f]{64}", re.ASCII)

_RUN_ENTRY_LIFETIME_S = 30 * 24 * 3600.0
"""Seconds for which the entries of a run are kept, by the storage's clock."""

_MAX_SNAPSHOTS_READ = 5
"""Snapshots of a group that are looked up, the newest first, until one is found that was not deleted."""


@dataclass(frozen=True)
class ChunkLocation:
    """Where the content of a file is stored: it begins at byte `offset` of the content of `chunks`."""

    chunks: list[Chunk]
    offset: int


@dataclass(frozen=True)
class Snapshot:
    """A stored snapshot, with the id of each file whose content was verified against it."""

    manifest: Manifest
    ids: Mapping[str, str]


class DedupeIndex:
    """The dedupe index of one store, below `prefix`."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._storage = store.storage
        self._prefix = prefix

    def file(self, sha256: str, size: int) -> ChunkLocation | None:
        """Where content of this digest and size is stored; None if the index does not say."""
        found = self._read(self._file_key(sha256))
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
        self._write(self._file_key(sha256), {"chunks": rows, "offset": offset})

    def snapshot(self, group: str, entry: str) -> Snapshot | None:
        """The snapshot that was entered, from any flow and step; None if there is none that can be read."""
        return self._snapshot(f"{self._group_key(group)}{entry}")

    def newest(self, group: str) -> Snapshot | None:
        """The newest snapshot of a group."""
        infos = sorted(self._storage.list(self._group_key(group)), key=lambda info: info.modified, reverse=True)
        found = (self._snapshot(info.key) for info in infos[:_MAX_SNAPSHOTS_READ])
        return next((snapshot for snapshot in found if snapshot is not None), None)

    def note_snapshot(self, group: str, entry: str, key: str, ids: Mapping[str, str]) -> None:
        """Enter a snapshot that was just stored at `key`."""
        self._write(f"{self._group_key(group)}{entry}", {"key": key, "oids": dict(ids)})

    def in_run(self, run: str, name: str) -> dict[str, Any]:
        """What a task of `run` (`flow/run id`) has noted; empty if none did."""
        return self._read(self._run_key(run, name))

    def note_in_run(self, run: str, name: str, value: Mapping[str, Any]) -> None:
        """Note it for the other tasks of the run, and delete the entries of the flow's runs of long ago."""
        self._write(self._run_key(run, name), value)
        infos = list(self._storage.list(self._flow_key(run)))
        newest = max((info.modified for info in infos), default=0.0)
        self._storage.delete([info.key for info in infos if newest - info.modified > _RUN_ENTRY_LIFETIME_S])

    def _snapshot(self, key: str) -> Snapshot | None:
        found = self._read(key)
        ids = found.get("oids")
        if not isinstance(ids, dict):
            return None
        try:
            return Snapshot(self._store.manifest(found.get("key", "")), ids)
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

    def _file_key(self, sha256: str) -> str:
        return f"{self._prefix}/files/{sha256[:2]}/{sha256[2:]}"

    def _group_key(self, group: str) -> str:
        return f"{self._prefix}/snapshots/{group}/"

    def _flow_key(self, run: str) -> str:
        return f"{self._prefix}/runs/{encode_part(run.partition('/')[0], 'flow')}/"

    def _run_key(self, run: str, name: str) -> str:
        return f"{self._flow_key(run)}{encode_part(run.partition('/')[2], 'run')}/{name}"
