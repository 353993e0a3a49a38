"""Saving and loading through the store, as a plain Python process does, on each storage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metaflow_artifacts import (
    ArtifactError,
    ArtifactNotFound,
    CorruptArtifact,
    InvalidInput,
    InvalidReference,
    SourceError,
    Store,
    TargetError,
    is_model_artifact,
    open_store,
)
from metaflow_artifacts._layout import CHUNKS
from metaflow_artifacts._storage import LocalStorage
from metaflow_artifacts._transfer.chunks import chunk_key
from metaflow_artifacts._transfer.progress import Progress

CHUNK = 64 << 10


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory of about 700 kB with everything that file systems allow."""
    root = tmp_path / "tree"
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "empty" / "inner").mkdir(parents=True)
    (root / "big.bin").write_bytes(os.urandom(5 * CHUNK + 17))
    (root / "half.bin").write_bytes(os.urandom(CHUNK // 2))
    for number in range(150):
        (root / "sub" / f"f{number:03}").write_bytes(os.urandom(number * 20))
    (root / "sub" / "deep" / "nothing").touch()
    (root / "a name with spaces, ünicode and\nnewline").write_text("x")
    with open(os.path.join(os.fsencode(root), b"not-utf8-\xff\xfe"), "wb") as file:
        file.write(b"bytes")
    (root / ".hidden").write_text("h")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    return root


def content(root: str | Path) -> dict[bytes, Any]:
    """Every path below `root` with what is there: bytes and whether it is executable, or None for a directory."""
    found: dict[bytes, Any] = {}
    base = os.fsencode(root)
    for directory, names, files in os.walk(base):
        for name in names:
            found[os.path.relpath(os.path.join(directory, name), base)] = None
        for name in files:
            path = os.path.join(directory, name)
            assert not os.path.islink(path)
            with open(path, "rb") as file:
                found[os.path.relpath(path, base)] = (file.read(), os.access(path, os.X_OK))
    return found


def test_what_loads_is_what_was_saved(store: Store, tree: Path, tmp_path: Path) -> None:
    saved = store.save_model(tree, "my model", {"accuracy": 0.95}, pathspec="F/1/s/2", attempt=1, parents=["k"])
    assert is_model_artifact(saved)
    assert saved["size"] == sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
    assert saved["metadata"] == {"accuracy": 0.95}
    assert saved["url"] == f"{store.root}/{saved['key']}"
    assert (saved["label"], saved["pathspec"], saved["attempt"], saved["parents"]) == ("my model", "F/1/s/2", 1, ["k"])
    for reference in (saved, saved["key"]):
        target = tmp_path / f"out{len(reference)}"
        assert store.load(reference, target) == str(target)
        assert content(target) == content(tree)
    assert store.info(saved["key"]) == saved
    assert list(store.list()) == [saved["key"]]


def test_a_small_artifact_is_its_manifest_alone(store: Store, tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(b"weights")
    saved = store.save_model(tmp_path / "model.h5")
    assert list(store.storage.list("")) == [store.storage.stat(saved["key"])]
    store.load(saved, tmp_path / "out")
    assert content(tmp_path / "out") == {b"model.h5": (b"weights", False)}


def test_packs_of_files_that_are_read_in_short_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Packs of several blocks; files begin and end anywhere in a block.
    store, read = open_store(tmp_path / "store"), os.preadv
    saved: dict[str, bytes | Path] = {f"f{number:03}": os.urandom(9000 + number) for number in range(300)}
    for number in range(0, 300, 2):
        (tmp_path / "source").mkdir(exist_ok=True)
        (tmp_path / "source" / f"{number}").write_bytes(os.urandom(9000 + number))
        saved[f"f{number:03}"] = tmp_path / "source" / f"{number}"
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: read(fd, [buffers[0][:4000]], at))
    reference = store.save_model(saved)
    wanted = {name: item.read_bytes() if isinstance(item, Path) else item for name, item in saved.items()}
    assert content(store.load(reference, tmp_path / "target")) == {
        os.fsencode(name): (item, False) for name, item in wanted.items()
    }
    assert {name: store.read_file(reference, name) for name in saved} == wanted


def test_an_empty_directory_is_saved_as_one(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    saved = store.save_model(tmp_path / "empty")
    store.load(saved, tmp_path / "out")
    assert saved["size"] == 0
    assert os.listdir(tmp_path / "out") == []


def test_the_same_bytes_are_stored_once(store: Store, tree: Path) -> None:
    first, second, third = Progress(), Progress(), Progress()
    store.save_model(tree, progress=first)
    before = {info.key for info in store.storage.list(CHUNKS)}
    store.save_model(tree, "again", progress=second)
    assert {info.key for info in store.storage.list(CHUNKS)} == before
    with (tree / "big.bin").open("r+b") as file:
        file.seek(5 * CHUNK)
        file.write(b"new")
    store.save_model(tree, progress=third)
    assert first.stored == first.done == first.total > 6 * CHUNK
    assert second.stored == 0
    assert second.done == second.total
    assert third.stored == 17


def test_an_unchanged_file_is_hashed_before_anything_is_written(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, staged, stage = open_store(tmp_path / "store"), [], LocalStorage.stage
    monkeypatch.setattr(LocalStorage, "stage", lambda self, size: [staged.append(size), stage(self, size)][1])
    store.save_model(tree)
    assert staged
    staged.clear()
    store.save_model(tree)
    assert not staged
    # What was saved last says nothing about what is stored.
    shutil.rmtree(tmp_path / "store")
    assert content(store.load(store.save_model(tree), tmp_path / "target")) == content(tree)


def test_a_chunk_of_another_size_is_written_again(store: Store, tree: Path, tmp_path: Path) -> None:
    saved = store.save_model(tree)
    damaged = chunk_key(store.manifest(saved).chunks[0].sha256)
    store.storage.put(damaged, b"short")
    with pytest.raises(CorruptArtifact, match="a chunk of the artifact has changed"):
        store.load(saved, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    again = store.save_model(tree)
    store.load(again, tmp_path / "out")
    assert content(tmp_path / "out") == content(tree)


def test_a_load_adds_and_replaces_files_and_leaves_others_alone(store: Store, tree: Path, tmp_path: Path) -> None:
    saved = store.save_model(tree)
    target = tmp_path / "out"
    (target / "sub").mkdir(parents=True)
    (target / "sub" / "mine").write_text("mine")
    (target / "sub" / "f003").write_text("old")
    (target / "other").mkdir()
    store.load(saved, target)
    expected = content(tree) | {b"sub/mine": (b"mine", False), b"other": None}
    assert content(target) == expected


def test_a_load_that_fails_changes_nothing(store: Store, tree: Path, tmp_path: Path) -> None:
    saved = store.save_model(tree)
    store.storage.delete([chunk_key(store.manifest(saved).chunks[-1].sha256)])
    target = tmp_path / "out"
    target.mkdir()
    (target / ".hidden").write_text("mine")
    before = content(target)
    with pytest.raises(CorruptArtifact, match="a chunk of the artifact is missing"):
        store.load(saved, target)
    assert content(target) == before


def test_writing_to_loaded_files_does_not_change_the_store(store: Store, tree: Path, tmp_path: Path) -> None:
    saved = store.save_model(tree)
    before = content(tree)
    store.load(saved, tmp_path / "one")
    for path in (tmp_path / "one").rglob("*"):
        if path.is_file():
            path.write_bytes(b"rewritten")
    shutil.rmtree(tree)
    store.load(saved, tmp_path / "two")
    assert content(tmp_path / "two") == before
    shutil.rmtree(tmp_path / "one")
    store.load(saved, tmp_path / "three")
    assert content(tmp_path / "three") == before


def test_one_file_is_read_without_the_rest(store: Store, tree: Path) -> None:
    saved = store.save_model(tree)
    for path in [*tree.rglob("*")]:
        if path.is_file():
            name = str(path.relative_to(tree))
            whole = path.read_bytes()
            assert store.read_file(saved, name) == whole
            assert store.read_file(saved, name, 5, 7) == whole[5:12]
    big = (tree / "big.bin").read_bytes()
    assert store.read_file(saved, "big.bin", CHUNK - 3, 2 * CHUNK) == big[CHUNK - 3 : 3 * CHUNK - 3]
    assert store.read_file(saved, "big.bin", len(big) + 1) == b""
    with pytest.raises(ArtifactNotFound, match="has no file 'nope'"):
        store.read_file(saved, "nope")
    with pytest.raises(InvalidInput, match="count from 0"):
        store.read_file(saved, "big.bin", -1)


@pytest.mark.parametrize(
    ("only", "loaded"),
    [
        ("**/*.bin", ["a/b/w.bin", "a/w.bin", "w.bin"]),
        ("a/**/w.bin", ["a/b/w.bin", "a/w.bin"]),
        ("*a/**/**/w*n", ["a/b/w.bin", "a/w.bin"]),
        ("a/**/b/**/w.*", ["a/b/w.bin"]),
        ("a/**", ["a/b/w.bin", "a/w.bin"]),
        ("caf\u00e9.txt", ["cafe\u0301.txt"]),
        ("caf\u00e9*", ["cafe\u0301.txt", "cafe\u0301[1]"]),
        ("caf\u00e9[1]", ["cafe\u0301[1]"]),
        ("[/**/]", ["*"]),
    ],
)
def test_stars_stand_for_no_directory_too_and_names_may_be_taken_apart(
    only: str, loaded: list[str], tmp_path: Path
) -> None:
    store = open_store(tmp_path / "store")
    names = ("w.bin", "a/w.bin", "a/b/w.bin", "cafe\u0301.txt", "xw.bin.old", "cafe\u0301[1]", "(", "*")
    store.load(store.save_model({name: name.encode() for name in names}), tmp_path / "out", only=only)
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert found == loaded


def test_a_pattern_with_many_stars_is_compared_with_a_long_path_at_once(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    saved = store.save_model({"a/" * 500 + "b": b""})
    with pytest.raises(ArtifactNotFound):
        # Each way to share the path among the stars would take hours.
        store.load(saved, tmp_path / "out", only="**/a/**/a/**/a/**/a/**/x")


def test_only_the_files_asked_for_are_loaded(store: Store, tree: Path, tmp_path: Path) -> None:
    saved = store.save_model(tree)
    store.load(saved, tmp_path / "out", only="sub/f00?")
    assert content(tmp_path / "out") == {
        name: value for name, value in content(tree).items() if name == b"sub" or name.startswith(b"sub/f00")
    }
    with pytest.raises(ArtifactNotFound, match=r"has no file that matches '\*\.onnx'"):
        store.load(saved, tmp_path / "none", only="*.onnx")
    assert not (tmp_path / "none").exists()
    store.load(saved, tmp_path / "several", only=("sub/f000", "big.bin"))
    assert sorted(content(tmp_path / "several")) == [b"big.bin", b"sub", b"sub/f000"]
    wrong: Any
    for wrong in ([], "", [""], [5], 5, b"*"):
        with pytest.raises(InvalidInput, match="only: expected a pattern"):
            store.load(saved, tmp_path / "none", only=wrong)


def test_delete(store: Store, tree: Path, tmp_path: Path) -> None:
    saved = store.save_model(tree)
    store.delete(saved)
    for call in (lambda: store.load(saved, tmp_path / "out"), lambda: store.delete(saved["key"])):
        with pytest.raises(ArtifactNotFound, match="nothing is stored at .*" + saved["key"]):
            call()
    assert not (tmp_path / "out").exists()
    assert list(store.list()) == []


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        (None, "expected a key .* found NoneType"),
        (7, "found int"),
        ([], "found list"),
        ({}, "key: missing"),
        ({"key": "x"}, "uuid: missing"),
        ("../../etc/passwd", "not the key of a stored artifact"),
        ("mf.models/models/artifacts/x", "not <label>_<32 hex>"),
    ],
)
def test_a_value_that_is_no_reference_is_refused(store: Store, reference: Any, problem: str, tmp_path: Path) -> None:
    for call in (lambda: store.load(reference, tmp_path / "out"), lambda: store.delete(reference)):
        with pytest.raises(InvalidReference, match=problem):
            call()
    assert not (tmp_path / "out").exists()
    assert list(store.storage.list("")) == []


def test_a_key_that_was_never_saved(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFound, match="nothing is stored at"):
        store.load("mf.models/models/artifacts/m_" + "0" * 32, tmp_path / "out")


def test_the_manifest_of_another_key_is_refused(store: Store, tree: Path) -> None:
    saved = store.save_model(tree)
    other = "mf.models/models/artifacts/m_" + "0" * 32
    store.storage.put(other, store.storage.get(saved["key"]))
    with pytest.raises(CorruptArtifact, match="is that of"):
        store.info(other)


def _loop(root: Path) -> Path:
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "up").symlink_to(root)
    return root


def _dangling(root: Path) -> Path:
    root.symlink_to("gone")
    return root


def _pipe(root: Path) -> Path:
    os.mkfifo(root)
    return root


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda root: root / "missing", "cannot save .*No such file"),
        (_dangling, "cannot save .*No such file"),
        (_loop, "leads back to a directory above it"),
        (_pipe, "is a pipe, neither a file nor a directory"),
    ],
)
def test_a_source_that_cannot_be_saved_is_an_error(
    store: Store, tmp_path: Path, make: Callable[[Path], Path], problem: str
) -> None:
    with pytest.raises(SourceError, match=problem):
        store.save_model(make(tmp_path / "source"))
    assert list(store.storage.list("")) == []


