"""Loads from a damaged store, on each storage."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from faultlib.outcomes import RIGHT, Outcomes, content, failing, loading, told

from metaflow_artifacts import ArtifactError, Store
from metaflow_artifacts._format.manifest import decode_front
from metaflow_artifacts._transfer.chunks import chunk_key
from metaflow_artifacts._upkeep.check import check
from metaflow_artifacts._upkeep.gc import gc

CHUNK = 64 << 10
CHUNKS_SECTION = "chunks in the store"
MANIFESTS_SECTION = "manifests in the store"


@pytest.fixture(params=["local", "direct"])
def store(request: pytest.FixtureRequest) -> Store:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "weights.bin").write_bytes(os.urandom(4 * CHUNK + 5))
    (root / "sub" / "other.bin").write_bytes(os.urandom(2 * CHUNK))
    for number in range(20):
        (root / "sub" / f"{number}.txt").write_text(f"{number} " * number)
    return root


def chunk(store: Store, key: str, number: int) -> str:
    return chunk_key(store.manifest(key).chunks[number].sha256)


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Store, str], None]:
    return lambda store, name: store.storage.put(name, change(store.storage.get(name)))


@pytest.mark.parametrize(
    ("case", "damage"),
    [
        ("a flipped bit", rewrite(lambda data: flip(data, len(data) // 2))),
        ("truncated", rewrite(lambda data: data[:-1])),
        ("empty", rewrite(lambda data: b"")),
        ("longer by a byte", rewrite(lambda data: data + b"x")),
        ("missing", lambda store, name: store.storage.delete([name])),
    ],
)
def test_a_damaged_chunk_is_found_and_repaired(
    store: Store, tree: Path, tmp_path: Path, outcomes: Outcomes, case: str, damage: Callable[[Store, str], None]
) -> None:
    expected = content(tree)
    key = store.save_model(tree)["key"]
    name = chunk(store, key, 1)
    damage(store, name)
    outcomes.record(CHUNKS_SECTION, case, loading(store, key, tmp_path / "out", expected))
    size = store.manifest(key).chunks[1].size
    info = store.storage.stat(name)
    found = check(store, read=info is not None and info.size == size).problems
    assert [(problem.key, problem.chunk) for problem in found] == [(key, name)]
    if info is not None and info.size == size:
        # Only its content says that it is damaged: the error says to delete it first.
        store.storage.delete([name])
    again = store.save_model(tree)["key"]
    assert loading(store, key, tmp_path / "repaired", expected) == RIGHT
    assert loading(store, again, tmp_path / "again", expected) == RIGHT


def test_swapped_chunks_are_found(store: Store, tree: Path, tmp_path: Path, outcomes: Outcomes) -> None:
    key = store.save_model(tree)["key"]
    names = [chunk(store, key, 0), chunk(store, key, 1)]
    swapped = [store.storage.get(name) for name in reversed(names)]
    for name, data in zip(names, swapped, strict=True):
        store.storage.put(name, data)
    outcomes.record(CHUNKS_SECTION, "two swapped", loading(store, key, tmp_path / "out", content(tree)))


def test_only_the_damaged_file_of_a_chunk_cannot_be_read(store: Store, tree: Path, outcomes: Outcomes) -> None:
    """Reading one file fails where its own bytes are damaged, and only there."""
    key = store.save_model(tree)["key"]
    manifest = store.manifest(key)
    other = next(file for file in manifest.files if file.path == "sub/7.txt")
    ends = accumulate(row.size for row in manifest.chunks)
    number = next(number for number, end in enumerate(ends) if end > other.offset)
    rewrite(lambda data: flip(data, len(data) - 1))(store, chunk(store, key, number))
    broken = 0
    for file in manifest.files:
        if file.sha256 is None or not file.size:
            continue
        case = "a flipped bit in a packed file, another one read alone"
        try:
            assert store.read_file(key, file.path) == (tree / file.path).read_bytes()
            outcome = RIGHT
        except ArtifactError as error:
            case, outcome = "a flipped bit in a packed file, that one read alone", told(error, store, key)
            outcome = outcome.replace(file.path, "FILE")
            broken += 1
        outcomes.record(CHUNKS_SECTION, case, outcome)
    assert broken == 1


@pytest.mark.parametrize("small", [False, True], ids=["chunks", "inline"])
@pytest.mark.parametrize(
    ("case", "damage"),
    [
        ("cut in half", rewrite(lambda data: data[: len(data) // 2])),
        ("cut by its last byte", rewrite(lambda data: data[:-1])),
        ("empty", rewrite(lambda data: b"")),
        ("a flipped bit at its beginning", rewrite(lambda data: flip(data, 3))),
        ("a flipped bit in its head", rewrite(lambda data: flip(data, data.index(b'"label"') + 11))),
        ("a flipped bit in the middle", rewrite(lambda data: flip(data, len(data) // 2))),
        ("a flipped bit in its checksum", rewrite(lambda data: flip(data, len(data) - 10))),
        ("of a later version", rewrite(lambda data: data.replace(b'"version":1,', b'"version":2,'))),
        ("replaced by random bytes", rewrite(lambda data: b"\x93NUMPY" + os.urandom(300))),
        ("replaced by a tar", rewrite(lambda data: b"evil.txt".ljust(257, b"\0") + b"ustar\x0000" + bytes(9000))),
        ("replaced by other JSON", rewrite(lambda data: b'{"hello": "world"}')),
        ("missing", lambda store, name: store.storage.delete([name])),
    ],
)
def test_a_damaged_manifest_is_found_and_gc_removes_nothing(
    store: Store,
    tree: Path,
    tmp_path: Path,
    outcomes: Outcomes,
    case: str,
    damage: Callable[[Store, str], None],
    small: bool,
) -> None:
    source = tree / "sub" / "7.txt" if small else tree
    key = store.save_model(source)["key"]
    whole = store.storage.get(key)
    damage(store, key)
    outcome = failing(lambda: store.load(key, tmp_path / "out"), store, key)
    assert not (tmp_path / "out").exists()
    outcome = _without_details(outcome)
    outcomes.record(MANIFESTS_SECTION, case, outcome)
    if case != "missing":
        assert [problem.key for problem in check(store).problems] == [key]
        outcomes.record(MANIFESTS_SECTION, *_collected(store, key, whole))
        assert [problem.key for problem in check(store).problems] == [key]
        store.delete(key)
    again = store.save_model(source)["key"]
    expected: dict[bytes, Any] = {b"7.txt": source.read_bytes()} if small else content(tree)
    assert loading(store, again, tmp_path / "again", expected) == RIGHT
    assert check(store, read=True).ok


def _collected(store: Store, key: str, whole: bytes) -> tuple[str, str]:
    """A gc beside a damaged manifest removes nothing: it refuses, or the manifest still says what it needs."""
    before = {info.key for info in store.storage.list("")}
    front = decode_front(whole)
    assert front is not None
    end = front.chunks.stop
    if store.storage.get(key)[:end] == whole[:end]:
        case, outcome = "a gc, where head and chunks are whole", "what the artifact needs stays; `check` reports it"
        assert gc(store, grace=0, exclusive=True, dry_run=False).removed == 0
    else:
        case = "a gc, where head or chunks are damaged"
        outcome = failing(lambda: gc(store, grace=0, exclusive=True, dry_run=False), store, key)
        outcome = re.sub(r" \(KEY: .*\)$", " (…)", outcome)
    assert {info.key for info in store.storage.list("")} == before
    return case, outcome


def _without_details(outcome: str) -> str:
    return re.sub(r"(the manifest is damaged|not a manifest of these packages) \(.*\)", r"\1 (…)", outcome)


def test_the_manifest_of_another_artifact_is_refused(
    store: Store, tree: Path, tmp_path: Path, outcomes: Outcomes
) -> None:
    key, other = (store.save_model(tree, label)["key"] for label in ("one", "two"))
    store.storage.put(key, store.storage.get(other))
    outcome = failing(lambda: store.load(key, tmp_path / "out"), store, key)
    outcomes.record(MANIFESTS_SECTION, "replaced by that of another artifact", outcome)


def test_changed_content_of_a_small_artifact_is_found(local: Store, tmp_path: Path, outcomes: Outcomes) -> None:
    """The digest at the end of the manifest covers it."""
    (tmp_path / "file").write_bytes(b"content")
    key = local.save_model(tmp_path / "file")["key"]
    rewrite(lambda data: data.replace(b'"inline":"Y29udGVudA=="', b'"inline":"Y29udGVueA=="'))(local, key)
    outcome = failing(lambda: local.load(key, tmp_path / "out"), local, key)
    assert outcome.startswith("`CorruptArtifact`")
    outcomes.record(MANIFESTS_SECTION, "a flipped bit in its inline content", _without_details(outcome))
    assert [problem.kind for problem in check(local).problems] == ["manifest"]
