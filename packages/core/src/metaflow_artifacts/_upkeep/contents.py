"""`check --read`: every chunk that a manifest names exists, has its size, and has its content.

In two stages, as a gc: stage 1 reads the manifests, stage 2 takes the chunks of one prefix after the other. Only if
chunks are missing or damaged, the manifests are read again, to find out which artifacts need them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Literal

from metaflow_artifacts._format.manifest import Chunk
from metaflow_artifacts._storage import ObjectInfo, Storage
from metaflow_artifacts._store.store import Store
from metaflow_artifacts._transfer.chunks import READ_BYTES, chunk_key, read_chunk
from metaflow_artifacts._transfer.current_engine import engine
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.threads import ordered
from metaflow_artifacts._transfer.width import width_of
from metaflow_artifacts._upkeep.foreign_check import check_foreign
from metaflow_artifacts._upkeep.manifests import read_manifests
from metaflow_artifacts._upkeep.named import PREFIXES, NamedChunks
from metaflow_artifacts._upkeep.report import CheckReport, Problem, notes_on
from metaflow_artifacts._upkeep.survey import Strays, artifact_objects, chunk_objects, outlines
from metaflow_artifacts.errors import ArtifactNotFound, CorruptArtifact

__all__ = ["Checked", "Damage", "check_contents", "check_prefixes", "hash_chunks", "judge", "problems_of", "still"]


@dataclass(frozen=True)
class Damage:
    """A chunk that a manifest names and that is not as it should be."""

    sha256: str
    """The digest in its name, in hex."""
    kind: Literal["missing", "size", "content"]
    """It does not exist, has another size, or has other content."""
    detail: str
    """What was found, and what to do about it; one line."""


@dataclass(frozen=True)
class Checked:
    """The result of checking the chunks of some prefixes."""

    chunks: int
    """Distinct chunks that manifests name."""
    stored: int
    """Bytes of these chunks, each counted once."""
    read: int
    """Bytes of chunks that were read and hashed."""
    damages: tuple[Damage, ...]


def check_contents(store: Store, progress: Progress) -> CheckReport:
    """Check the whole store, and read and hash every chunk that a manifest names. Raises StorageError."""
    strays = Strays(store.storage)
    named = NamedChunks()
    seen = read_manifests(store, strays, named, whole=True, progress=progress)
    checked = check_prefixes(store.storage, named.of, None, progress)
    problems = problems_of(store, checked.damages, strays)
    foreign, others = check_foreign(store.storage, strays, None, read=True)
    notes = notes_on(store.storage, strays)
    return CheckReport(
        artifacts=seen.artifacts,
        files=seen.files,
        size=seen.size,
        chunks=checked.chunks,
        stored=checked.stored,
        read=checked.read,
        foreign=foreign,
        problems=(*seen.problems, *problems, *others),
        notes=notes,
    )


def check_prefixes(
    storage: Storage, named: Callable[[str], dict[bytes, int]], prefixes: Sequence[str] | None, progress: Progress
) -> Checked:
    """Check and read the chunks that manifests name of some prefixes (all, by one listing, if None).

    `named` gives the chunks of a prefix, each with its size. Raises StorageError.
    """
    damages: dict[str, Damage] = {}
    chunks = stored = sound = 0
    for prefix, there in _stored(storage, prefixes):
        wanted = named(prefix)
        chunks += len(wanted)
        size = sum(wanted.values())
        stored += size
        sound += size
        # A chunk may be newer than the listing.
        unknown = [Chunk(digest.hex(), size) for digest, size in wanted.items() if there.get(digest) != size]
        infos = ordered(storage, lambda chunk: storage.stat(chunk_key(chunk.sha256)), unknown)
        for chunk, info in zip(unknown, infos, strict=True):
            if damage := judge(storage, chunk, info):
                damages[chunk.sha256] = damage
                sound -= chunk.size
    progress.start(sound)
    read, changed = hash_chunks(storage, _sound(named, prefixes, damages), progress)
    return Checked(chunks, stored, read, (*damages.values(), *changed))


def _stored(storage: Storage, prefixes: Sequence[str] | None) -> Iterator[tuple[str, dict[bytes, int]]]:
    """The chunks in the store by prefix, with their sizes; each prefix once."""
    left = dict.fromkeys(PREFIXES if prefixes is None else prefixes)
    if prefixes is None:
        for number, group in groupby(chunk_objects(storage), lambda found: found[1][0]):
            there = {digest: info.size for info, digest in group}
            # If a listing comes back to a prefix, its other chunks are asked for one by one.
            if PREFIXES[number] in left:
                del left[PREFIXES[number]]
                yield PREFIXES[number], there
    for prefix in left:
        yield prefix, {} if prefixes is None else {digest: info.size for info, digest in chunk_objects(storage, prefix)}


def _sound(
    named: Callable[[str], dict[bytes, int]], prefixes: Sequence[str] | None, damages: dict[str, Damage]
) -> Iterator[Chunk]:
    for prefix in PREFIXES if prefixes is None else prefixes:
        for digest, size in named(prefix).items():
            if (sha256 := digest.hex()) not in damages:
                yield Chunk(sha256, size)


def judge(storage: Storage, chunk: Chunk, info: ObjectInfo | None) -> Damage | None:
    """What is wrong with a chunk, by what the storage says about it; None if nothing is."""
    url = storage.url(chunk_key(chunk.sha256))
    if info is None:
        detail = f"{url} does not exist; restore it or save the same content again"
        return Damage(chunk.sha256, "missing", detail)
    if info.size != chunk.size:
        detail = f"{url} has {info.size} bytes instead of {chunk.size}; restore it or save the same content again"
        return Damage(chunk.sha256, "size", detail)
    return None


def hash_chunks(storage: Storage, chunks: Iterable[Chunk], progress: Progress) -> tuple[int, list[Damage]]:
    """Read and hash chunks: the bytes that were read, and what is wrong with them. Raises StorageError."""
    width = width_of(storage, "load")
    lock = threading.Lock()
    damages: list[Damage] = []
    read = 0

    def one(chunk: Chunk) -> None:
        nonlocal read
        damage = None
        try:
            read_chunk(storage, chunk, lambda block: width.moved(len(block)), lambda: None)
        except CorruptArtifact as error:
            # A gc may have removed it since it was looked at.
            kind: Literal["missing", "content"] = (
                "missing" if isinstance(error.__cause__, ArtifactNotFound) else "content"
            )
            damage = Damage(chunk.sha256, kind, str(error))
        with lock:
            read += chunk.size
            if damage is not None:
                damages.append(damage)
        progress.add(chunk.size)

    engine().run(((READ_BYTES, partial(one, chunk)) for chunk in chunks), width)
    return read, damages


def problems_of(store: Store, damages: Iterable[Damage], strays: Strays) -> list[Problem]:
    """The first artifact that needs each of the damaged chunks; none for a chunk that no artifact needs any more.

    If there are any, the manifests are read. Raises StorageError.
    """
    left = {damage.sha256: damage for damage in damages}
    problems: list[Problem] = []
    if not left:
        return problems
    for info, outline in outlines(store, artifact_objects(store.storage), strays):
        if outline is None or isinstance(outline, CorruptArtifact):
            continue
        for chunk in dict.fromkeys(outline.chunks):
            damage = left.get(chunk.sha256)
            if damage is not None and (found := still(store.storage, chunk, damage)) is not None:
                # It may have been deleted, and its content removed by gc, since it was listed. That is no fault.
                if store.storage.stat(info.key) is None:
                    break
                del left[chunk.sha256]
                problems.append(Problem(info.key, found.kind, found.detail, chunk_key(chunk.sha256)))
    return problems


def still(storage: Storage, chunk: Chunk, damage: Damage) -> Damage | None:
    """The damage that a chunk has now: what was missing may have been saved again."""
    if damage.kind == "content":
        return damage
    return judge(storage, chunk, storage.stat(chunk_key(chunk.sha256)))
