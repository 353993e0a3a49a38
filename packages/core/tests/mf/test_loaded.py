"""The mapping of what was loaded, the keys for the lineage, and directories that go."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import pickletools
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import pytest

from metaflow_artifacts import StorageError, TargetError, UsageError
from metaflow_artifacts._mf import loaded
from metaflow_artifacts._mf.loaded import Loaded, loaded_keys, note_loaded
from metaflow_artifacts._mf.temporary import TemporaryDirectories
from metaflow_artifacts._upkeep.spill import Spill


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded, "_keys", {})


def test_loaded_maps_names_to_paths_and_references() -> None:
    mapping = Loaded()
    assert isinstance(mapping, Mapping)
    assert (len(mapping), list(mapping), "x" in mapping) == (0, [], False)
    with pytest.raises(KeyError, match="'x' was not loaded here; loaded: nothing"):
        mapping["x"]
    mapping.add("a", "/a", {"key": "k1", "size": 1})
    mapping.add("b", "/b", {"key": "k2"})
    mapping.add("a", "/elsewhere", {"key": "k1", "size": 1})
    assert dict(mapping) == {"a": "/elsewhere", "b": "/b"}
    assert dict(mapping.info) == {"a": {"key": "k1", "size": 1}, "b": {"key": "k2"}}
    with pytest.raises(KeyError, match="loaded: a, b"):
        mapping["x"]
    # `info` is a plain dict, so that it can be kept as an artifact; writing to it changes nothing here.
    info = mapping.info
    info["a"]["size"] = 2
    info["c"] = {}
    assert (type(info), type(info["a"])) == (dict, dict)
    assert mapping.info == {"a": {"key": "k1", "size": 1}, "b": {"key": "k2"}}
    assert loaded_keys() == ["k1", "k2"]


def test_keys_noted_from_many_threads_are_all_there_once() -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(note_loaded, [f"key {n % 500}" for n in range(5_000)]))
    assert sorted(loaded_keys()) == sorted(f"key {n}" for n in range(500))


def test_directories_have_safe_names_below_the_root_and_go(tmp_path: Path) -> None:
    directories = TemporaryDirectories(tmp_path / "not" / "yet")
    made = [directories.new(f"metaflow_models_{name}_") for name in ("plain", "a/../b c\n", "ü" * 300)]
    for path in map(Path, made):
        assert path.parent == tmp_path / "not" / "yet"
        assert path.name.startswith("metaflow_models_")
        assert path.name.isascii()
        (path / "inner").mkdir()
        (path / "inner" / "file").write_text("x")
    os.chmod(os.path.join(made[0], "inner"), 0o500)
    (Path(made[1]) / "link").symlink_to(tmp_path)
    directories.close()
    assert list((tmp_path / "not" / "yet").iterdir()) == []
    directories.close()


def test_a_root_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TargetError, match=r"cannot make a temporary directory in .*file.*temp_dir_root"):
        TemporaryDirectories(tmp_path / "file").new("x_")


def test_a_relative_root_in_a_working_directory_that_is_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(TargetError, match=r"temporary directory in 'scratch': .*working directory, which is gone"):
        TemporaryDirectories("scratch")


def test_no_directory_for_temporary_files_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "missing")])
    tried = re.escape(f"[{str(tmp_path / 'missing')!r}]")
    with pytest.raises(
        TargetError, match=rf"cannot make a temporary directory: No usable .*{tried}; set temp_dir_root"
    ):
        TemporaryDirectories().new("x_")
    with pytest.raises(StorageError, match=rf"cannot write a temporary file: No usable .*{tried}; .* in TMPDIR"):
        Spill(in_memory=0).append(b"content")


def test_directories_go_at_the_end_of_the_process_and_not_in_its_children(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from metaflow_artifacts._mf.temporary import TemporaryDirectories\n"
        "directories = TemporaryDirectories(sys.argv[1])\n"
        "path = directories.new('x_')\n"
        "if os.fork() == 0:\n"
        "    directories.close()\n"
        "    sys.exit()\n"
        "os.wait()\n"
        "print(os.path.exists(path))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def made(tmp_path: Path) -> tuple[TemporaryDirectories, Loaded]:
    """Directories, and a mapping of `a` and `b` to two of them, and of `chosen` to one that the user has chosen."""
    directories = TemporaryDirectories(tmp_path / "temporary")
    mapping = Loaded(directories)
    (tmp_path / "chosen").mkdir()
    for name, path in (
        ("a", directories.new("a_")),
        ("b", directories.new("b_")),
        ("chosen", str(tmp_path / "chosen")),
    ):
        mapping.add(name, path, {"key": name, "metadata": {"epoch": 3}})
    return directories, mapping


def test_cleanup_removes_the_temporary_directory_of_a_name(made: tuple[TemporaryDirectories, Loaded]) -> None:
    directories, mapping = made
    paths = dict(mapping)
    mapping.cleanup("a")
    assert [os.path.exists(paths[name]) for name in paths] == [False, True, True]
    assert (list(mapping), list(mapping.info)) == (["b", "chosen"], ["b", "chosen"])
    with pytest.raises(KeyError, match="'a' was not loaded here; loaded: b, chosen"):
        mapping.cleanup("a")
    mapping.cleanup()
    # A directory that the user has chosen may hold other files.
    assert [os.path.exists(paths[name]) for name in paths] == [False, False, True]
    assert (len(mapping), mapping.info) == (0, {})
    directories.close()


@pytest.mark.parametrize("copied", [lambda value: pickle.loads(pickle.dumps(value)), copy.deepcopy])
def test_a_copy_says_the_same_and_owns_no_directory(
    made: tuple[TemporaryDirectories, Loaded], copied: Callable[[Any], Any]
) -> None:
    directories, mapping = made
    again, elsewhere = copied(mapping), copied(directories)
    assert type(again) is Loaded
    assert (dict(again), again.info) == (dict(mapping), mapping.info)
    paths = dict(mapping)
    again.cleanup()
    elsewhere.close()
    del again, elsewhere
    gc.collect()
    assert all(map(os.path.exists, paths.values()))
    # It makes directories at the same place, and removes those.
    other = copied(directories)
    own = other.new("x_")
    assert os.path.dirname(own) == os.path.dirname(paths["a"])
    other.close()
    assert not os.path.exists(own)
    assert all(map(os.path.exists, paths.values()))


def test_a_pickle_names_no_private_module() -> None:
    """Artifacts are read for years, by versions whose modules are arranged in another way."""
    mapping = Loaded()
    mapping.add("a", "/a", {"key": "k"})
    texts = [argument for _, argument, _ in pickletools.genops(pickle.dumps(mapping))]
    assert "metaflow_artifacts.plugin" in texts
    assert not [text for text in texts if isinstance(text, str) and "._" in text]


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_worker_removes_what_it_made_and_nothing_else(
    made: tuple[TemporaryDirectories, Loaded], method: Literal["fork", "spawn", "forkserver"], tmp_path: Path
) -> None:
    directories, mapping = made
    context: Any = get_context(method)
    with ProcessPoolExecutor(1, context) as pool:
        path = pool.submit(directories.new, "worker_").result()
        # The copy that made it has ended with its call; the directory is there until the worker ends.
        assert pool.submit(os.path.isdir, path).result()
    assert not os.path.exists(path)
    # A child of fork has the object itself, and no copy.
    process = context.Process(target=directories.new, args=("child_",))
    process.start()
    process.join()
    assert process.exitcode == 0
    left = sorted(name for name in os.listdir(tmp_path / "temporary") if not name.startswith("."))
    assert left == sorted(map(os.path.basename, list(mapping.values())[:2]))


@pytest.mark.parametrize("root", [5, b"x", ["x"]])
def test_a_root_that_is_no_path_is_an_error(root: Any) -> None:
    with pytest.raises(UsageError, match=r"^temp_dir_root: expected a path \(str or os.PathLike\), found ") as raised:
        TemporaryDirectories(root)
    assert "\n" not in str(raised.value)
