"""What killed loads have left in the target is used again where it is right, and never where it is not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faultlib.leftovers import (
    CHUNK,
    PACKED,
    SIZE,
    content,
    damage,
    left,
    load,
    make_hole,
    make_link,
    make_pipe,
    stages,
)

from metaflow_artifacts import ModelArtifact, StorageError, Store, TargetError
from metaflow_artifacts._transfer import loading
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.staging import STAGING_PREFIX


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


LEFT: dict[str, tuple[Callable[[Path], object], int]] = {
    "all": (lambda path: None, SIZE),
    "another byte": (lambda path: damage(path, 3 * CHUNK), SIZE - CHUNK),
    "with a hole, and an end too early": (make_hole, 2 * CHUNK),
    "too long": (lambda path: os.truncate(path, SIZE + CHUNK), SIZE),
    "of another mode": (lambda path: path.chmod(0o777), SIZE),
    "with a second name": (lambda path: os.link(path, path.parent.parent.parent.parent.parent / "second"), 0),
    "a link": (make_link, 0),
    "a pipe": (make_pipe, 0),
    "a directory": (_directory, 0),
    "nothing": (lambda path: path.unlink(), 0),
}


@pytest.mark.parametrize(("change", "found"), LEFT.values(), ids=LEFT)
def test_what_a_killed_load_left_is_used_where_it_is_right(
    store: Store,
    saved: ModelArtifact,
    tree: Path,
    target: Path,
    fresh: dict[str, tuple[bytes, int]],
    change: Callable[[Path], object],
    found: int,
) -> None:
    change(left(target, tree, saved) / "sub" / "weights")
    assert load(store, saved, target) == found + PACKED
    assert content(target) == fresh


def test_pieces_of_several_killed_loads_and_of_the_target_make_a_file(
    store: Store, saved: ModelArtifact, tree: Path, target: Path, fresh: dict[str, tuple[bytes, int]]
) -> None:
    load(store, saved, target)
    damage(target / "sub" / "weights", 0)
    make_hole(left(target, tree, saved) / "sub" / "weights")
    (left(target, tree, saved) / "sub" / "weights").unlink()
    assert load(store, saved, target) == SIZE + PACKED
    assert content(target) == fresh


def test_what_the_load_of_a_part_left_is_for_the_same_part(
    store: Store, saved: ModelArtifact, tree: Path, target: Path
) -> None:
    left(target, tree, saved)
    left(target, tree, saved, "*.txt")
    assert load(store, saved, target, only="*.txt") == PACKED
    assert [name for name in content(target) if "/" not in name] == ["0.txt", "1.txt", "2.txt"]
    assert load(store, saved, target, only="sub/*") == 0
    assert load(store, saved, target) == SIZE + PACKED
    assert stages(target) == []


def test_what_another_load_left_stays_for_a_day(
    store: Store, saved: ModelArtifact, tree: Path, target: Path, tmp_path: Path
) -> None:
    (tmp_path / "more").write_text("more")
    others = [store.save_model(tmp_path / "more"), store.save_model(tree / "sub")]
    stage = left(target, tree, saved).parent
    for other in others:
        load(store, other, target)
    assert stages(target) == [stage.name]
    assert load(store, saved, target) == SIZE + PACKED
    assert stages(target) == []

    stage = left(target, tree, saved).parent
    yesterday = time.time() - 25 * 3600
    os.utime(stage, (yesterday, yesterday))
    load(store, others[0], target)
    assert stages(target) == []


@pytest.mark.parametrize("error", [StorageError, KeyboardInterrupt, TargetError])
def test_a_load_that_fails_keeps_what_a_killed_one_left(
    store: Store, saved: ModelArtifact, tree: Path, target: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    damage(left(target, tree, saved) / "sub" / "weights")

    def fail(*args: object) -> None:
        raise error("the token has expired")

    with monkeypatch.context() as patched:
        patched.setattr(loading, "read_chunk", fail)
        with pytest.raises(error):
            load(store, saved, target)
    # A disk that is full gets its room back.
    assert load(store, saved, target) == (0 if error is TargetError else SIZE - CHUNK + PACKED)


def test_what_others_have_made_is_not_removed(store: Store, saved: ModelArtifact, target: Path) -> None:
    for name in ("mine", "abcdefgh"):
        (target / f"{STAGING_PREFIX}{name}").mkdir(parents=True)
    strange = target / f"{STAGING_PREFIX}12345678"
    strange.mkdir()
    for name in ("lock-local", "precious"):
        (strange / name).touch()
    load(store, saved, target)
    # An empty directory of that name is what a load leaves that is killed at its begin.
    assert sorted(stages(target)) == [strange.name, f"{STAGING_PREFIX}mine"]
    assert (strange / "precious").exists()


def test_a_load_that_was_killed_before_it_began_leaves_nothing(
    store: Store, saved: ModelArtifact, target: Path
) -> None:
    (target / f"{STAGING_PREFIX}emptyone").mkdir(parents=True)
    load(store, saved, target)
    assert stages(target) == []


def test_an_interrupt_leaves_what_was_loaded_and_an_error_nothing(
    store: Store, saved: ModelArtifact, target: Path, fresh: dict[str, tuple[bytes, int]]
) -> None:
    def interrupted(error: type[BaseException]) -> Progress:
        def watch(progress: Progress) -> None:
            if progress.done >= 4 * CHUNK:
                raise error

        return Progress(watch)

    with pytest.raises(ZeroDivisionError):
        store.load(saved, target, progress=interrupted(ZeroDivisionError))
    assert not target.exists()
    with pytest.raises(KeyboardInterrupt):
        store.load(saved, target, progress=interrupted(KeyboardInterrupt))
    assert len(os.listdir(target)) == len(stages(target)) == 1
    assert load(store, saved, target) >= 4 * CHUNK
    assert content(target) == fresh
