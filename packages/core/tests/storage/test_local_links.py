"""Symbolic links in a local store: a part of it may lie on another disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from metaflow_artifacts._storage.local import LocalStorage
from metaflow_artifacts.errors import StorageError


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "root")


def listed(storage: LocalStorage, prefix: str = "") -> list[str]:
    return sorted(info.key for info in storage.list(prefix))


def move(storage: LocalStorage, directory: str, disk: Path) -> None:
    """Move a directory of the store to another disk, and put a link in its place."""
    place = Path(storage.root, directory)
    shutil.move(place, disk)
    place.symlink_to(disk)


@pytest.mark.parametrize("moved", ["a", "a/b", "a/b/c"])
def test_what_was_moved_behind_a_link_is_listed_as_it_is_read(
    storage: LocalStorage, tmp_path: Path, moved: str
) -> None:
    keys = ["a/b/c/1", "a/b/c/2", "a/x", "z"]
    for key in keys:
        storage.put(key, b"content")
    move(storage, moved, tmp_path / "disk")
    for prefix in ("", "a", "a/", "a/b/", "a/b/c/", "a/b/c/1"):
        assert listed(storage, prefix) == [key for key in keys if key.startswith(prefix)]
    for key in keys:
        assert storage.get(key) == b"content"


def test_a_link_to_a_file_is_an_object(storage: LocalStorage, tmp_path: Path) -> None:
    storage.put("a/b", b"content")
    (tmp_path / "file").write_bytes(b"elsewhere")
    Path(storage.root, "a/c").symlink_to(tmp_path / "file")
    assert [(info.key, info.size) for info in storage.list("a/c")] == [("a/c", 9)]


def test_a_listing_ends_where_links_form_a_circle(storage: LocalStorage) -> None:
    storage.put("a/b/c", b"")
    storage.put("x", b"")
    Path(storage.root, "a/b/up").symlink_to("..")
    Path(storage.root, "a/root").symlink_to(storage.root)
    Path(storage.root, "here").symlink_to(".")
    assert listed(storage) == ["a/b/c", "x"]


def test_each_directory_is_listed_once_and_by_its_own_name(storage: LocalStorage, tmp_path: Path) -> None:
    for number in range(20):
        storage.put(f"m{number}/x", b"")
        # Some of these names come before the directory's own, in any order.
        Path(storage.root, f"l{number}").symlink_to(f"m{number}")
        Path(storage.root, f"n{number}").symlink_to(f"m{number}")
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "y").touch()
    Path(storage.root, "p").symlink_to(tmp_path / "disk")
    Path(storage.root, "o").symlink_to(tmp_path / "disk")
    assert listed(storage) == sorted(["o/y", *(f"m{number}/x" for number in range(20))])
    # The prefix says by which name it is wanted.
    assert listed(storage, "p/") == ["p/y"]
    assert listed(storage, "l3/") == ["l3/x"]


def test_temporary_files_are_not_listed_behind_links(storage: LocalStorage, tmp_path: Path) -> None:
    with storage.stage(4) as staged:
        staged.write(memoryview(b"half"))
        Path(storage.root, "t").symlink_to("mf.artifacts/tmp")
        Path(storage.root, "u").symlink_to("mf.artifacts")
        assert listed(storage) == []
        assert listed(storage, "mf.artifacts/tmp/") == []


DANGLING = {
    "a file": ("a/link", ["", "a/", "a/l", "a/link"]),
    "a directory": ("a", ["", "a/", "a/b/", "a/b/c"]),
}


@pytest.mark.parametrize("which", DANGLING)
def test_a_disk_that_is_not_mounted_is_an_error_and_not_an_empty_store(
    storage: LocalStorage, tmp_path: Path, which: str
) -> None:
    link, prefixes = DANGLING[which]
    storage.put("x/y", b"")
    path = Path(storage.root, link)
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(tmp_path / "disk" / "part")
    message = rf"cannot read {path}: it is a symbolic link, and there is nothing at {tmp_path}/disk/part; mount the"
    for prefix in prefixes:
        with pytest.raises(StorageError, match=message):
            list(storage.list(prefix))
    key = "a/link" if which == "a file" else "a/b/c"
    for call in (lambda: storage.stat(key), lambda: storage.get(key)):
        with pytest.raises(StorageError, match=message):
            call()
    assert listed(storage, "x/") == ["x/y"]


def test_a_root_that_is_a_dangling_link_is_an_error_and_not_an_empty_store(tmp_path: Path) -> None:
    (tmp_path / "root").symlink_to("unmounted")
    storage = LocalStorage(tmp_path / "root")
    with pytest.raises(StorageError, match="mount the disk that holds it, or remove the link"):
        list(storage.list(""))
    (tmp_path / "unmounted").mkdir()
    assert listed(storage) == []


def test_a_link_in_a_circle_is_named(storage: LocalStorage) -> None:
    storage.put("x", b"")
    Path(storage.root, "one").symlink_to("two")
    Path(storage.root, "two").symlink_to("one")
    with pytest.raises(StorageError, match=r"cannot read /.*/(one|two): it is a symbolic link"):
        list(storage.list(""))


def test_links_that_no_key_names_are_not_listed(storage: LocalStorage) -> None:
    storage.put("x", b"")
    Path(storage.root, "caf\u00e9").symlink_to("nowhere")
    assert listed(storage) == ["x"]


def test_files_that_vanish_during_a_listing_are_not_listed(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("a/1", "a/2", "a/3"):
        storage.put(key, b"")
    Path(storage.root, "a/link").symlink_to("nowhere")
    scandir = os.scandir

    class Vanishing:
        """The directory as it was read, when all but one of its entries are gone."""

        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self.entries = list(entries)
            for entry in self.entries:
                if entry.name in {"1", "3", "link"}:
                    os.unlink(entry.path)

        def __enter__(self) -> Vanishing:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __iter__(self) -> object:
            return iter(self.entries)

    monkeypatch.setattr(os, "scandir", Vanishing)
    assert listed(storage, "a/") == ["a/2"]
