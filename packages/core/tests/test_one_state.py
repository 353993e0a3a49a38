"""What is saved of each file is one state that it had during the save, whatever others do to it meanwhile."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metaflow_artifacts import SourceError, Store
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts._transfer import scan as scan_module
from metaflow_artifacts._transfer import source
from metaflow_artifacts._transfer.scan import SourceFile
from metaflow_artifacts._transfer.source import ROUNDS, OpenSource
from metaflow_artifacts.errors import ArtifactWarning

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
        real, left, lock = OpenSource.blocks, [times], threading.Lock()

        def blocks(self: OpenSource, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
            mine = self._file.location == str(path) and start == block * CHUNK
            for one in real(self, start, length, buffer[: CHUNK // 2]):
                yield one
                with lock:
                    now, left[0] = mine and left[0] > 0, left[0] - mine
                mine = False
                if now:
                    call()

        monkeypatch.setattr(OpenSource, "blocks", blocks)

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
    with pytest.raises(SourceError, match=rf"state.bin' was changed while it was saved, {ROUNDS} times in a row"):
        store.save_model(path.parent)
    assert len(calls) >= ROUNDS
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
    real, count = OpenSource._open, [0]

    def replace_and_open(self: OpenSource) -> None:
        if self._file.location == str(path):
            count[0] += 1
            replace(path, bytes([count[0]]) * (path.stat().st_size + 1))
        real(self)

    monkeypatch.setattr(OpenSource, "_open", replace_and_open)
    with pytest.raises(SourceError, match="was changed while it was saved"):
        store.save_model(path.parent)
    assert count[0] == ROUNDS


@pytest.mark.parametrize("path", ["inline", "packed"], indirect=True)
def test_many_files_that_change_once_are_read_again(
    store: Store, path: Path, tmp_path: Path, interfere: Callable[..., None]
) -> None:
    others = [path.parent / f"z{number}.bin" for number in range(2 * ROUNDS)]
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
    real, replaced = OpenSource.blocks, [False]

    def blocks(self: OpenSource, *part: Any) -> Iterator[memoryview]:
        yield from real(self, *part)
        if self._file.location == str(log):
            append(log, b"more")
            if not replaced[0]:
                replaced[0] = True
                replace(path, b"B" * 500)

    monkeypatch.setattr(OpenSource, "blocks", blocks)
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
    monkeypatch.setattr(source, "look_again", lambda file, source: file)
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
    real, begins = OpenSource.blocks, []

    def blocks(self: OpenSource, *part: Any) -> Iterator[memoryview]:
        if self._file.location == str(path):
            begins.append(clock.now_ns)
        return real(self, *part)

    monkeypatch.setattr(OpenSource, "blocks", blocks)
    saved_state(store, path, tmp_path)
    assert begins
    assert min(begins) >= last + 10_000_000


# --- Random changes by another thread.

PAGE = 4096


class Writer:
    """Changes files at random, and notes every state that each of them has had."""

    def __init__(self, directory: Path, steps: list[tuple[int, str, int]]) -> None:
        self.directory = directory
        self.states: dict[str, list[bytes]] = {}
        self._steps = steps
        self._count = 0
        for number in range(3):
            self._write(f"f{number}", self._content((number + 1) * 3 * PAGE))

    def _content(self, size: int) -> bytes:
        self._count += 1
        return (self._count.to_bytes(8, "big") * (size // 8 + 1))[:size]

    def _note(self, name: str, state: bytes) -> None:
        self.states.setdefault(name, []).append(state)

    def _write(self, name: str, content: bytes) -> None:
        # A state is noted before it is there: a save that sees it early is right.
        self._note(name, b"")
        with open(self.directory / name, "wb", buffering=0) as file:
            for start in range(0, len(content), PAGE):
                self._note(name, content[: start + PAGE])
                file.write(content[start : start + PAGE])

    def run(self) -> None:
        for number, what, pages in self._steps:
            getattr(self, what)(f"f{number}", pages)

    def replace(self, name: str, pages: int) -> None:
        content = self._content(pages * PAGE)
        self._note(name, content)
        temporary = self.directory.parent / "temporary"
        temporary.write_bytes(content)
        os.replace(temporary, self.directory / name)

    def rewrite(self, name: str, pages: int) -> None:
        path = self.directory / name
        if not path.exists():
            return
        old = path.read_bytes()
        new = self._content(len(old))
        with open(path, "r+b", buffering=0) as file:
            for start in range(0, len(old), PAGE):
                self._note(name, new[: start + PAGE] + old[start + PAGE :])
                file.write(new[start : start + PAGE])

    def truncate(self, name: str, pages: int) -> None:
        path = self.directory / name
        if path.exists():
            content = path.read_bytes()[: pages * 100]
            self._note(name, content)
            os.truncate(path, len(content))

    def append(self, name: str, pages: int) -> None:
        path = self.directory / name
        if path.exists():
            more = self._content(PAGE)
            self._note(name, path.read_bytes() + more)
            with open(path, "ab", buffering=0) as file:
                file.write(more)

    def link(self, name: str, pages: int) -> None:
        self._count += 1
        if (self.directory / name).exists():
            os.link(self.directory / name, self.directory.parent / f"link{self._count}")

    def remove(self, name: str, pages: int) -> None:
        (self.directory / name).unlink(missing_ok=True)

    def add(self, name: str, pages: int) -> None:
        self._write(name + ".new", self._content(pages * PAGE))


steps = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["replace", "rewrite", "rewrite", "truncate", "append", "link", "remove", "add"]),
        st.integers(1, 24),
    ),
    min_size=1,
    max_size=12,
)


def check_states(tmp_path: Path, number: int, steps: list[tuple[int, str, int]]) -> None:
    base = tmp_path / str(number)
    (base / "source").mkdir(parents=True)
    writer = Writer(base / "source", steps)
    store = Store(open_storage(base / "store"), chunk_size=4 * PAGE)
    thread = threading.Thread(target=writer.run)
    thread.start()
    try:
        for turn in range(4):
            try:
                reference = store.save_model(base / "source")
            except SourceError:
                continue
            out = base / f"out{turn}"
            store.load(reference, out)
            for file in out.iterdir():
                assert file.read_bytes() in writer.states[file.name], (turn, file.name)
    finally:
        thread.join()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_whatever_another_thread_does_each_file_is_one_of_its_states(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str, int]]
) -> None:
    check_states(tmp_path_factory.mktemp("states"), 0, steps)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_the_same_holds_where_file_times_move_every_4_ms(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str, int]]
) -> None:
    class Coarse:
        """The module `os`, on a kernel whose file times move by ticks of 4 ms."""

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def _coarse(self, status: os.stat_result) -> Any:
            fields = {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}
            for name in ("st_mtime_ns", "st_ctime_ns"):
                fields[name] -= fields[name] % 4_000_000
            return SimpleNamespace(**fields)

        def stat(self, path: Any) -> Any:
            return self._coarse(os.stat(path))

        def fstat(self, fd: int) -> Any:
            return self._coarse(os.fstat(fd))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "os", Coarse())
        patch.setattr(scan_module, "os", Coarse())
        check_states(tmp_path_factory.mktemp("states"), 0, steps)


# --- What is not saved.


def test_pipes_and_other_non_files_are_left_out_with_one_warning(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "source"
    root.mkdir()
    (root / "weights").write_bytes(b"w")
    os.mkfifo(root / "pipe")
    (root / "last.ckpt").symlink_to("gone")
    (root / "itself").symlink_to("itself")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(root / "socket"))
        with pytest.warns(ArtifactWarning) as caught:
            saved = store.save_model(root)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "last.ckpt' is a link to 'gone', which leads nowhere" in text
    assert "pipe' is a pipe" in text
    assert "socket' is a socket" in text
    assert "itself' is a link to 'itself', which leads nowhere" in text
    assert [file.path for file in store.manifest(saved).files] == ["weights"]


def test_what_a_killed_load_left_is_not_saved(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "source"
    (root / "sub" / ".metaflow_artifacts_abc").mkdir(parents=True)
    (root / ".metaflow_artifacts_x").mkdir()
    (root / ".metaflow_artifacts_x" / "half").write_bytes(b"half")
    (root / "sub" / ".metaflow_artifacts_abc" / "half").write_bytes(b"half")
    (root / "weights").write_bytes(b"w")
    manifest = store.manifest(store.save_model(root))
    assert [file.path for file in manifest.files] == ["weights"]
    assert list(manifest.dirs) == ["sub"]


def test_a_file_whose_name_begins_like_ours_is_saved(store: Store, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / ".metaflow_artifacts_config.json").write_text("{}")
    manifest = store.manifest(store.save_model(tmp_path / "source"))
    assert [file.path for file in manifest.files] == [".metaflow_artifacts_config.json"]


def test_a_directory_of_which_nothing_is_kept_is_saved_as_empty(store: Store, tmp_path: Path) -> None:
    for name in ("pipes", "links", "stages"):
        (tmp_path / "source" / name).mkdir(parents=True)
    os.mkfifo(tmp_path / "source" / "pipes" / "pipe")
    (tmp_path / "source" / "links" / "link").symlink_to("gone")
    (tmp_path / "source" / "stages" / ".metaflow_artifacts_x").mkdir()
    with pytest.warns(ArtifactWarning):
        saved = store.save_model(tmp_path / "source")
    assert list(store.manifest(saved).dirs) == ["links", "pipes", "stages"]


def test_warnings_that_are_errors_cost_no_save(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "source").mkdir()
    os.mkfifo(tmp_path / "source" / "pipe")
    # In these tests, every warning is an error.
    saved = store.save_model(tmp_path / "source", metadata={"when": object})
    assert store.info(saved)["key"] == saved["key"]
    assert "ArtifactWarning: saved" in capsys.readouterr().err


def test_links_that_lead_up_are_an_error_and_a_file_may_have_many_names(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "source"
    root.mkdir()
    (root / "a").write_bytes(b"x" * 1000)
    os.link(root / "a", root / "b")
    store.load(store.save_model(root), tmp_path / "out")
    assert (tmp_path / "out" / "a").read_bytes() == (tmp_path / "out" / "b").read_bytes() == b"x" * 1000
