"""Snapshots: one state of each file, made where the source is, removed when they are closed."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metaflow_artifacts import InvalidInput, SourceError, SourceNotFound
from metaflow_artifacts._transfer import hidden_files, snapshot_clones, snapshot_parts
from metaflow_artifacts._transfer.scan import Source
from metaflow_artifacts._transfer.snapshot import NoSnapshot, take_snapshot
from metaflow_artifacts._transfer.snapshot_clones import Cloner
from metaflow_artifacts._transfer.source import opened_source

BIG = 3 << 20


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory that is too large to be read into memory."""
    tree = tmp_path / "work" / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "empty").mkdir()
    (tree / "big.bin").write_bytes(os.urandom(BIG))
    (tree / "sub" / "run.sh").write_bytes(b"#!")
    (tree / "sub" / "run.sh").chmod(0o755)
    return tree


def contents(source: Source) -> dict[str, bytes]:
    return {file.path: _content(file) for file in source.files}


def _content(file: Any) -> bytes:
    if file.content is not None:
        return bytes(file.content)
    return Path(file.location).read_bytes() if file.fd is None else os.pread(file.fd, file.size + 1, 0)


def hidden(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith(".metaflow_artifacts_")]


def without_copy_file_range(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any) -> int:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "copy_file_range", refused)


def as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pass


@pytest.mark.parametrize("way", [as_it_is, without_copy_file_range])
def test_it_has_the_state_of_the_call(tree: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[..., None]) -> None:
    way(monkeypatch)
    before = {"big.bin": (tree / "big.bin").read_bytes(), "sub/run.sh": b"#!"}
    taken = take_snapshot(tree)
    with open(tree / "big.bin", "r+b") as file:
        file.write(b"rewritten in place")
    (tree / "sub" / "run.sh").unlink()
    assert contents(taken.source) == before
    assert taken.source.dirs == ["empty"]
    assert [file.mode & 0o111 for file in taken.source.files] == [0, 0o111]
    assert hidden(tree.parent) == []
    taken.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(taken.source.files[0].fd or -1)


@pytest.mark.parametrize("gone", ["removed", "renamed", "consumed"])
@pytest.mark.parametrize("consume", [False, True])
@pytest.mark.parametrize("descriptors", [1, 256])
def test_the_directory_may_go(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str, consume: bool, descriptors: int
) -> None:
    monkeypatch.setattr(snapshot_parts, "_DESCRIPTORS", descriptors)
    before = {"big.bin": (tree / "big.bin").read_bytes(), "sub/run.sh": b"#!"}
    given: Any = {"big.bin": tree / "big.bin"} if consume else tree
    taken = take_snapshot(given, consume=consume)
    if gone == "removed":
        shutil.rmtree(tree.parent)
    elif gone == "renamed":
        tree.parent.rename(tmp_path / "elsewhere")
    else:
        take_snapshot(tree, consume=True).close()
    expected = {"big.bin": before["big.bin"]} if consume else before
    opened = [opened_source(file, number) for number, file in enumerate(taken.source.files)]
    read = [
        b"".join(map(bytes, one.blocks(0, file.size, memoryview(bytearray(BIG)))))
        for one, file in zip(opened, taken.source.files, strict=True)
    ]
    assert dict(zip([file.path for file in taken.source.files], read, strict=True)) == expected
    for one, file in zip(opened, taken.source.files, strict=True):
        one.finish(0, file.size, "")
    taken.close()


@pytest.mark.parametrize("kind", ["file", "directory", "mapping"])
@pytest.mark.parametrize("size", [1000, BIG])
@pytest.mark.parametrize("consume", [False, True])
def test_each_kind_of_content(tmp_path: Path, kind: str, size: int, consume: bool) -> None:
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "state.bin"
    path.write_bytes(data := os.urandom(size))
    changing = bytearray(b"in memory")
    given: Any = {
        "file": path,
        "directory": tmp_path / "a",
        "mapping": {"m": changing, "f": path},
    }[kind]
    taken = take_snapshot(given, consume=consume)
    assert path.exists() is not consume
    changing[:] = b"X" * len(changing)
    if not consume:
        path.write_bytes(b"x" * size)
    expected = {"f": data, "m": b"in memory"} if kind == "mapping" else {"state.bin": data}
    assert contents(taken.source) == expected
    taken.give_back()
    assert path.exists()
    assert not hidden(tmp_path)
    assert not hidden(tmp_path / "a")


def test_a_file_that_changes_while_it_is_cloned_is_cloned_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, path, times = Cloner._copy, tree / "big.bin", [3]

    def copy(self: Any, file: Any, *args: Any) -> None:
        real(self, file, *args)
        if file.path == "big.bin" and times[0]:
            times[0] -= 1
            path.write_bytes(os.urandom(BIG))

    monkeypatch.setattr(Cloner, "_copy", copy)
    taken = take_snapshot(tree)
    assert contents(taken.source)["big.bin"] == path.read_bytes()
    taken.close()
    times[0] = 4
    with pytest.raises(SourceError, match="4 times in a row"):
        take_snapshot(tree)
    assert hidden(tree.parent) == []


