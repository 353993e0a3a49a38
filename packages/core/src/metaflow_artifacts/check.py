"""Whether a store is whole: every manifest is read, and every chunk it names is there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from metaflow_artifacts.chunks import CHUNKS, chunk_key, read_chunk
from metaflow_artifacts.errors import ArtifactNotFound, CorruptArtifact, InvalidReference
from metaflow_artifacts.keys import CHECKPOINTS, HUB, MODELS, parse_key
from metaflow_artifacts.manifest import Chunk, Manifest
from metaflow_artifacts.progress import Transfer
from metaflow_artifacts.storage import ObjectInfo, Storage
from metaflow_artifacts.store import Store, key_of
from metaflow_artifacts.threads import in_threads

__all__ = ["ARTIFACT_PREFIXES", "CheckReport", "Problem", "artifact_objects", "check", "manifests", "stored_chunks"]

ARTIFACT_PREFIXES = (
    f"{MODELS}/models/artifacts/",
    f"{CHECKPOINTS}/checkpoints/artifacts/",
    f"{HUB}/checkpoints/artifacts/",
)
"""Below these lie all manifests of a store."""

_CHUNK_DIGITS = 2 + 1 + 62


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with an artifact."""

    key: str
    """The artifact."""
    kind: Literal["manifest", "missing", "size", "content"]
    """Its manifest cannot be read; a chunk does not exist, has another size, or has other content."""
    detail: str
    """What was found, and what to do about it; one line."""
    chunk: str | None = None
    """Storage key of the chunk."""


@dataclass(frozen=True)
class CheckReport:
    """What `check` has seen."""

    artifacts: int
    """Manifests that were read."""
    files: int
    """Files in them."""
    size: int
    """Bytes of content in them."""
    chunks: int
    """Different chunks that they name."""
    stored: int
    """Bytes of these chunks, each counted once."""
    read: int
    """Bytes of chunks that were read and hashed."""
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def check(
    store: Store,
    keys: Iterable[str] | None = None,
    *,
    read: bool = False,
    progress: Transfer | None = None,
) -> CheckReport:
    """Check the artifacts at `keys`, or all of the store.

    Every manifest must parse, and every chunk exist with its size; with `read`, each chunk is also read and hashed,
    once. Damage is reported, not raised. Saves, deletes and gc may go on meanwhile. Raises InvalidReference for a
    malformed key among `keys`, ArtifactNotFound where nothing is stored at one, StorageError where the storage
    fails.
    """
    return _Check(store, progress or Transfer()).run(None if keys is None else [key_of(key) for key in keys], read)


