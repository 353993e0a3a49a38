"""Loads of few chunks read each of them in several ranges, before a real S3 server."""

from __future__ import annotations

import errno
import functools
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaflow_artifacts import Store
from metaflow_artifacts._format.manifest import Chunk
from metaflow_artifacts._format.plan import Segment
from metaflow_artifacts._storage import Reader, open_storage
from metaflow_artifacts._transfer import chunks, loading, split_reads
from metaflow_artifacts._transfer import engine as engines
from metaflow_artifacts._transfer.current_engine import engine
from metaflow_artifacts._transfer.engine import Engine, Group
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.split_reads import SplitReads, cut, most_ranges
from metaflow_artifacts._transfer.staging import left_stages
from metaflow_artifacts._transfer.target import seek
from metaflow_artifacts._transfer.width import Width, width_of
from metaflow_artifacts.errors import CorruptArtifact, StorageError, TransientStorageError
from metaflow_artifacts.testing.faults import Answer, Cut, Damage, Fault, FaultProxy, Request
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

KIB = 1 << 10
CHUNK = 64 * KIB


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_reads, "_SMALLEST_BYTES", 16 * KIB)


@pytest.fixture
def proxy(s3_server: SeaweedServer) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def store(s3_server: SeaweedServer, proxy: FaultProxy) -> Store:
    client = functools.partial(s3_server.client, endpoint_url=proxy.endpoint)
    return Store(open_storage(f"{s3_server.root}/{uuid4().hex}", client=client), chunk_size=CHUNK)


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def ranges_asked_for(proxy: FaultProxy) -> list[str]:
    return [request.headers.get("range", "all") for request in proxy.requests if "/chunks/" in request.path]


