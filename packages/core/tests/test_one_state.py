"""What is saved of each file is one state that it had during the save, whatever others do to it meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faultlib.reading import after_reads, before_opening

from metaflow_artifacts import SourceError, Store
from metaflow_artifacts._transfer import source
from metaflow_artifacts._transfer.scan import SourceFile
from metaflow_artifacts._transfer.source import FILE_ATTEMPTS

CHUNK = 64 << 10  # of the fixture `store`
SIZES = {"inline": 1000, "packed": 1000, "large": 10 * CHUNK}
"""Bytes of the file that is changed. A packed one lies beside a large one, so that nothing is inline."""


@pytest.fixture(params=SIZES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    if request.param == "packed":
        (directory / "other.bin").write_bytes(os.urandom(2 * CHUNK))
        (directory / "beside.txt").write_bytes(b"beside")
    path = directory / "state.bin"
    path.write_bytes(b"A" * SIZES[request.param])
    os.utime(path, (1_700_000_000.5, 1_700_000_000.5))
    return path


@pytest.fixture
def interfere(monkeypatch: pytest.MonkeyPatch, path: Path) -> Callable[..., None]:
    """Arrange for a call once a block of the file was read, in the first `times` passes over it."""

    def arrange(call: Callable[[], None], *, block: int = 0, times: int = 1) -> None:
        left, lock = [times], threading.Lock()

        def read(offset: int) -> None:
            mine = offset == block * CHUNK
            with lock:
                now, left[0] = mine and left[0] > 0, left[0] - mine
            if now:
                call()

        after_reads(monkeypatch, path, read, CHUNK // 2)

    return arrange


def saved_state(store: Store, path: Path, tmp_path: Path) -> bytes:
    reference = store.save_model(path.parent)
    store.load(reference, tmp_path / "out")
    return (tmp_path / "out" / path.name).read_bytes()


def replace(path: Path, content: bytes) -> None:
    temporary = path.parent.parent / "temporary"
    temporary.write_bytes(content)
    os.replace(temporary, path)


def rewrite(path: Path, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.write(content)


def append(path: Path, content: bytes) -> None:
    with open(path, "ab") as file:
        file.write(content)


def test_a_file_that_is_replaced_is_saved_as_it_was_or_as_it_is(
    store: Store, path: Path, tmp_path: Path, interfere: Callable[..., None]
) -> None:
    before, after = path.read_bytes(), b"B" * (path.stat().st_size + 100)
    interfere(lambda: replace(path, after))
    assert saved_state(store, path, tmp_path) in (before, after)


def test_a_file_that_is_rewritten_in_place_is_read_again(
    store: Store, path: Path, tmp_path: Path, interfere: Callable[..., None]
) -> None:
    after = b"B" * path.stat().st_size
    interfere(lambda: rewrite(path, after))
    assert saved_state(store, path, tmp_path) == after


def test_a_rewrite_that_puts_the_old_times_back_is_seen(
    store: Store, path: Path, tmp_path: Path, interfere: Callable[..., None]
) -> None:
    after = b"B" * path.stat().st_size
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns

    def call() -> None:
        rewrite(path, after)
        os.utime(path, ns=times)

    interfere(call)
    assert saved_state(store, path, tmp_path) == after


def test_content_that_is_stored_already_is_read_with_the_same_care(
    store: Store, path: Path, tmp_path: Path, interfere: Callable[..., None]
) -> None:
    store.save_model(path.parent)
    after = b"B" * path.stat().st_size
    interfere(lambda: rewrite(path, after))
    assert saved_state(store, path, tmp_path) == after


def test_a_file_that_is_cut_short_is_read_again(
    store: Store, path: Path, tmp_path: Path, interfere: Callable[..., None]
) -> None:
    before = path.read_bytes()
    interfere(lambda: os.truncate(path, 10))
    assert saved_state(store, path, tmp_path) == before[:10]


def test_a_file_that_only_grows_is_saved_as_far_as_it_went(
    store: Store, path: Path, tmp_path: Path, interfere: Callable[..., None]
) -> None:
    before = path.read_bytes()
    interfere(lambda: append(path, b"more"), times=100)
    found = saved_state(store, path, tmp_path)
    assert found[: len(before)] == before
    assert set(found[len(before) :]) <= set(b"more")


def test_a_file_that_grows_and_is_rewritten_is_read_again(
    store: Store, path: Path, tmp_path: Path, interfere: Callable[..., None]
) -> None:
    after = b"B" * path.stat().st_size + b"more"
    interfere(lambda: rewrite(path, after))
    assert saved_state(store, path, tmp_path) == after


def test_another_name_for_a_file_changes_nothing(
    store: Store, path: Path, tmp_path: Path, interfere: Callable[..., None]
) -> None:
    before = path.read_bytes()
    opened: list[str] = []
    interfere(lambda: (os.link(path, tmp_path / "link"), opened.append("once")))
    assert saved_state(store, path, tmp_path) == before
    assert opened == ["once"]


def test_a_file_that_is_removed_is_saved_as_it_was(
    store: Store, path: Path, tmp_path: Path, interfere: Callable[..., None]
) -> None:
    before = path.read_bytes()
    interfere(path.unlink)
    assert saved_state(store, path, tmp_path) == before


def test_a_file_that_keeps_changing_is_an_error(
    store: Store, path: Path, tmp_path: Path, interfere: Callable[..., None]
) -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        rewrite(path, bytes([len(calls)]) * path.stat().st_size)

    interfere(call, times=1000)
    with pytest.raises(
        SourceError, match=rf"state.bin' was changed while it was saved, {FILE_ATTEMPTS} times in a row"
    ):
        store.save_model(path.parent)
    assert len(calls) >= FILE_ATTEMPTS
    assert list(store.list()) == []


@pytest.mark.parametrize("path", ["large"], indirect=True)
def test_a_change_behind_what_was_read_last_is_seen(
    store: Store, path: Path, tmp_path: Path, interfere: Callable[..., None]
) -> None:
    """The chunks of a large file are read in any order, and all of them are of one state."""
    after = b"B" * path.stat().st_size
    interfere(lambda: rewrite(path, after), block=9)
    assert saved_state(store, path, tmp_path) == after


@pytest.mark.parametrize("path", ["packed"], indirect=True)
def test_a_small_file_that_becomes_large_is_planned_again(
    store: Store, path: Path, tmp_path: Path, interfere: Callable[..., None]
) -> None:
    after = os.urandom(5 * CHUNK)
    interfere(lambda: rewrite(path, after))
    assert saved_state(store, path, tmp_path) in (b"A" * 1000, after)
    assert (tmp_path / "out" / "beside.txt").read_bytes() == b"beside"


@pytest.mark.parametrize("path", ["inline"], indirect=True)
def test_inline_content_that_becomes_large_is_stored_in_chunks(
    store: Store, path: Path, tmp_path: Path, interfere: Callable[..., None]
) -> None:
    after = os.urandom(5 * CHUNK)

    def call() -> None:
        path.write_bytes(after[:10])
        path.write_bytes(after)
        os.truncate(path, 20)
        rewrite(path, after)

    interfere(call)
    assert saved_state(store, path, tmp_path) in (b"A" * 1000, after)


def test_a_rewrite_beside_a_new_name_is_seen(
    store: Store, path: Path, tmp_path: Path, interfere: Callable[..., None]
) -> None:
    after = b"B" * path.stat().st_size

    def call() -> None:
        rewrite(path, after)
        os.link(path, tmp_path / "link")

    interfere(call)
    assert saved_state(store, path, tmp_path) == after


def test_a_log_that_is_also_rewritten_all_the_time_is_an_error(
    store: Store, path: Path, interfere: Callable[..., None]
) -> None:
    """That a file grows is no excuse for bytes that changed."""
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        rewrite(path, bytes([len(calls)]) * path.stat().st_size + b"more")

    interfere(call, times=1000)
    with pytest.raises(SourceError, match="was changed while it was saved"):
        store.save_model(path.parent)


def test_a_larger_file_that_replaces_it_is_not_mistaken_for_growth(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = [0]

    def replace_it() -> None:
        count[0] += 1
        replace(path, bytes([count[0]]) * (path.stat().st_size + 1))

    before_opening(monkeypatch, path, replace_it)
    with pytest.raises(SourceError, match="was changed while it was saved"):
        store.save_model(path.parent)
    assert count[0] == FILE_ATTEMPTS


@pytest.mark.parametrize("path", ["inline", "packed"], indirect=True)
def test_many_files_that_change_once_are_read_again(
    store: Store, path: Path, tmp_path: Path, interfere: Callable[..., None]
) -> None:
    others = [path.parent / f"z{number}.bin" for number in range(2 * FILE_ATTEMPTS)]
    for other in others:
        other.write_bytes(b"A" * 1000)
    interfere(lambda: [replace(other, b"B" * 1001) for other in others])
    saved_state(store, path, tmp_path)
    for other in others:
        assert (tmp_path / "out" / other.name).read_bytes() in (b"A" * 1000, b"B" * 1001)


@pytest.mark.parametrize("path", ["inline", "packed"], indirect=True)
def test_a_log_that_grows_costs_no_other_file_its_tries(
    store: Store, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In the same pack, before the other file.
    log = path.parent / "s.log"
    log.write_bytes(b"begin")
    replaced = [False]

    def read(offset: int) -> None:
        append(log, b"more")
        if not replaced[0]:
            replaced[0] = True
            replace(path, b"B" * 500)

    after_reads(monkeypatch, log, read)
    assert saved_state(store, path, tmp_path) == b"B" * 500
    assert (tmp_path / "out" / "s.log").read_bytes().startswith(b"begin")


@pytest.mark.parametrize("path", ["inline", "packed"], indirect=True)
def test_a_temporary_file_that_is_renamed_meanwhile_is_left_out(
    store: Store, path: Path, tmp_path: Path, interfere: Callable[..., None]
) -> None:
    """As a trainer does: `last.pt.tmp` is written, and takes the place of `last.pt`."""
    temporary = path.parent / "zz.tmp"
    temporary.write_bytes(b"T" * 700)
    interfere(lambda: os.replace(temporary, path))
    assert saved_state(store, path, tmp_path) in (b"A" * 1000, b"T" * 700)
    assert not (tmp_path / "out" / "zz.tmp").exists()


class FakeTime:
    """A clock that stands still but for `sleep`."""

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns

    def time_ns(self) -> int:
        return self.now_ns

    def monotonic(self) -> float:
        return self.now_ns / 1e9

    def sleep(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


class FrozenTimes:
    """The module `os`, on a kernel whose file times have not moved yet."""

    def __init__(self, ctime_ns: int) -> None:
        self.ctime_ns = ctime_ns

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fstat(self, fd: int) -> Any:
        status = os.fstat(fd)
        fields = {name: getattr(status, name) for name in ("st_size", "st_mode", "st_nlink", "st_ino")}
        return SimpleNamespace(**fields, st_mtime_ns=1_700_000_000_500_000_000, st_ctime_ns=self.ctime_ns)


@pytest.mark.parametrize("path", ["inline"], indirect=True)
def test_small_content_is_read_twice_where_a_write_would_not_move_the_time(
    store: Store, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interfere: Callable[..., None]
) -> None:
    monkeypatch.setattr(source, "os", FrozenTimes(path.stat().st_ctime_ns))
    monkeypatch.setattr(source, "time", FakeTime(1_700_000_000_504_000_000))
    monkeypatch.setattr(source, "look_again", lambda file: file)
    after = b"B" * path.stat().st_size
    interfere(lambda: rewrite(path, after))
    assert saved_state(store, path, tmp_path) == after


@pytest.mark.parametrize(("mtime_ns", "wait_ns"), [(500_000_000, 10_000_000), (0, 2_000_000_000)])
def test_nothing_large_is_read_before_every_write_would_move_the_time(
    monkeypatch: pytest.MonkeyPatch, mtime_ns: int, wait_ns: int
) -> None:
    """10 ms after the last change; 2 s where the file system seems to keep whole seconds."""
    last = 1_700_000_000_000_000_000 + mtime_ns
    file = SourceFile("a", "/nowhere/a", 1, 0o644, last, last, 1, 1)
    for begin in (last - 1_000_000, last, last + 3_000_000):
        clock = FakeTime(begin)
        monkeypatch.setattr(source, "time", clock)
        source.wait_for_tick([file])
        assert last + wait_ns <= clock.now_ns <= last + wait_ns + 4_000_000
    for begin in (last + wait_ns, last + 10**12, last - 10**12):
        clock = FakeTime(begin)
        monkeypatch.setattr(source, "time", clock)
        source.wait_for_tick([file])
        assert clock.now_ns == begin


@pytest.mark.parametrize("path", ["packed", "large"], indirect=True)
def test_chunks_are_read_when_every_write_would_move_the_time(
    store: Store, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = path.stat().st_mtime_ns
    clock = FakeTime(last + 1_000_000)
    monkeypatch.setattr(source, "time", clock)
    begins: list[int] = []
    before_opening(monkeypatch, path, lambda: begins.append(clock.now_ns))
    saved_state(store, path, tmp_path)
    assert begins
    assert min(begins) >= last + 10_000_000
