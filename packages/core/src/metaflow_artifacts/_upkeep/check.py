"""Checks that a store is whole: every manifest can be read, and every chunk that it names exists."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from metaflow_artifacts._format.foreign import ForeignArtifact
from metaflow_artifacts._format.manifest import Chunk, Manifest
from metaflow_artifacts._storage import ObjectInfo
from metaflow_artifacts._store.foreign import find
from metaflow_artifacts._store.references import key_of
from metaflow_artifacts._store.store import Store
from metaflow_artifacts._transfer.chunks import chunk_key
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.threads import ordered
from metaflow_artifacts._upkeep.contents import check_contents, hash_chunks, judge, still
from metaflow_artifacts._upkeep.foreign_check import check_foreign, is_own
from metaflow_artifacts._upkeep.report import CheckReport, Note, Problem, notes_on
from metaflow_artifacts._upkeep.survey import Strays, artifact_objects, manifests, stored_chunks
from metaflow_artifacts.errors import ArtifactNotFound, CorruptArtifact

__all__ = ["CheckReport", "Note", "Problem", "check"]


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
    reported too. Saves, deletes and gc may run at the same time. `progress` counts what is read.

    Raises InvalidReference for a malformed key among `keys`, ArtifactNotFound if nothing is stored at one of them,
    StorageError if the storage fails or contains a link that leads nowhere.
    """
    if read and keys is None:
        return check_contents(store, progress or Progress())
    return _Check(store, progress or Progress()).run(None if keys is None else [key_of(key) for key in keys], read)


class _Check:
    def __init__(self, store: Store, transfer: Progress) -> None:
        self.store = store
        self.transfer = transfer
        self.strays = Strays(store.storage)
        self.problems: list[Problem] = []
        self.named: dict[bytes, int] = {}
        self.needed_by: dict[bytes, list[str]] = {}
        """The artifacts that need each chunk, if chunks are to be read."""
        self.unreported: set[bytes] = set()
        """Damaged chunks of artifacts that were deleted meanwhile. Another one may need them."""
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
                if read:
                    for digest in {bytes.fromhex(chunk.sha256) for chunk in manifest.chunks}:
                        self.needed_by.setdefault(digest, []).append(info.key)
        count, problems = check_foreign(self.store.storage, self.strays, foreign, read=read)
        self.problems += problems
        if read:
            self._read()
        notes = notes_on(self.store.storage, self.strays) if keys is None else ()
        return CheckReport(
            artifacts=self.artifacts,
            files=self.files,
            size=self.size,
            chunks=len(self.named),
            stored=sum(self.named.values()),
            read=self.read,
            foreign=count,
            problems=tuple(self.problems),
            notes=notes,
        )

    def _foreign(self, key: str) -> ForeignArtifact | None:
        """The artifact of metaflow-checkpoint at a key; None if it is one of these packages, or there is none."""
        return None if is_own(self.store.storage, key) else find(self.store.storage, key)

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
            if stored.get(digest) != chunk.size and (digest not in self.named or digest in self.unreported):
                unknown.append(chunk)
            self.named.setdefault(digest, chunk.size)
        for chunk, info in zip(unknown, ordered(self.store.storage, self._look, unknown), strict=True):
            self._judge(key, chunk, info)

    def _look(self, chunk: Chunk) -> ObjectInfo | None:
        return self.store.storage.stat(chunk_key(chunk.sha256))

    def _judge(self, key: str, chunk: Chunk, info: ObjectInfo | None) -> None:
        digest = bytes.fromhex(chunk.sha256)
        self.unreported.discard(digest)
        damage = judge(self.store.storage, chunk, info)
        if damage and not self._report(key, damage.kind, damage.detail, chunk):
            self.unreported.add(digest)

    def _read(self) -> None:
        bad = {problem.chunk for problem in self.problems}
        chunks = [Chunk(digest.hex(), size) for digest, size in self.named.items()]
        wanted = [chunk for chunk in chunks if chunk_key(chunk.sha256) not in bad]
        self.transfer.start(sum(chunk.size for chunk in wanted))
        self.read, damages = hash_chunks(self.store.storage, wanted, self.transfer)
        for damage in damages:
            digest = bytes.fromhex(damage.sha256)
            chunk = Chunk(damage.sha256, self.named[digest])
            if found := still(self.store.storage, chunk, damage):
                any(self._report(key, found.kind, found.detail, chunk) for key in self.needed_by[digest])

    def _report(
        self, key: str, kind: Literal["manifest", "missing", "size", "content"], detail: str, chunk: Chunk | None = None
    ) -> bool:
        """Whether there is such a problem."""
        # It may have been deleted, and its content removed by gc, since it was listed. That is no fault.
        if self.store.storage.stat(key) is None:
            return False
        self.problems.append(Problem(key, kind, detail, None if chunk is None else chunk_key(chunk.sha256)))
        return True
