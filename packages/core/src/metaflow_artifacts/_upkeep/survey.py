"""Listings of a whole store: its artifacts, its chunks, and objects among them that are not understood."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from metaflow_artifacts._format.manifest import FORMAT, Head, Manifest, Outline
from metaflow_artifacts._layout import ARTIFACT_PREFIXES, CHUNKS
from metaflow_artifacts._storage.base import ObjectInfo, Storage
from metaflow_artifacts._store.listing import artifacts, read_listed
from metaflow_artifacts._store.store import Store
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.threads import ordered
from metaflow_artifacts._upkeep.foreign import ForeignArtifacts
from metaflow_artifacts._upkeep.needs import SHOWN, listed
from metaflow_artifacts.errors import ArtifactNotFound, CorruptArtifact, InvalidInput, StorageError

__all__ = [
    "Strays",
    "artifact_objects",
    "chunk_objects",
    "heads",
    "manifests",
    "outlines",
    "stored_chunks",
]

_T = TypeVar("_T")

_CHUNK_NAME = re.compile("[0-9a-f]{2}/[0-9a-f]{62}")
_LARGE = 1 << 20
"""Bytes of an object from which it is first checked whether it is a tar of metaflow-checkpoint. Most manifests are
smaller, and a tar must not be read whole only to find that it is not a manifest."""
_MANIFESTS = 8
"""How many whole manifests are read at once: each may need much memory."""
_ALONE, _TOGETHER = 128, 8
"""How many heads on a server are read with a call for each; and how many with each later call."""
_BEGINNING = f'{{"format":"{FORMAT}"'.encode()


class Strays:
    """Objects below the artifacts' prefixes that are not understood. Each of them may need any chunk.

    These are left out: objects of metaflow-checkpoint (`foreign`); objects below an ignored prefix; names with a part
    that begins with a dot (`.DS_Store`, `.nfs0001`; our keys have no such part); and empty objects at keys that are not
    ours (some storages list a folder as an empty object).
    """

    def __init__(self, storage: Storage, ignore: Sequence[str] = ()) -> None:
        """Raises InvalidInput for an ignored prefix that does not lie below an artifacts' prefix."""
        for prefix in ignore:
            if not prefix.startswith(ARTIFACT_PREFIXES):
                raise InvalidInput(
                    f"cannot ignore {prefix!r}: expected a key, or the first parts of one, below "
                    f"{', '.join(ARTIFACT_PREFIXES)}"
                )
        self.storage = storage
        self.foreign = ForeignArtifacts(storage)
        self._ignore = tuple(prefix.rstrip("/") for prefix in ignore)
        self._found: list[ObjectInfo] = []

    def add(self, info: ObjectInfo) -> None:
        """Add an object whose key cannot be parsed, unless it is to be left out. Raises StorageError."""
        harmless = info.size == 0 or any(part.startswith(".") for part in info.key.split("/"))
        if not harmless and not self.ignores(info.key) and self.foreign.owner(info.key) is None:
            self._found.append(info)

    def ignores(self, key: str) -> bool:
        """Whether a key is one of the ignored prefixes, or is below one."""
        return any(key == prefix or key.startswith(prefix + "/") for prefix in self._ignore)

    def left(self) -> list[ObjectInfo]:
        """The objects that are not understood and still exist, ordered by key. Raises StorageError."""
        if self._found:
            # metaflow-checkpoint may have saved or deleted something since it was listed.
            self.foreign.look_again()
            self._found = [info for info in self._found if self.foreign.owner(info.key) is None]
        if len(self._found) <= SHOWN:
            self._found = [info for info in self._found if self.storage.stat(info.key) is not None]
        return sorted(self._found, key=lambda info: info.key)

    def refuse(self) -> None:
        """Raise StorageError if `left` returns any."""
        if left := self.left():
            objects = f"{len(left)} objects are" if len(left) > 1 else "1 object is"
            raise StorageError(
                f"nothing was removed: below the artifacts of {self.storage.root} {objects} not understood and may "
                f"need any content: {listed([info.key for info in left])}; upgrade metaflow-artifacts if a later "
                f"version wrote them, move them away, or pass ignore (--ignore PREFIX) for objects of other programs"
            )


