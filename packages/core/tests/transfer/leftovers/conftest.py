"""A saved tree, and where it is loaded to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from faultlib.leftovers import CHUNK, SIZE, content, load

from metaflow_artifacts import ModelArtifact, Store
from metaflow_artifacts._storage import LocalStorage


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(LocalStorage(tmp_path / "store"), chunk_size=CHUNK)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "weights").write_bytes(os.urandom(SIZE))
    (path / "sub" / "weights").chmod(0o755)
    for number in range(3):
        (path / f"{number}.txt").write_bytes(os.urandom(1000))
    (path / "empty").touch()
    return path


@pytest.fixture
def saved(store: Store, tree: Path) -> ModelArtifact:
    return store.save_model(tree)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


@pytest.fixture
def fresh(store: Store, saved: ModelArtifact, tmp_path: Path) -> dict[str, tuple[bytes, int]]:
    """What a load into an empty directory gives."""
    assert load(store, saved, tmp_path / "fresh") == 0
    return content(tmp_path / "fresh")
