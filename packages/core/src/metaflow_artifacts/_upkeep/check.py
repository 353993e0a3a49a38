"""Checks that a store is whole: every manifest can be read, and every chunk that it names exists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from metaflow_artifacts._format.foreign import ForeignArtifact, json_key
from metaflow_artifacts._format.manifest import Chunk, Manifest
from metaflow_artifacts._format.tar import BLOCK, is_tar
from metaflow_artifacts._storage import ObjectInfo, Storage
from metaflow_artifacts._store.foreign import find, foreign_problem, read_foreign
from metaflow_artifacts._store.references import key_of
from metaflow_artifacts._store.store import Store
from metaflow_artifacts._transfer.chunks import READ_BYTES, chunk_key, read_chunk
from metaflow_artifacts._transfer.engine import engine
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.threads import ordered
from metaflow_artifacts._transfer.width import width_of
from metaflow_artifacts._upkeep.needs import SHOWN, reserved_objects, unknown_needs
from metaflow_artifacts._upkeep.survey import Strays, artifact_objects, manifests, stored_chunks
from metaflow_artifacts.errors import ArtifactNotFound, CorruptArtifact

__all__ = ["CheckReport", "Note", "Problem", "check"]


@dataclass(frozen=True)
class Problem:
    """One fault of an artifact."""

    key: str
    """Key of the artifact."""
    kind: Literal["manifest", "missing", "size", "content"]
    """Its manifest cannot be read; a chunk does not exist, has another size, or has other content."""
    detail: str
    """What was found, and what to do about it; one line."""
    chunk: str | None = None
    """Storage key of the chunk."""


@dataclass(frozen=True)
class Note:
    """Something that this version does not understand. It is not damage, but `gc` and `retain` refuse to run."""

    kind: Literal["need", "stray"]
    """`need`: the store has a need of a later version, or objects of one. `stray`: objects that are no artifacts are
    among the artifacts."""
    keys: tuple[str, ...]
    """Storage keys of the first ten objects."""
    count: int
    """How many there are."""
    detail: str
    """What was found, and what to do about it; one line."""


@dataclass(frozen=True)
class CheckReport:
    """The result of `check`."""

    artifacts: int
    """Manifests that were read."""
    files: int
    """Files in them."""
    size: int
    """Bytes of content in them."""
    chunks: int
    """Distinct chunks that they name."""
    stored: int
    """Bytes of these chunks, each counted once."""
    read: int
    """Bytes of chunks that were read and hashed."""
    foreign: int
    """Artifacts of metaflow-checkpoint that were found. They have no digests: their sizes were checked, and with `read`
    the headers of tars."""
    problems: tuple[Problem, ...]
    notes: tuple[Note, ...]
    """What is not understood; only if the whole store was checked."""

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged. Notes do not count."""
        return not self.problems


def check(
    store: Store,
    keys: Iterable[str] | None = None,
    *,
    read: bool = False,
    progress: Progress | None = None,
) -> CheckReport:
    """Check the artifacts at `keys`, or the whole store.

    Every manifest must parse, and every chunk must exist with its size. With `read`, each chunk is also read and
    hashed, once. Damage is reported, not raised. If the whole store is checked, objects that are not understood are
    reported too. Saves, deletes and gc may run at the same time. Raises InvalidReference for a malformed key among
    `keys`, ArtifactNotFound if nothing is stored at one of them, StorageError if the storage fails or contains a link
    that leads nowhere.
    """
    return _Check(store, progress or Progress()).run(None if keys is None else [key_of(key) for key in keys], read)


