"""Files that a load finds in its target are used where they are right, and become what was saved where not."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faultlib.leftovers import (
    CHUNK,
    PACKED,
    SIZE,
    content,
    damage,
    inodes,
    load,
    make_link,
    make_pipe,
)

from metaflow_artifacts import ModelArtifact, Store, TargetError
from metaflow_artifacts._store import loading as store_loading
from metaflow_artifacts._transfer import loading, reuse
from metaflow_artifacts._transfer import target as targets
from metaflow_artifacts._transfer.progress import Progress


def test_files_that_are_there_are_left_as_they_are(
    store: Store, saved: ModelArtifact, target: Path, fresh: dict[str, tuple[bytes, int]]
) -> None:
    load(store, saved, target)
    (target / "other").write_text("other")
    before = inodes(target)
    assert load(store, saved, target) == SIZE + PACKED
    after = inodes(target)
    assert {name for name in before if before[name] != after[name]} <= {"empty"}
    assert (target / "other").read_text() == "other"
    (target / "other").unlink()
    assert content(target) == fresh


def _replace(path: Path) -> None:
    damage(path, SIZE - 1)
    path.rename(path.with_name("moved"))
    path.with_name("moved").rename(path)


CHANGES: dict[str, tuple[Callable[[Path], object], int]] = {
    "another byte, the same size and mtime": (lambda path: damage(path, 3 * CHUNK), SIZE - CHUNK),
    "another last byte, renamed away and back": (_replace, SIZE - 5),
    "shorter": (lambda path: os.truncate(path, SIZE - 1), 0),
    "longer": (lambda path: os.truncate(path, SIZE + 1), 0),
    "removed": (lambda path: path.unlink(), 0),
    "not executable": (lambda path: path.chmod(0o644), SIZE),
    "only to be read": (lambda path: path.chmod(0o555), SIZE),
    "with a second name": (lambda path: os.link(path, path.parent.parent.parent / "second"), SIZE),
    "a link to a file of this content": (make_link, 0),
    "a pipe": (make_pipe, 0),
}


@pytest.mark.parametrize(("change", "found"), CHANGES.values(), ids=CHANGES)
def test_a_file_that_was_changed_becomes_what_was_saved(
    store: Store,
    saved: ModelArtifact,
    target: Path,
    fresh: dict[str, tuple[bytes, int]],
    change: Callable[[Path], object],
    found: int,
) -> None:
    load(store, saved, target)
    change(target / "sub" / "weights")
    assert load(store, saved, target) == found + PACKED
    assert content(target) == fresh
    assert (target / "sub" / "weights").stat().st_nlink == 1


def test_a_directory_that_became_a_link_is_not_followed(
    store: Store, saved: ModelArtifact, target: Path, tmp_path: Path
) -> None:
    load(store, saved, target)
    (target / "sub").rename(tmp_path / "elsewhere")
    (target / "sub").symlink_to(tmp_path / "elsewhere")
    before = content(tmp_path / "elsewhere")
    with pytest.raises(TargetError, match="is a link and the artifact has a directory there"):
        load(store, saved, target)
    assert content(tmp_path / "elsewhere") == before


def test_a_relative_target_in_a_working_directory_that_is_gone_is_named(
    store: Store, saved: ModelArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(TargetError, match=r"cannot load into 'out': .*working directory, which is gone.*absolute path"):
        store.load(saved, "out")
    assert content(Path(store.load(saved, tmp_path / "out")))


def test_a_file_that_changes_after_it_was_hashed_is_fetched(
    store: Store, saved: ModelArtifact, target: Path, fresh: dict[str, tuple[bytes, int]]
) -> None:
    load(store, saved, target)
    (target / "0.txt").unlink()
    changed = threading.Event()

    def watch(progress: Progress) -> None:
        if progress.found and not changed.is_set():
            changed.set()
            damage(target / "sub" / "weights")

    progress = Progress(watch)
    store.load(saved, target, progress=progress)
    assert changed.is_set()
    assert content(target) == fresh
    assert progress.done == progress.total == SIZE + PACKED


def test_a_piece_that_changes_before_it_is_copied_is_fetched(
    store: Store, saved: ModelArtifact, target: Path, fresh: dict[str, tuple[bytes, int]]
) -> None:
    load(store, saved, target)
    damage(target / "sub" / "weights")
    changed = threading.Event()

    def watch(progress: Progress) -> None:
        if progress.found and not changed.is_set():
            changed.set()
            damage(target / "sub" / "weights", 3 * CHUNK)

    progress = Progress(watch)
    store.load(saved, target, progress=progress)
    assert content(target) == fresh
    assert progress.found == SIZE - 2 * CHUNK + PACKED


def test_another_version_of_a_file_is_not_hashed_to_its_end(
    store: Store,
    saved: ModelArtifact,
    target: Path,
    fresh: dict[str, tuple[bytes, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load(store, saved, target)
    (target / "sub" / "weights").write_bytes(os.urandom(SIZE))
    hashed = []
    real = reuse._digest

    def digest(file: int, piece: reuse._Piece) -> str:
        hashed.append(piece.length)
        return real(file, piece)

    monkeypatch.setattr(reuse, "_digest", digest)
    # Threads that had begun go on.
    monkeypatch.setattr(reuse, "_THREADS", 1)
    assert load(store, saved, target) == PACKED
    assert hashed.count(CHUNK) == reuse._MOST_MISSES
    assert content(target) == fresh


def test_a_file_that_changes_while_another_one_is_fetched_again_is_fetched_too(
    store: Store,
    saved: ModelArtifact,
    target: Path,
    fresh: dict[str, tuple[bytes, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load(store, saved, target)
    fetch = loading.fetch_chunks
    changing = [target / "sub" / "weights", target / "1.txt"]

    def fetch_chunks(*arguments: Any, **options: Any) -> None:
        fetch(*arguments, **options)
        if changing:
            damage(changing.pop())

    monkeypatch.setattr(store_loading, "fetch_chunks", fetch_chunks)
    assert load(store, saved, target) == PACKED - 1000
    assert content(target) == fresh


def test_of_a_pack_the_changed_file_is_fetched(store: Store, saved: ModelArtifact, target: Path, tree: Path) -> None:
    load(store, saved, target)
    before = inodes(target)
    damage(target / "1.txt")
    assert load(store, saved, target) == SIZE + PACKED - 1000
    after = inodes(target)
    assert (before["0.txt"], before["2.txt"]) == (after["0.txt"], after["2.txt"])
    assert (target / "1.txt").read_bytes() == (tree / "1.txt").read_bytes()


def test_a_directory_that_another_load_has_made_meanwhile_is_filled(
    store: Store,
    saved: ModelArtifact,
    target: Path,
    fresh: dict[str, tuple[bytes, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moves = targets._moves

    def late(stage: str, path: str) -> Iterator[tuple[str, str]]:
        steps = list(moves(stage, path))
        monkeypatch.setattr(targets, "_moves", moves)
        load(store, saved, target)
        return iter(steps)

    monkeypatch.setattr(targets, "_moves", late)
    load(store, saved, target)
    assert content(target) == fresh
