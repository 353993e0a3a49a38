"""The content of a directory is replaced as a whole or not at all, and nothing outside of it is changed."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metaflow_artifacts import TargetError
from metaflow_artifacts.testing.faults import small_disk
from metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.directory import replace_content


def tree(directory: Path) -> dict[str, str | None]:
    return {
        str(path.relative_to(directory)): path.read_text() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    place = tmp_path / "parent" / "directory"
    (place / "old").mkdir(parents=True)
    (place / "old" / "file").write_text("old")
    (place / "same").write_text("old")
    return place


def test_the_content_is_replaced_and_the_directory_stays(directory: Path) -> None:
    before = directory.stat().st_ino
    for path in (str(directory), f"{directory}/"):
        with replace_content(path) as stage:
            Path(stage, "same").write_text("new")
        assert tree(directory) == {"same": "new"}
    assert directory.stat().st_ino == before
    assert list(directory.parent.iterdir()) == [directory]


def test_nothing_has_changed_where_the_block_raises(directory: Path) -> None:
    before = tree(directory)

    def broken_off() -> None:
        with replace_content(str(directory)) as stage:
            Path(stage, "same").write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken_off()
    assert tree(directory) == before
    assert list(directory.parent.iterdir()) == [directory]


def test_nothing_has_changed_where_a_part_cannot_be_replaced(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(directory)
    rename = os.rename

    def refusing(source: str, target: str) -> None:
        if os.fspath(target) == str(directory / "z"):
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    def refused() -> None:
        with monkeypatch.context() as patched, replace_content(str(directory)) as stage:
            Path(stage, "same").write_text("new")
            Path(stage, "z").write_text("new")
            patched.setattr(os, "rename", refusing)

    with pytest.raises(TargetError, match="Permission denied"):
        refused()
    assert tree(directory) == before
    assert list(directory.parent.iterdir()) == [directory]


def test_links_in_it_are_not_followed(directory: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o500)
    (outside / "file").write_text("x")
    (directory / "link").symlink_to(outside)
    (directory / "old" / "link").symlink_to(outside)
    with replace_content(str(directory)) as stage:
        Path(stage, "new").write_text("new")
    assert tree(directory) == {"new": "new"}
    assert (outside.stat().st_mode & 0o777, tree(outside)) == (0o500, {"file": "x"})


def without_privileges() -> None:
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


def test_a_read_only_part_of_it_is_replaced_too(directory: Path) -> None:
    code = (
        "import os, sys\n"
        "from metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.directory import replace_content\n"
        "os.chmod(os.path.join(sys.argv[1], 'old'), 0o500)\n"
        "with replace_content(sys.argv[1]) as stage:\n"
        "    open(os.path.join(stage, 'new'), 'w').close()\n"
    )
    command = [sys.executable, "-c", code, str(directory)]
    done = subprocess.run(command, preexec_fn=without_privileges, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert tree(directory) == {"new": ""}
    assert list(directory.parent.iterdir()) == [directory]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount disks")
def test_a_directory_that_was_moved_to_another_disk_behind_a_link_is_loaded_into(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        (disk / "directory").mkdir()
        (tmp_path / "link").symlink_to(disk / "directory")
        with replace_content(str(tmp_path / "link")) as stage:
            Path(stage, "new").write_text("new")
        assert tree(disk / "directory") == {"new": "new"}
        assert list(disk.iterdir()) == [disk / "directory"]