def ranges_of(first: int, last: int) -> list[str]:
    """In the order of their begins. The last one asks for a byte more than there is."""
    step = CHUNK // 4
    return [f"bytes={begin}-{begin + step - 1 + (begin + step == last)}" for begin in range(first, last, step)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    (path / "below").mkdir(parents=True)
    (path / "large").write_bytes(os.urandom(2 * CHUNK + 100))
    (path / "below/zeros").write_bytes(os.urandom(1000) + bytes(CHUNK - 2000) + os.urandom(1000))
    (path / "small").write_bytes(b"small")
    return path


def test_each_chunk_comes_over_several_connections(
    store: Store, proxy: FaultProxy, source: Path, tmp_path: Path
) -> None:
    key = store.save_model(source / "large")["key"]
    proxy.requests.clear()
    together = threading.Barrier(8, timeout=60)

    def plan(request: Request) -> Fault | None:
        if "range" in request.headers and "/chunks/" in request.path:
            together.wait()
        return None

    proxy.plan = plan
    store.load(key, tmp_path / "out")
    assert tree(tmp_path / "out") == {"large": (source / "large").read_bytes()}
    # The chunk of 100 bytes is asked for as a whole.
    assert sorted(ranges_asked_for(proxy)) == sorted([*2 * ranges_of(0, CHUNK), "all"])
    assert engine()._held == 0


def test_chunks_that_are_many_are_read_as_wholes(store: Store, proxy: FaultProxy, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(os.urandom(25 * CHUNK))
    key = store.save_model(tmp_path / "source")["key"]
    proxy.requests.clear()
    store.load(key, tmp_path / "out")
    assert set(ranges_asked_for(proxy)) == {"all"}


FAULTS: dict[str, tuple[Fault, int]] = {
    "damaged": (Damage(100), 1),
    "breaks off": (Cut(100), 1),
    "refused": (Answer(403, "AccessDenied"), 100),
    "gone": (Answer(404, "NoSuchKey"), 100),
}
"""Each with the number of requests that meet it."""


@pytest.mark.parametrize("begin", [0, CHUNK // 4, 3 * CHUNK // 4])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_range(
    store: Store, proxy: FaultProxy, source: Path, tmp_path: Path, begin: int, fault: str
) -> None:
    """Where it breaks off, the rest of it is read; else the chunk as a whole."""
    (source / "large").write_bytes(os.urandom(2 * CHUNK))
    key = store.save_model(source / "large")["key"]
    proxy.requests.clear()
    meets, times = FAULTS[fault]
    left, lock = [meets] * times, threading.Lock()

    def plan(request: Request) -> Fault | None:
        is_it = "/chunks/" in request.path and request.headers.get("range", "").startswith(f"bytes={begin}-")
        with lock:
            return left.pop() if is_it and left else None

    proxy.plan = plan
    store.load(key, tmp_path / "out")
    assert tree(tmp_path / "out") == {"large": (source / "large").read_bytes()}
    assert ("all" in ranges_asked_for(proxy)) == (fault != "breaks off")


@pytest.mark.parametrize("change", ["damaged", "longer", "shorter", "missing"])
def test_a_chunk_that_is_not_right_is_the_error_that_it_is_without_ranges(
    store: Store, source: Path, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = store.save_model(source / "large")["key"]
    name = next(info.key for info in store.storage.list("") if info.size == CHUNK)
    data = store.storage.get(name)
    if change == "missing":
        store.storage.delete([name])
    else:
        changed = {"damaged": data[:-1] + bytes([data[-1] ^ 1]), "longer": data + b"x", "shorter": data[: CHUNK // 2]}
        store.storage.put(name, changed[change])

    def message() -> str:
        with pytest.raises(CorruptArtifact) as raised:
            store.load(key, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(raised.value)

    found = message()
    monkeypatch.setattr(split_reads, "_SMALLEST_BYTES", CHUNK)
    assert found == message()


def test_what_fails_for_long_is_not_tried_again_as_a_whole(
    store: Store, proxy: FaultProxy, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = store.save_model(source / "large")["key"]
    monkeypatch.setattr(chunks, "RETRY_WINDOW_S", 0)
    proxy.requests.clear()

    @contextmanager
    def fails(*arguments: object) -> Iterator[Reader]:
        raise TransientStorageError("no answer; try again")
        yield

    with monkeypatch.context() as patched:
        patched.setattr(type(store.storage), "open", fails)
        with pytest.raises(StorageError, match="no answer"):
            store.load(key, tmp_path / "out")


def test_a_part_of_a_chunk_is_loaded_without_the_rest(store: Store, source: Path, tmp_path: Path) -> None:
    """The files beside it in the chunk are not written, so that ranges could not be read back."""
    key = store.save_model(source)["key"]
    for path in tree(source):
        target = tmp_path / uuid4().hex
        store.load(key, target, only=[path])
        assert tree(target) == {path: (source / path).read_bytes()}


def test_no_range_is_written_after_its_chunk_was_given_up() -> None:
    """Wrong bytes of a range that is late would be in the file, and nobody would know."""
    late, ends, order = threading.Event(), threading.Event(), []

    class Storage:
        @contextmanager
        def open(self, key: str, start: int, length: int) -> Iterator[Any]:
            if not start:
                assert late.wait(30)
                raise StorageError("refused")
            yield self

        def readinto(self, buffer: memoryview) -> int:
            return 1

    class Writer:
        def restart(self) -> None:
            pass

        def take(self, block: memoryview) -> None:
            late.set()
            assert ends.wait(30)
            order.append("written")

    width = Width(2)
    group = Group(Engine(most_threads=2), width)
    reads: Any = SplitReads(cast(Any, Storage()), group, 2, lambda parts: nullcontext(Writer()), lambda parts: iter(()))

    def load() -> None:
        assert not reads.read(Chunk("0" * 64, CHUNK), [Segment(0, 0, CHUNK)], Writer(), lambda block: None)
        order.append("read as a whole")

    thread = threading.Thread(target=group._engine.run, args=([(0, load)], width, group), daemon=True)
    thread.start()
    assert late.wait(30)
    thread.join(0.2)
    ends.set()
    thread.join(30)
    assert order == ["written", "read as a whole"]


@pytest.mark.parametrize(
    ("pieces", "ranges"), [(0, 1), (1, 32), (2, 16), (12, 3), (16, 2), (24, 2), (25, 1), (48, 1), (49, 0)]
)
def test_few_pieces_are_read_over_many_connections(pieces: int, ranges: int) -> None:
    assert most_ranges(pieces, 48) == ranges


PARTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(1, 50)), min_size=1, max_size=8)


@given(PARTS, st.integers(1, 9))
def test_ranges_are_all_bytes_in_order(found: list[tuple[int, int, int]], ranges: int) -> None:
    parts = [Segment(*part) for part in found]
    total = sum(part.length for part in parts)
    ranges = min(ranges, total)
    pieces = cut(parts, ranges)

    def positions(parts: list[Segment]) -> list[tuple[int, int]]:
        return [(part.file, byte) for part in parts for byte in range(part.start, part.start + part.length)]

    assert [at for piece in pieces for at in positions(piece)] == positions(parts)
    sizes = [len(positions(piece)) for piece in pieces]
    assert len(sizes) == ranges
    assert max(sizes) - min(sizes) <= 1


def test_a_range_keeps_the_private_directory_while_it_writes(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted load does not wait long for its threads. The same load, done again, takes what the first one has
    left, and what a late thread then writes there would be verified by nobody."""
    key = store.save_model(source / "large")["key"]
    target, caller = tmp_path / "out", threading.get_ident()
    target.mkdir()
    late, ends, written, holds = (threading.Event() for _ in range(4))

    def late_seek(file: Any, position: int) -> None:
        if position == CHUNK // 4:
            late.set()
            assert ends.wait(60)
            written.set()
        seek(file, position)

    def interrupt() -> None:
        # Only a directory that holds a chunk is left.
        assert late.wait(60)
        assert holds.wait(60)
        signal.pthread_kill(caller, signal.SIGINT)

    def note(progress: Progress) -> None:
        if progress.done:
            holds.set()

    monkeypatch.setattr(loading, "seek", late_seek)
    monkeypatch.setattr(engines, "_GRACE_S", 0.5)
    threading.Thread(target=interrupt, daemon=True).start()
    # A shell that starts the tests in the background has them ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            store.load(key, target, progress=Progress(note))
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(left_stages(str(target))) == []
    ends.set()
    assert written.wait(60)
    end = time.monotonic() + 60
    while not list(left_stages(str(target))):
        assert time.monotonic() < end


def test_a_chunk_that_the_stage_has_lost_is_read_as_a_whole(store: Store, proxy: FaultProxy, tmp_path: Path) -> None:
    """The calls that read ranges have come to their end by then."""
    content = os.urandom(CHUNK)
    (tmp_path / "source").mkdir()
    for name in "ab":
        (tmp_path / "source" / name).write_bytes(content)
    key = store.save_model(tmp_path / "source")["key"]
    proxy.requests.clear()

    def damage(progress: Progress) -> None:
        if progress.done == CHUNK:
            (file,) = (tmp_path / "out").glob(".metaflow_artifacts_*/files/?")
            file.write_bytes(bytes(CHUNK))

    store.load(key, tmp_path / "out", progress=Progress(damage))
    assert (tmp_path / "out/b").read_bytes() == content
    assert sorted(ranges_asked_for(proxy)) == sorted([*ranges_of(0, CHUNK), "all"])


def test_a_width_that_a_server_has_narrowed_is_forgotten_after_a_while(
    store: Store, proxy: FaultProxy, source: Path, tmp_path: Path
) -> None:
    """A load whose chunks are not split for that reason is a transfer too; else none would ever be split again."""
    key = store.save_model(source / "large")["key"]
    width = width_of(store.storage, "ranges")
    width.now, width._slowed = 1, time.monotonic() - 70
    proxy.requests.clear()
    store.load(key, tmp_path / "out")
    assert sorted(ranges_asked_for(proxy)) == sorted([*2 * ranges_of(0, CHUNK), "all"])


def test_ranges_that_cannot_be_read_back(
    store: Store, proxy: FaultProxy, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chunk as a whole need not be read back."""
    key = store.save_model(source / "large")["key"]

    def fails(*arguments: object, **options: object) -> None:
        # After a failure no further range is asked for.
        end = time.monotonic() + 60
        while sum(one != "all" for one in ranges_asked_for(proxy)) < 8 and time.monotonic() < end:
            time.sleep(0.01)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(loading, "open", fails, raising=False)
    proxy.requests.clear()
    store.load(key, tmp_path / "out")
    assert tree(tmp_path / "out") == {"large": (source / "large").read_bytes()}
    assert sorted(ranges_asked_for(proxy)) == sorted([*2 * ranges_of(0, CHUNK), *3 * ["all"]])