class _Check:
    def __init__(self, store: Store, transfer: Progress) -> None:
        self.store = store
        self.transfer = transfer
        self.strays = Strays(store.storage)
        self.problems: list[Problem] = []
        self.named: dict[bytes, tuple[int, str]] = {}
        self.artifacts = self.files = self.size = self.read = 0

    def run(self, keys: list[str] | None, read: bool) -> CheckReport:
        # A chunk that is newer than this listing is asked for later.
        stored = stored_chunks(self.store.storage) if keys is None else {}
        wanted: Iterable[ObjectInfo] = artifact_objects(self.store.storage, strays=self.strays)
        foreign = None
        if keys is not None:
            foreign = [found for key in keys if (found := self._foreign(key)) is not None]
            others = {found.key for found in foreign}
            wanted = [self._existing(key) for key in keys if key not in others]
        for info, manifest in manifests(self.store, wanted, self.strays, self.transfer):
            if isinstance(manifest, CorruptArtifact):
                self._report(info.key, "manifest", str(manifest))
            elif manifest is not None:
                self._manifest(info.key, manifest, stored)
        count = self._check_foreign(foreign, read)
        if read:
            self._read()
        notes = _notes(self.store.storage, self.strays) if keys is None else ()
        return CheckReport(
            artifacts=self.artifacts,
            files=self.files,
            size=self.size,
            chunks=len(self.named),
            stored=sum(size for size, _ in self.named.values()),
            read=self.read,
            foreign=count,
            problems=tuple(self.problems),
            notes=notes,
        )

    def _foreign(self, key: str) -> ForeignArtifact | None:
        """The artifact of metaflow-checkpoint at a key; None if it is one of these packages, or there is none."""
        return None if self._is_own(key) else find(self.store.storage, key)

    def _is_own(self, key: str) -> bool:
        """Whether an object is at a key that is no tar: a manifest, maybe a damaged one."""
        try:
            return not is_tar(self.store.storage.get(key, 0, BLOCK))
        except ArtifactNotFound:
            return False

    def _check_foreign(self, wanted: Sequence[ForeignArtifact] | None, read: bool) -> int:
        """Check artifacts of metaflow-checkpoint, or all of them. Returns how many there are."""
        storage = self.store.storage
        found: Iterable[tuple[str, ForeignArtifact | CorruptArtifact]]
        if wanted is None:
            found = read_foreign(storage, self.strays.foreign.keys())
        else:
            found = [(one.key, one) for one in wanted]

        def check_one(item: tuple[str, ForeignArtifact | CorruptArtifact]) -> None:
            key, one = item
            problem = str(one) if isinstance(one, CorruptArtifact) else foreign_problem(storage, one, read=read)
            # It may have been deleted since it was listed; and JSON beside a manifest of ours means nothing.
            if problem is not None and storage.stat(json_key(key)) is not None and not self._is_own(key):
                kind: Literal["manifest", "content"] = "manifest" if isinstance(one, CorruptArtifact) else "content"
                self.problems.append(Problem(key, kind, problem))

        return sum(1 for _ in ordered(storage, check_one, found))

    def _existing(self, key: str) -> ObjectInfo:
        info = self.store.storage.stat(key)
        if info is None:
            raise ArtifactNotFound(f"nothing is stored at {self.store.storage.url(key)}: it was deleted or never saved")
        return info

    def _manifest(self, key: str, manifest: Manifest, stored: dict[bytes, int]) -> None:
        self.artifacts += 1
        self.files += len(manifest.files)
        self.size += manifest.size
        unknown = []
        for chunk in dict.fromkeys(manifest.chunks):
            digest = bytes.fromhex(chunk.sha256)
            if stored.get(digest) != chunk.size and digest not in self.named:
                unknown.append(chunk)
            self.named.setdefault(digest, (chunk.size, key))
        for chunk, info in zip(unknown, ordered(self.store.storage, self._look, unknown), strict=True):
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

        width = width_of(self.store.storage, "load")

        def hash_chunk(chunk: Chunk, key: str) -> None:
            try:
                read_chunk(self.store.storage, chunk, lambda block: width.moved(len(block)), lambda: None)
            except CorruptArtifact as error:
                self._report(key, "content", str(error), chunk)
            self.transfer.add(chunk.size)
            self.read += chunk.size

        engine().run(((READ_BYTES, partial(hash_chunk, chunk, key)) for chunk, key in wanted), width)

    def _report(
        self, key: str, kind: Literal["manifest", "missing", "size", "content"], detail: str, chunk: Chunk | None = None
    ) -> None:
        # It may have been deleted, and its content removed by gc, since it was listed. That is no fault.
        if self.store.storage.stat(key) is not None:
            self.problems.append(Problem(key, kind, detail, None if chunk is None else chunk_key(chunk.sha256)))


def _notes(storage: Storage, strays: Strays) -> tuple[Note, ...]:
    notes = [Note("need", (need.key,), 1, f"the store uses {need}; upgrade") for need in unknown_needs(storage)]
    if reserved := [info.key for info in reserved_objects(storage)]:
        detail = "objects of a later version; upgrade metaflow-artifacts"
        notes.append(Note("need", tuple(reserved[:SHOWN]), len(reserved), detail))
    if left := [info.key for info in strays.left()]:
        detail = "not understood, so gc and retain refuse to run; move them away, or pass --ignore to those"
        notes.append(Note("stray", tuple(left[:SHOWN]), len(left), detail))
    return tuple(notes)
