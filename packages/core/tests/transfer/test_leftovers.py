"""What earlier loads have left in the target is used again where it is right, and never where it is not."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metaflow_artifacts import ModelArtifact, StorageError, Store, TargetError
from metaflow_artifacts._storage import LocalStorage
from metaflow_artifacts._store import loading as store_loading
from metaflow_artifacts._store.loading import load_id
from metaflow_artifacts._transfer import loading, locks, reuse
from metaflow_artifacts._transfer import target as targets
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.staging import STAGING_PREFIX, Stage, left_stages, make_stage

CHUNK = 64 << 10
CHUNKS = 8
SIZE = CHUNKS * CHUNK + 5
PACKED = 3 * 1000


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


@pytest.fixture
def fresh(store: Store, saved: ModelArtifact, tmp_path: Path) -> dict[str, tuple[bytes, int]]:
    """What a load into an empty directory gives."""
    assert load(store, saved, tmp_path / "fresh") == 0
    return content(tmp_path / "fresh")


def damage(path: Path, at: int = 0) -> None:
    """Another byte, without a change of size or modification time."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


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


def _link(path: Path) -> None:
    elsewhere = next(parent for parent in path.parents if parent.name == "target").with_name("elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


CHANGES: dict[str, tuple[Callable[[Path], object], int]] = {
    "another byte, the same size and mtime": (lambda path: damage(path, 3 * CHUNK), SIZE - CHUNK),
    "another last byte, renamed away and back": (_replace, SIZE - 5),
    "shorter": (lambda path: os.truncate(path, SIZE - 1), 0),
    "longer": (lambda path: os.truncate(path, SIZE + 1), 0),
    "removed": (lambda path: path.unlink(), 0),
    "not executable": (lambda path: path.chmod(0o644), SIZE),
    "only to be read": (lambda path: path.chmod(0o555), SIZE),
    "with a second name": (lambda path: os.link(path, path.parent.parent.parent / "second"), SIZE),
    "a link to a file of this content": (_link, 0),
    "a pipe": (_pipe, 0),
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


# Private directories of loads that were killed.


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


def _hole(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    with path.open("wb") as file:
        file.write(data[:CHUNK])
        file.seek(2 * CHUNK)
        file.write(data[2 * CHUNK : 3 * CHUNK])


LEFT: dict[str, tuple[Callable[[Path], object], int]] = {
    "all": (lambda path: None, SIZE),
    "another byte": (lambda path: damage(path, 3 * CHUNK), SIZE - CHUNK),
    "with a hole, and an end too early": (_hole, 2 * CHUNK),
    "too long": (lambda path: os.truncate(path, SIZE + CHUNK), SIZE),
    "of another mode": (lambda path: path.chmod(0o777), SIZE),
    "with a second name": (lambda path: os.link(path, path.parent.parent.parent.parent.parent / "second"), 0),
    "a link": (_link, 0),
    "a pipe": (_pipe, 0),
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
    _hole(left(target, tree, saved) / "sub" / "weights")
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


def test_a_forked_child_keeps_no_lock(target: Path) -> None:
    target.mkdir()
    stage = make_stage(str(target))
    child_lives, parent_lives = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(parent_lives[1])
        os.write(child_lives[1], b".")
        os.read(parent_lives[0], 1)
        os._exit(0)
    try:
        os.read(child_lives[0], 1)
        stage.leave()
        (found,) = left_stages(str(target))
        found.remove()
    finally:
        for end in (*child_lives, *parent_lives):
            os.close(end)
        os.waitpid(child, 0)


def test_a_load_that_runs_keeps_its_private_directory(
    store: Store, saved: ModelArtifact, tree: Path, target: Path
) -> None:
    target.mkdir()
    running = make_stage(str(target))
    fill(running, tree)
    assert load(store, saved, target) == 0
    assert stages(target) == [Path(running.files).parent.name]
    assert {name: data for name, (data, _) in content(Path(running.files)).items()} == {
        name: data for name, (data, _) in content(tree).items()
    }
    # One thread of it still writes.
    with running.used():
        running.leave()
        assert list(left_stages(str(target))) == []
    (found,) = left_stages(str(target))
    assert found.files == running.files
    assert list(left_stages(str(target))) == []
    found.remove()
    assert stages(target) == []


def test_a_lock_that_another_load_has_removed_meanwhile_is_not_had(
    saved: ModelArtifact, tree: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = left(target, tree, saved).parent
    (lock,) = stage.glob("lock-*")
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        lock.unlink()
        lock.touch()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert list(left_stages(str(target))) == []


def test_many_loads_at_once_into_one_directory(
    store: Store, saved: ModelArtifact, tree: Path, target: Path, fresh: dict[str, tuple[bytes, int]]
) -> None:
    left(target, tree, saved)
    errors: list[BaseException] = []
    barrier = threading.Barrier(6)

    def run() -> None:
        barrier.wait()
        try:
            for _ in range(5):
                load(store, saved, target)
                (target / "sub" / "weights").unlink(missing_ok=True)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    load(store, saved, target)
    assert content(target) == fresh


def test_what_another_machine_may_have_left_is_not_touched(
    store: Store, saved: ModelArtifact, tree: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system is local, it was this machine, before it was started again."""
    monkeypatch.setattr(locks, "_kernel", lambda: "before")
    monkeypatch.setattr(locks, "_is_local", lambda path: True)
    left(target, tree, saved)
    monkeypatch.setattr(locks, "_kernel", lambda: "now")
    assert load(store, saved, target) == SIZE + PACKED
    shutil.rmtree(target)
    monkeypatch.setattr(locks, "_kernel", lambda: "another")
    monkeypatch.setattr(locks, "_is_local", lambda path: False)
    stage = left(target, tree, saved).parent
    monkeypatch.setattr(locks, "_kernel", lambda: "now")
    assert load(store, saved, target) == 0
    assert stages(target) == [stage.name]
    assert (stage / "files" / "sub" / "weights").read_bytes() == (tree / "sub" / "weights").read_bytes()


def test_without_locks_nothing_is_taken_over(
    store: Store, saved: ModelArtifact, tree: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        stage = left(target, tree, saved).parent
        assert os.listdir(stage) == ["files"]
        assert load(store, saved, target) == 0
        assert stages(target) == [stage.name]
    assert load(store, saved, target) == SIZE + PACKED
    assert stages(target) == [stage.name]


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