class _Check:
    def __init__(self, store: Store, transfer: Transfer) -> None:
        self.store = store
        self.transfer = transfer
        self.problems: list[Problem] = []
        self.named: dict[bytes, tuple[int, str]] = {}
        self.artifacts = self.files = self.size = self.read = 0

    def run(self, keys: list[str] | None, read: bool) -> CheckReport:
        # A chunk that is newer than this listing is found by a look of its own.
        stored = stored_chunks(self.store.storage) if keys is None else {}
        wanted = artifact_objects(self.store.storage) if keys is None else [self._existing(key) for key in keys]
        with ThreadPoolExecutor(self.store.storage.threads) as pool:
            for info, manifest in manifests(self.store, wanted, pool):
                if isinstance(manifest, CorruptArtifact):
                    self._report(info.key, "manifest", str(manifest))
                elif manifest is not None:
                    self._manifest(info.key, manifest, stored, pool)
        if read:
            self._read()
        return CheckReport(
            artifacts=self.artifacts,
            files=self.files,
            size=self.size,
            chunks=len(self.named),
            stored=sum(size for size, _ in self.named.values()),
            read=self.read,
            problems=tuple(self.problems),
        )

    def _existing(self, key: str) -> ObjectInfo:
        info = self.store.storage.stat(key)
        if info is None:
            raise ArtifactNotFound(f"nothing is stored at {self.store.storage.url(key)}: it was deleted or never saved")
        return info

    def _manifest(self, key: str, manifest: Manifest, stored: dict[bytes, int], pool: ThreadPoolExecutor) -> None:
        self.artifacts += 1
        self.files += len(manifest.files)
        self.size += manifest.size
        unknown = []
        for chunk in dict.fromkeys(manifest.chunks):
            digest = bytes.fromhex(chunk.sha256)
            if stored.get(digest) != chunk.size and digest not in self.named:
                unknown.append(chunk)
            self.named.setdefault(digest, (chunk.size, key))
        for chunk, info in zip(unknown, pool.map(self._look, unknown), strict=True):
            self._judge(key, chunk, info)

    def _look(self, chunk: Chunk) -> ObjectInfo | None:
        return self.store.storage.stat(chunk_key(chunk.sha256))

    def _judge(self, key: str, chunk: Chunk, info: ObjectInfo | None) -> None:
        url = self.store.storage.url(chunk_key(chunk.sha256))
        if info is None:
            self._report(key, "missing", f"{url} does not exist; restore it or save the same content again", chunk)
        elif info.size != chunk.size:
            detail = f"{url} has {info.size} bytes instead of {chunk.size}; restore it or save the same content again"
            self._report(key, "size", detail, chunk)

    def _read(self) -> None:
        bad = {problem.chunk for problem in self.problems}
        wanted = [
            (Chunk(digest.hex(), size), key)
            for digest, (size, key) in self.named.items()
            if chunk_key(digest.hex()) not in bad
        ]
        self.transfer.start(sum(chunk.size for chunk, _ in wanted))

        def hash_chunk(chunk: Chunk, key: str) -> None:
            try:
                read_chunk(self.store.storage, chunk, lambda block: None, lambda: None)
            except CorruptArtifact as error:
                self._report(key, "content", str(error), chunk)
            self.transfer.add(chunk.size)
            self.read += chunk.size

        in_threads(
            self.store.storage.threads,
            (lambda chunk=chunk, key=key: hash_chunk(chunk, key) for chunk, key in wanted),  # type: ignore[misc]
        )

    def _report(
        self, key: str, kind: Literal["manifest", "missing", "size", "content"], detail: str, chunk: Chunk | None = None
    ) -> None:
        # It may have been deleted, and its content collected, since it was listed: then nothing is wrong.
        if self.store.storage.stat(key) is not None:
            self.problems.append(Problem(key, kind, detail, None if chunk is None else chunk_key(chunk.sha256)))


def artifact_objects(storage: Storage, prefixes: Iterable[str] = ARTIFACT_PREFIXES) -> Iterator[ObjectInfo]:
    """The objects at the keys of artifacts; what others keep below the same prefixes is left out."""
    for prefix in prefixes:
        for info in storage.list(prefix):
            try:
                parse_key(info.key)
            except InvalidReference:
                continue
            yield info


def stored_chunks(storage: Storage) -> dict[bytes, int]:
    """Size in bytes of every chunk in the store, by its digest."""
    return {digest: info.size for info, digest in chunk_objects(storage)}


def chunk_objects(storage: Storage) -> Iterator[tuple[ObjectInfo, bytes]]:
    """Every chunk in the store with its digest; what else lies there is left out."""
    for info in storage.list(CHUNKS):
        name = info.key[len(CHUNKS) :]
        if len(name) == _CHUNK_DIGITS and name[2] == "/":
            try:
                yield info, bytes.fromhex(name[:2] + name[3:])
            except ValueError:
                continue


def manifests(
    store: Store, objects: Iterable[ObjectInfo], pool: ThreadPoolExecutor
) -> Iterator[tuple[ObjectInfo, Manifest | CorruptArtifact | None]]:
    """Read the manifests at `objects`, several at once, few ahead: each one, the damage that was found instead, or
    None where it was deleted since it was listed."""

    def read(info: ObjectInfo) -> tuple[ObjectInfo, Manifest | CorruptArtifact | None]:
        try:
            return info, store.manifest(info.key)
        except ArtifactNotFound:
            return info, None
        except CorruptArtifact as error:
            return info, error

    ahead: list[ObjectInfo] = []
    for info in objects:
        ahead.append(info)
        if len(ahead) == 2 * store.storage.threads:
            yield from pool.map(read, ahead)
            ahead = []
    yield from pool.map(read, ahead)