def test_a_source_that_does_not_exist_is_a_file_not_found_error(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cannot save .*No such file") as raised:
        store.save_model(tmp_path / "missing")
    assert isinstance(raised.value, SourceError)
    with pytest.raises(SourceError) as pipe:
        store.save_model(_pipe(tmp_path / "pipe"))
    assert not isinstance(pipe.value, FileNotFoundError)


@pytest.mark.parametrize("path", [None, 7, b"bytes", "", "with\0nul"])
def test_a_path_of_the_wrong_type(store: Store, path: Any, tree: Path) -> None:
    saved = store.save_model(tree)
    with pytest.raises(InvalidInput, match="path to save"):
        store.save_model(path)
    with pytest.raises(InvalidInput, match="path to load into"):
        store.load(saved, path)


def test_content_without_a_name_is_told_how_to_be_saved(store: Store) -> None:
    content: Any = b"content"
    with pytest.raises(InvalidInput, match=r"found bytes; .*\{'weights.bin': content\}"):
        store.save_model(content)


def test_links_are_followed_on_save(store: Store, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "abc").write_bytes(b"w" * 100)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.bin").symlink_to("../blobs/abc")
    (snapshot / "dir").symlink_to("../blobs")
    store.load(store.save_model(snapshot), tmp_path / "out")
    assert content(tmp_path / "out") == {
        b"model.bin": (b"w" * 100, False),
        b"dir": None,
        b"dir/abc": (b"w" * 100, False),
    }


@pytest.mark.parametrize(
    ("there", "problem"),
    [
        (lambda target: target.write_text("file"), "is not a directory"),
        (
            lambda target: (target / "big.bin").mkdir(parents=True),
            "big.bin' is a directory and the artifact has a file",
        ),
        (
            lambda target: (target.mkdir(), (target / "sub").write_text("x")),
            "sub' is a file and the artifact has a dir",
        ),
        (
            lambda target: (target.mkdir(), (target / "sub").symlink_to("/")),
            "sub' is a link and the artifact has a dir",
        ),
    ],
)
def test_a_target_that_is_in_the_way(
    store: Store, tree: Path, tmp_path: Path, there: Callable[[Path], Any], problem: str
) -> None:
    saved = store.save_model(tree)
    target = tmp_path / "out"
    there(target)
    before = content(target) if target.is_dir() and not (target / "sub").is_symlink() else None
    with pytest.raises(TargetError, match=problem):
        store.load(saved, target)
    if before is not None:
        assert content(target) == before


def test_a_link_in_the_target_is_replaced_and_not_written_through(store: Store, tree: Path, tmp_path: Path) -> None:
    saved = store.save_model(tree)
    target = tmp_path / "out"
    target.mkdir()
    (tmp_path / "outside").write_text("precious")
    (target / "big.bin").symlink_to(tmp_path / "outside")
    store.load(saved, target)
    assert (tmp_path / "outside").read_text() == "precious"
    assert content(target) == content(tree)


def test_a_relative_target_with_dots(store: Store, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = store.save_model(tree)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert store.load(saved, "./models/../models/x") == "./models/../models/x"
    assert content("models/x") == content(tree)


def test_twenty_threads_save_the_same_content(store: Store, tree: Path, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(20) as pool:
        saved = list(pool.map(lambda _: store.save_model(tree), range(20)))
    assert len({artifact["key"] for artifact in saved}) == 20
    for number in (0, 19):
        store.load(saved[number], tmp_path / str(number))
        assert content(tmp_path / str(number)) == content(tree)


def test_every_error_is_of_one_root() -> None:
    assert issubclass(TargetError, ArtifactError)
    assert issubclass(TargetError, OSError)
    assert issubclass(InvalidInput, ValueError)
    assert issubclass(InvalidReference, InvalidInput)
    assert issubclass(ArtifactNotFound, LookupError)


def test_a_process_that_only_has_core_loads_by_key(tmp_path: Path, tree: Path) -> None:
    key = open_store(tmp_path / "root").save_model(tree)["key"]
    program = (
        "import sys, metaflow_artifacts; "
        f"metaflow_artifacts.open_store({str(tmp_path / 'root')!r}).load({key!r}, {str(tmp_path / 'out')!r}); "
        "assert not {'metaflow', 'boto3', 'botocore'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert content(tmp_path / "out") == content(tree)


def test_numbers_that_json_cannot_hold_come_back(store: Store, tree: Path) -> None:
    metadata = {"loss": float("nan"), "history": [1.0, float("inf"), {"low": float("-inf")}], "text": "NaN"}
    saved = store.save_model(tree, metadata=metadata)
    for found in (saved, store.info(saved), store.manifest(saved).artifact):
        assert repr(found["metadata"]) == repr(metadata)
    # The text of the manifest itself is JSON that every parser takes.
    json.loads(store.storage.get(saved["key"]), parse_constant=lambda name: pytest.fail(f"a bare {name}"))
