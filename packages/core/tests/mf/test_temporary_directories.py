"""Temporary directories go with all that is in them, and nothing outside of them is touched, whatever has failed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from metaflow_artifacts._mf.temporary import TemporaryDirectories


def mode(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """A directory like /tmp."""
    place = tmp_path / "parent"
    place.mkdir()
    place.chmod(0o1777)
    return place


def test_a_directory_that_is_gone_leaves_the_mode_of_its_parent(parent: Path) -> None:
    directories = TemporaryDirectories(parent)
    shutil.rmtree(directories.new("x_"))
    directories.close()
    assert mode(parent) == 0o1777


def test_a_directory_that_was_moved_away_stays_as_it_is(parent: Path, tmp_path: Path) -> None:
    directories = TemporaryDirectories(parent)
    made = directories.new("x_")
    Path(made, "weights").write_text("w")
    moved = tmp_path / "model"
    shutil.move(made, moved)
    moved.chmod(0o555)
    directories.close()
    assert mode(parent) == 0o1777
    assert (mode(moved), (moved / "weights").read_text()) == (0o555, "w")


def test_a_link_at_its_path_is_not_followed(parent: Path, tmp_path: Path) -> None:
    directories = TemporaryDirectories(parent)
    made = directories.new("x_")
    moved = tmp_path / "model"
    shutil.move(made, moved)
    (moved / "weights").write_text("w")
    moved.chmod(0o500)
    os.symlink(moved, made)
    directories.close()
    assert (mode(moved), (moved / "weights").read_text()) == (0o500, "w")
    assert mode(parent) == 0o1777


def test_a_directory_that_was_made_anew_at_the_same_path_goes_too(parent: Path) -> None:
    directories = TemporaryDirectories(parent)
    made = Path(directories.new("x_"))
    made.rename(parent / "kept")
    made.mkdir()
    (made / "file").write_text("x")
    directories.close()
    assert list(parent.iterdir()) == [parent / "kept"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
def test_a_directory_of_another_user_at_the_same_path_stays(parent: Path) -> None:
    directories = TemporaryDirectories(parent)
    made = Path(directories.new("x_"))
    made.rename(parent / "kept")
    made.mkdir()
    os.chown(made, 65534, 65534)
    directories.close()
    assert sorted(parent.iterdir()) == sorted([parent / "kept", made])


def test_the_targets_of_links_inside_are_not_changed(parent: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("x")
    (outside / "file").chmod(0o400)
    outside.chmod(0o500)
    directories = TemporaryDirectories(parent)
    made = Path(directories.new("x_"))
    (made / "sub").mkdir()
    (made / "sub" / "directory").symlink_to(outside)
    (made / "sub" / "file").symlink_to(outside / "file")
    (made / "hard").hardlink_to(outside / "file")
    (made / "up").symlink_to("..")
    (made / "sub").chmod(0o500)
    directories.close()
    assert list(parent.iterdir()) == []
    assert mode(parent) == 0o1777
    assert (mode(outside), mode(outside / "file"), (outside / "file").read_text()) == (0o500, 0o400, "x")


def without_privileges() -> None:
    """In a child, before exec: take from root the right to pass over the modes of files."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


READ_ONLY = """
import os, sys
from metaflow_artifacts._mf.temporary import TemporaryDirectories
directories = TemporaryDirectories(sys.argv[1])
made = directories.new("x_")
for name in ("a/b/c", "a/d", "e"):
    os.makedirs(os.path.join(made, name))
    open(os.path.join(made, name, "file"), "w").close()
    os.chmod(os.path.join(made, name, "file"), 0o400)
modes = iter([0o500, 0, 0o500, 0o400, 0o100, 0o200])
for name in ("a/b/c", "a/b", "a/d", "a", "e", ""):
    os.chmod(os.path.join(made, name), next(modes))
try:
    os.listdir(made)
    print("may pass over modes")
except PermissionError:
    pass
directories.close()
"""