def artifact_objects(
    storage: Storage, prefixes: Iterable[str] = ARTIFACT_PREFIXES, strays: Strays | None = None
) -> Iterator[ObjectInfo]:
    """The objects at the keys of artifacts; all other objects below the same prefixes are added to `strays`."""
    for prefix in prefixes:
        for _, info in artifacts(storage.list(prefix), strays.add if strays is not None else None):
            yield info


def stored_chunks(storage: Storage) -> dict[bytes, int]:
    """Size in bytes of every chunk in the store, by its digest."""
    return {digest: info.size for info, digest in chunk_objects(storage)}


def chunk_objects(storage: Storage, prefix: str = "") -> Iterator[tuple[ObjectInfo, bytes]]:
    """Every chunk in the store with its digest; other objects among the chunks are left out.

    With `prefix`, only those whose names begin with these two hex digits.
    """
    for info in storage.list(CHUNKS + prefix + "/" * bool(prefix)):
        name = info.key[len(CHUNKS) :]
        if _CHUNK_NAME.fullmatch(name):
            yield info, bytes.fromhex(name[:2] + name[3:])


def manifests(
    store: Store, objects: Iterable[ObjectInfo], strays: Strays | None = None, progress: Progress | None = None
) -> Iterator[tuple[ObjectInfo, Manifest | CorruptArtifact | None]]:
    """Read the manifests at `objects`, several at once: for each the manifest, its damage, or None if it was deleted
    since the listing.

    Objects of metaflow-checkpoint are left out, and so are objects that `strays` ignores and that do not begin like a
    manifest. `progress` counts what was read.
    """

    def read(key: str) -> Manifest:
        return store.manifest_and_bytes(key)[0]

    return _read(store, objects, strays or Strays(store.storage), progress, read, _MANIFESTS)


def outlines(
    store: Store, objects: Iterable[ObjectInfo], strays: Strays | None = None, progress: Progress | None = None
) -> Iterator[tuple[ObjectInfo, Outline | CorruptArtifact | None]]:
    """As `manifests`, without the rows of files, which are not read."""
    return _read(store, objects, strays or Strays(store.storage), progress, store.outline_at)


def heads(
    store: Store, objects: Iterable[ObjectInfo], strays: Strays | None = None, progress: Progress | None = None
) -> Iterator[tuple[ObjectInfo, Head | CorruptArtifact | None]]:
    """As `manifests`, with only the head of each, if that is undamaged."""
    return _read(store, objects, strays or Strays(store.storage), progress, store.head_at)


def _read(
    store: Store,
    objects: Iterable[ObjectInfo],
    strays: Strays,
    progress: Progress | None,
    read: Callable[[str], _T],
    most: int | None = None,
) -> Iterator[tuple[ObjectInfo, _T | CorruptArtifact | None]]:
    def one(info: ObjectInfo) -> tuple[ObjectInfo, _T | CorruptArtifact | None] | None:
        foreign = strays.foreign
        if (foreign.listed or info.size >= _LARGE) and foreign.is_tar(info.key, look=False):
            return None
        found = read_listed(read, info.key)
        if isinstance(found, CorruptArtifact) and (foreign.is_tar(info.key) or _is_ignored(strays, info.key)):
            return None
        return info, found

    def some(infos: Sequence[ObjectInfo]) -> list[tuple[ObjectInfo, _T | CorruptArtifact | None] | None]:
        return [one(info) for info in infos]

    alone = most is not None or not store.storage.stages_in_memory
    for batch in ordered(store.storage, some, _batches(objects, alone), most):
        for found in batch:
            if progress is not None:
                progress.read()
            if found is not None:
                yield found


def _batches(objects: Iterable[ObjectInfo], alone: bool) -> Iterator[Sequence[ObjectInfo]]:
    """The objects one by one, and unless `alone` later ones together: to hand over a call costs a third of a read."""
    remaining = iter(objects)
    for info in remaining if alone else islice(remaining, _ALONE):
        yield (info,)
    while batch := tuple(islice(remaining, _TOGETHER)):
        yield batch


def _is_ignored(strays: Strays, key: str) -> bool:
    if not strays.ignores(key):
        return False
    try:
        # A damaged manifest is never ignored: it may need any chunk.
        return strays.storage.get(key, 0, len(_BEGINNING)) != _BEGINNING
    except ArtifactNotFound:
        return True
