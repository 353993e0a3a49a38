"""A small tree, loads of it that count what they find, and what killed loads have left: for transfer/leftovers."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from metaflow_artifacts import ModelArtifact, Store
from metaflow_artifacts._store.loading import load_id
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.staging import STAGING_PREFIX, Stage, make_stage

CHUNK = 64 << 10
CHUNKS = 8
SIZE = CHUNKS * CHUNK + 5
PACKED = 3 * 1000


def load(store: Store, saved: ModelArtifact, target: Path, **options: Any) -> int:
    """Load, and return the bytes that were found."""
    progress = Progress()
    store.load(saved, target, progress=progress, **options)
    assert progress.done == progress.total
    return progress.found


def content(path: Path) -> dict[str, tuple[bytes, int]]:
    """The files below a directory: content and mode."""
    found = {}
    for location in sorted(path.rglob("*")):
        status = location.lstat()
        if stat.S_ISREG(status.st_mode):
            found[str(location.relative_to(path))] = location.read_bytes(), stat.S_IMODE(status.st_mode)
        else:
            assert stat.S_ISDIR(status.st_mode), location
    return found


def inodes(path: Path) -> dict[str, int]:
    return {str(one.relative_to(path)): one.stat().st_ino for one in path.rglob("*") if one.is_file()}


def damage(path: Path, at: int = 0) -> None:
    """Another byte, without a change of size or modification time."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def make_link(path: Path) -> None:
    elsewhere = next(parent for parent in path.parents if parent.name == "target").with_name("elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_hole(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    with path.open("wb") as file:
        file.write(data[:CHUNK])
        file.seek(2 * CHUNK)
        file.write(data[2 * CHUNK : 3 * CHUNK])


def left(target: Path, tree: Path, saved: ModelArtifact, only: str | None = None) -> Path:
    """The files in the private directory that a killed load has left in `target`, with all of `tree`."""
    target.mkdir(exist_ok=True)
    stage = make_stage(str(target), load_id(saved["key"], only))
    fill(stage, tree)
    stage.leave()
    return Path(stage.files)


def fill(stage: Stage, tree: Path) -> None:
    for path in tree.rglob("*"):
        copy = Path(stage.files) / path.relative_to(tree)
        if path.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())


def stages(target: Path) -> list[str]:
    return [name for name in os.listdir(target) if name.startswith(STAGING_PREFIX)]
