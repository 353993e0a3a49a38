"""What manifests name, and what gc finds, kept on disk if it is much: the same as in memory."""

from __future__ import annotations

import os
import pickle
import random
import tempfile
from pathlib import Path

import pytest
from faultlib.watched import Watched

from metaflow_artifacts import Chunk, ObjectInfo, StorageError, Store, open_storage
from metaflow_artifacts._layout import CHUNKS
from metaflow_artifacts._transfer.chunks import chunk_key, put_chunk
from metaflow_artifacts._upkeep.garbage import Garbage, find_garbage
from metaflow_artifacts._upkeep.named import PREFIXES, NamedChunks
from metaflow_artifacts._upkeep.spill import Spill


def named_chunks(number: int, seed: int = 0) -> list[Chunk]:
    choose = random.Random(seed)
    return [Chunk(choose.randbytes(32).hex(), choose.randrange(1, 1 << 62)) for _ in range(number)]


@pytest.mark.parametrize("held", [1, 100, 10_000], ids=["each two", "some", "nothing"])
def test_what_is_named_is_the_same_in_memory_and_on_disk(held: int) -> None:
    """`held` rows are held in memory; without slack, the file is written anew whenever it is twice as large."""
    chunks = named_chunks(2000)
    named = NamedChunks(held, slack=0)
    for start in range(0, 2000, 50):
        # Each chunk twice in its artifact, and in the next artifact too.
        named.add(chunks[start : start + 100] * 2)
    expected = {bytes.fromhex(chunk.sha256): chunk.size for chunk in chunks}
    found = [named.of(prefix) for prefix in PREFIXES]
    assert sum(map(len, found)) == 2000
    assert {digest: size for part in found for digest, size in part.items()} == expected
    assert all(digest.hex().startswith(prefix) for prefix, part in zip(PREFIXES, found, strict=True) for digest in part)


def test_the_file_stays_below_twice_what_is_distinct() -> None:
    chunks = named_chunks(1000)
    named = NamedChunks(held=500, slack=0)
    for _ in range(20):
        named.add(chunks)
        assert named._spill.size <= 2 * 40 * 1000 + 40 * 1000


def test_of_a_chunk_with_two_sizes_the_first_is_kept() -> None:
    named = NamedChunks(held=0)
    for size in (5, 6):
        named.add([Chunk("ab" * 32, size)])
    assert named.of("ab") == {b"\xab" * 32: 5}


def test_garbage_is_the_same_in_memory_and_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    infos = [ObjectInfo(chunk_key(chunk.sha256), chunk.size, 0.1 * n) for n, chunk in enumerate(named_chunks(5000))]
    garbage = Garbage()
    monkeypatch.setattr(garbage, "_rows", Spill(in_memory=1000))
    for info in infos:
        garbage.add(bytes.fromhex(info.key[len(CHUNKS) :].replace("/", "")), info)
    assert list(garbage) == infos
    assert (len(garbage), garbage.size) == (5000, sum(info.size for info in infos))
    assert (garbage[4321], garbage[-1], garbage[7:9]) == (infos[4321], infos[-1], tuple(infos[7:9]))
    assert pickle.loads(pickle.dumps(garbage)) == tuple(infos)
    with pytest.raises(IndexError):
        garbage[5000]


def test_a_full_disk_for_temporary_files_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match=f"{tempfile.gettempdir()}: No space left on device; .* TMPDIR"):
        NamedChunks(held=250_000).add(named_chunks(300_000))


def test_a_listing_in_any_order_finds_the_same_garbage(tmp_path: Path) -> None:
    """A storage may list the chunks of one prefix at several places of its listing."""
    storage = open_storage(tmp_path)
    stored = [put_chunk(storage, number.to_bytes(4, "big"))[0] for number in range(600)]
    named = NamedChunks()
    named.add(stored[::2])

    class Shuffled(Watched):
        def list(self, prefix: str):  # type: ignore[no-untyped-def]
            infos = list(super().list(prefix))
            random.Random(0).shuffle(infos)
            return iter(infos)

    for listed in (storage, Shuffled(storage, lambda operation, key: None)):
        found = find_garbage(listed, named.of, storage.now() + 60, storage.now() + 60)
        assert {info.key for info in found.garbage} == {chunk_key(chunk.sha256) for chunk in stored[1::2]}
        assert found.chunks == 600
    parts = [find_garbage(storage, named.of, storage.now(), 1e12, [prefix]) for prefix in PREFIXES]
    assert sum(len(part.garbage) for part in parts) == 300


def test_names_in_capitals_are_no_chunks(tmp_path: Path) -> None:
    store = Store(open_storage(tmp_path))
    for name in ("AB/" + "0" * 62, "ab/" + "A" * 62, "ab/" + "0" * 61 + " "):
        store.storage.put(CHUNKS + name, b"x")
    assert find_garbage(store.storage, NamedChunks().of, 1e12, 1e12).chunks == 0
