"""Saves of a mapping: contents in memory beside files and directories."""

from __future__ import annotations

import array
import os
from pathlib import Path
from typing import Any

import pytest

from metaflow_artifacts import InvalidInput, SourceError, Store
from metaflow_artifacts._transfer.content import source_of

CHUNK = 64 << 10  # of the fixture `store`


def loaded(store: Store, reference: Any, tmp_path: Path) -> dict[str, bytes]:
    target = Path(store.load(reference, tmp_path / "loaded"))
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


@pytest.mark.parametrize("size", [0, 1, 1000, 3 * CHUNK + 7, 10 * CHUNK])
def test_contents_and_paths_come_back(store: Store, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    tree = tmp_path / "tree"
    (tree / "a").mkdir(parents=True)
    (tree / "a" / "b.bin").write_bytes(data[::-1])
    given: dict[str, Any] = {
        "state.json": b"{}",
        "weights/0.bin": data,
        "weights/1.bin": bytearray(data),
        "weights/view": memoryview(data)[1:],
        "every second": memoryview(data)[::2],
        "numbers": array.array("d", [1.5, 2.5]),
        "file": tree / "a" / "b.bin",
        "tree": str(tree),
    }
    reference = store.save_model(given)
    assert loaded(store, reference, tmp_path) == {
        "state.json": b"{}",
        "weights/0.bin": data,
        "weights/1.bin": data,
        "weights/view": data[1:],
        "every second": data[::2],
        "numbers": array.array("d", [1.5, 2.5]).tobytes(),
        "file": data[::-1],
        "tree/a/b.bin": data[::-1],
    }
    # Equal content has equal chunks, whether it comes from memory or from a disk.
    target = Path(store.load(reference, tmp_path / "once more"))
    again = store.manifest(store.save_model(target))
    assert {chunk.sha256 for chunk in again.chunks} == {chunk.sha256 for chunk in store.manifest(reference).chunks}


def test_nothing_at_all(store: Store, tmp_path: Path) -> None:
    assert loaded(store, store.save_model({}), tmp_path) == {}


def test_bytes_are_kept_and_what_can_be_written_to_is_copied() -> None:
    fixed, changing = b"a" * 100, bytearray(b"a" * 100)
    files = source_of({"0": fixed, "1": changing, "2": memoryview(changing).toreadonly()}).files
    changing[0] = 0
    contents = [file.content for file in files]
    assert isinstance(contents[0], memoryview)
    assert contents[0].obj is fixed
    assert [bytes(content or b"") for content in contents] == [fixed] * 3


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../up", "a/../b", "a//b", "a/", "./a", "a\0b", "\ud800", "x" * 5000]
)
def test_paths_that_are_not_relative_and_normalised(store: Store, path: str) -> None:
    with pytest.raises(InvalidInput, match="content to save"):
        store.save_model({path: b""})
    assert not list(store.list())


@pytest.mark.parametrize(
    "content",
    [
        {"a": b"", "a/b": b""},
        {1: b""},
        {"a": 1},
        {"a": None},
        {"a": ["b"]},
    ],
)
def test_what_cannot_be_saved(store: Store, content: Any) -> None:
    with pytest.raises(InvalidInput, match="content to save"):
        store.save_model(content)
    assert not list(store.list())


def test_a_path_of_the_mapping_that_does_not_exist(store: Store, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere"):
        store.save_model({"a": b"", "b": tmp_path / "nowhere"})


@pytest.mark.parametrize("content", [{"x": b"1", "x/y": b"2"}, {"a": b"", "x/y/z": b"1", "x": b"2"}])
def test_a_file_that_other_paths_lie_in_is_named(store: Store, content: dict[str, bytes]) -> None:
    with pytest.raises(InvalidInput, match="content to save: 'x' is a file or an empty directory, and other paths lie"):
        store.save_model(content)