def test_a_log_that_grows_and_a_file_that_goes(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, path = Cloner._copy, tree / "big.bin"
    before = path.read_bytes()

    def copy(self: Any, file: Any, *args: Any) -> None:
        real(self, file, *args)
        if file.path == "big.bin":
            (tree / "sub" / "run.sh").unlink(missing_ok=True)
            with open(path, "ab") as log:
                log.write(b"a line")

    monkeypatch.setattr(Cloner, "_copy", copy)
    taken = take_snapshot(tree)
    # In the fourth attempt it is what three lines had been added to.
    assert contents(taken.source) == {"big.bin": before + 3 * b"a line"}
    taken.close()


@pytest.mark.parametrize("when", ["before", "while"])
def test_without_room_there_is_none(tree: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    def full(*args: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    if when == "while":
        monkeypatch.setattr(os, "copy_file_range", full)
    else:
        free = SimpleNamespace(f_bavail=int(BIG * 1.04), f_frsize=1)
        monkeypatch.setattr(os, "fstatvfs", lambda fd: free)
    with pytest.raises(NoSnapshot, match="copy"):
        take_snapshot(tree)
    assert hidden(tree.parent) == []


def test_consume_never_copies(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "work" / "beside").write_bytes(b"beside")
    (tree / "link").symlink_to("../beside")
    with pytest.raises(NoSnapshot, match="links that lead out"):
        take_snapshot(tree, consume=True)
    assert (tree / "link").read_bytes() == b"beside"
    (tree / "link").unlink()
    (tree / "link").symlink_to(tmp_path / "work" / "beside")
    with pytest.raises(NoSnapshot, match="links that lead out"):
        take_snapshot(tree, consume=True)
    (tmp_path / "link").symlink_to(tree)
    with pytest.raises(NoSnapshot, match="is a link"):
        take_snapshot(tmp_path / "link", consume=True)
    assert len((tree / "big.bin").read_bytes()) == BIG
    assert hidden(tree.parent) == []
    assert hidden(tmp_path) == []


def test_where_the_source_cannot_be_written_to(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere, made = tmp_path / "elsewhere", []
    elsewhere.mkdir()
    real_file, real_directory = tempfile.TemporaryFile, tempfile.mkdtemp

    def read_only(real: Any, **kwargs: Any) -> Any:
        if kwargs["dir"].startswith(str(tmp_path / "work")):
            raise PermissionError(errno.EACCES, "Permission denied")
        made.append(kwargs["dir"])
        return real(**kwargs)

    monkeypatch.setattr(tempfile, "TemporaryFile", partial(read_only, real_file))
    monkeypatch.setattr(tempfile, "mkdtemp", partial(read_only, real_directory))
    taken = take_snapshot(tree, temp_root=elsewhere)
    assert set(made) == {str(elsewhere)}
    assert contents(taken.source)["big.bin"] == (tree / "big.bin").read_bytes()
    taken.close()
    with pytest.raises(NoSnapshot, match="can be made beside"):
        take_snapshot(tree, consume=True)
    assert (tree / "big.bin").exists()


def test_what_a_killed_process_left_is_removed_and_nothing_else(tree: Path) -> None:
    code = f"""
import os, sys
from metaflow_artifacts._transfer.snapshot import take_snapshot
take_snapshot({str(tree)!r}, consume=True)
print("taken", flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"taken\n"
    (tree / "sub").mkdir(parents=True)
    (tree / "big.bin").write_bytes(bytes(BIG))
    hidden_files._cleared.clear()
    take_snapshot(tree).close()
    assert len(hidden(tree.parent)) == 1, "that of a process that runs"
    process.kill()
    process.communicate()
    hidden_files._cleared.clear()
    take_snapshot(tree).close()
    assert hidden(tree.parent) == []


def test_what_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound):
        take_snapshot(tmp_path / "nowhere")


def test_consume_gives_back_what_lay_in_a_directory_that_is_moved_too(tmp_path: Path) -> None:
    paths = [tmp_path / "other" / "first", tmp_path / "all" / "file"]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(b"content")
    with pytest.raises(NoSnapshot):
        take_snapshot({"first": paths[0], "file": paths[1], "all": tmp_path / "all"}, consume=True)
    assert [path.read_bytes() for path in paths] == [b"content"] * 2


@pytest.mark.parametrize("is_writable", [True, False])
def test_without_a_directory_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_writable: bool
) -> None:
    def none_found() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    def read_only(parent: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "gettempdir", none_found)
    path = tmp_path / "file"
    path.write_bytes(bytes(2 << 20))
    if is_writable:
        take_snapshot(path).close()
        return
    monkeypatch.setattr(snapshot_clones, "unnamed_file", read_only)
    with pytest.raises(NoSnapshot, match="No usable temporary directory"):
        take_snapshot(path)


@pytest.mark.parametrize(
    ("kind", "is_refused"), [("O", True), ([("count", "i4"), ("name", "O")], True), ([("Offset", "i4")], False)]
)
def test_an_array_of_python_objects_is_refused(kind: Any, is_refused: bool) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.zeros(2, dtype=kind)
    if not is_refused:
        assert contents(take_snapshot({"array": array}).source) == {"array": bytes(8)}
        return
    with pytest.raises(InvalidInput, match=r"'array' is ndarray.*Python objects"):
        take_snapshot({"array": array})
