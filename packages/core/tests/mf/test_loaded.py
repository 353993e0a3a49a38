"""The mapping of what was loaded, the keys for the lineage, and directories that go."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from metaflow_artifacts import TargetError
from metaflow_artifacts._mf import loaded
from metaflow_artifacts._mf.loaded import Loaded, TemporaryDirectories, loaded_keys, note_loaded


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
    with pytest.raises(TypeError):
        mapping.info["c"] = {}  # type: ignore[index]
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


def test_directories_go_at_the_end_of_the_process_and_not_in_its_children(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from metaflow_artifacts._mf.loaded import TemporaryDirectories\n"
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