def test_directories_without_permissions_go_too(parent: Path) -> None:
    command = [sys.executable, "-c", READ_ONLY, str(parent)]
    done = subprocess.run(command, preexec_fn=without_privileges, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert list(parent.iterdir()) == []
    assert mode(parent) == 0o1777


def test_a_parent_that_cannot_be_written_keeps_its_mode(parent: Path) -> None:
    code = (
        "import os, sys\n"
        "from metaflow_artifacts._mf.temporary import TemporaryDirectories\n"
        "directories = TemporaryDirectories(sys.argv[1])\n"
        "open(os.path.join(directories.new('x_'), 'file'), 'w').close()\n"
        "os.chmod(sys.argv[1], 0o500)\n"
        "directories.close()\n"
    )
    command = [sys.executable, "-c", code, str(parent)]
    done = subprocess.run(command, preexec_fn=without_privileges, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert mode(parent) == 0o500
    assert [list(path.iterdir()) for path in parent.iterdir() if path.is_dir()] == [[]]


def test_a_tree_deeper_than_python_recurses_goes(parent: Path) -> None:
    directories = TemporaryDirectories(parent)
    here = os.open(directories.new("x_"), os.O_RDONLY)
    for _ in range(2 * sys.getrecursionlimit()):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    try:
        directories.close()
        assert list(parent.iterdir()) == []
    finally:
        # pytest, too, would recurse into what is left.
        subprocess.run(["rm", "-rf", parent], check=True)


MAKE = """
import os, sys, time
from metaflow_artifacts._mf.temporary import TemporaryDirectories
directories = TemporaryDirectories(sys.argv[1])
made = [directories.new("x_") for _ in range(3)]
directories.remove(made[2])
if sys.argv[2] == "with a child":
    source, sink = os.pipe()
    if os.fork() == 0:
        os.close(1)
        os.write(sink, b".")
        sys.stdin.read()
        os._exit(0)
    os.read(source, 1)
print(*made, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def another(parent: Path, child: str = "") -> Iterator[tuple[subprocess.Popen[str], list[Path]]]:
    """A process that has made directories in `parent`."""
    command = [sys.executable, "-c", MAKE, str(parent), child]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield process, [Path(path) for path in process.stdout.readline().split()[:2]]


@pytest.mark.parametrize("child", ["", "with a child"])
def test_what_a_killed_process_has_left_is_removed_by_the_next_one(parent: Path, child: str) -> None:
    """A child of the killed process may live longer."""
    (parent / "x_12345678").mkdir()
    with another(parent) as (alive, in_use), another(parent, child) as (killed, left):
        (left[0] / "sub").mkdir()
        (left[0] / "sub" / "weights").write_text("w")
        # What a load into the directory has not put into its place yet.
        (parent / f"{left[0].name}_abcd1234").mkdir()
        left[1].rename(parent / "kept")
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        directories = TemporaryDirectories(parent)
        made = Path(directories.new("x_"))
        found = {path for path in parent.iterdir() if path.is_dir()}
        assert found == {made, *in_use, parent / "kept", parent / "x_12345678"}
        directories.close()
        alive.communicate()
        killed.communicate()
    assert sorted(path.name for path in parent.iterdir()) == ["kept", "x_12345678"]


@pytest.mark.parametrize("name", ["../outside", "kept", "/etc", "x_1234567", "x_12345678/../kept", ""])
def test_only_names_that_are_made_here_are_removed(parent: Path, name: str) -> None:
    for kept in (parent.parent / "outside", parent / "kept", parent / "x_1234567"):
        kept.mkdir()
    with another(parent) as (process, made):
        process.send_signal(signal.SIGKILL)
        process.wait()
        (record,) = parent.glob(".metaflow_artifacts_made_*")
        assert record.read_text().splitlines()[:2] == [path.name for path in made]
        record.write_text(f"{name}\n")
    TemporaryDirectories(parent).new("y_")
    assert {path.name for path in parent.parent.iterdir()} == {"outside", "parent"}
    assert {path.name for path in parent.iterdir() if path.is_dir()} >= {
        "kept",
        "x_1234567",
        *(one.name for one in made),
    }
    assert not record.exists()


def test_a_record_that_is_a_link_or_of_another_user_is_left_alone(parent: Path, tmp_path: Path) -> None:
    with another(parent) as (process, made):
        process.send_signal(signal.SIGKILL)
        process.wait()
    (record,) = parent.glob(".metaflow_artifacts_made_*")
    record.rename(tmp_path / "record")
    record.symlink_to(tmp_path / "record")
    TemporaryDirectories(parent).new("y_")
    if os.geteuid() == 0:
        record.unlink()
        (tmp_path / "record").rename(record)
        os.chown(record, 65534, 65534)
        TemporaryDirectories(parent).new("y_")
    assert all(path.exists() for path in (record, *made))
