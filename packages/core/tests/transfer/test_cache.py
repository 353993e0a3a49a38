"""The node's cache: what is wrong with it costs a fetch, and never a load."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metaflow_artifacts import ArtifactWarning, ModelArtifact, Store, check
from metaflow_artifacts._format.manifest import Chunk
from metaflow_artifacts._storage import LocalStorage
from metaflow_artifacts._transfer import cache as cache_module
from metaflow_artifacts._transfer.cache import CACHE, Cache
from metaflow_artifacts._transfer.cache_files import CacheFiles
from metaflow_artifacts._transfer.chunks import chunk_key
from metaflow_artifacts._transfer.current_engine import in_background
from metaflow_artifacts._transfer.progress import Progress

CHUNK = 64 << 10
CHUNKS = 4
SIZE = CHUNKS * CHUNK + 5
TOP = "metaflow_artifacts"


class CountingStorage(LocalStorage):
    """Counts how often each chunk is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.read: Counter[str] = Counter()
        self.seen = threading.Condition()

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        # It does not call `open`.
        self._count(key)
        return super().get(key, start, length)

    def open(self, key: str, start: int = 0, length: int | None = None) -> Any:
        self._count(key)
        return super().open(key, start, length)

    def _count(self, key: str) -> None:
        if "/chunks/" in key:
            with self.seen:
                self.read[key] += 1
                self.seen.notify_all()


@pytest.fixture
def storage(tmp_path: Path) -> CountingStorage:
    return CountingStorage(tmp_path / "store")


@pytest.fixture
def store(storage: CountingStorage, tmp_path: Path) -> Store:
    return Store(storage, chunk_size=CHUNK, cache=Cache(str(tmp_path / "cache"), 1 << 30))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    path.mkdir()
    (path / "weights").write_bytes(os.urandom(SIZE))
    for number in range(3):
        (path / f"{number}.txt").write_bytes(os.urandom(1000))
    return path


@pytest.fixture
def saved(store: Store, tree: Path) -> ModelArtifact:
    return store.save_model(tree)


@pytest.fixture
def load(
    store: Store, storage: CountingStorage, saved: ModelArtifact, tree: Path, tmp_path: Path
) -> Callable[..., tuple[int, int]]:
    """Load into a new directory, compare all, and return how many chunks were fetched, and the cached bytes."""
    targets = iter(range(100))

    def call(**options: Any) -> tuple[int, int]:
        storage.read.clear()
        progress = Progress()
        target = tmp_path / f"target{next(targets)}"
        store.load(saved, target, progress=progress, **options)
        assert progress.done == progress.total
        for path in target.iterdir():
            assert path.read_bytes() == (tree / path.name).read_bytes()
        assert options or len(os.listdir(target)) == len(os.listdir(tree))
        return storage.read.total(), progress.cached

    return call


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / TOP).iterdir())


def test_a_second_load_is_all_from_the_cache(load: Callable[..., tuple[int, int]], tmp_path: Path) -> None:
    fetched, cached = load()
    assert (fetched, cached) == (len(files(tmp_path)), 0)
    assert load() == (0, SIZE + 3000)


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def replace_by(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        path.unlink()
        make(path)

    return harm


HARMS: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
    "empty": lambda path: os.truncate(path, 0),
    "missing": os.unlink,
    "not readable": lambda path: path.chmod(0),
    "a fifo": replace_by(os.mkfifo),
    "a link": replace_by(lambda path: path.symlink_to("/etc/passwd")),
    "a link to itself": replace_by(lambda path: path.symlink_to(path)),
    "a directory": replace_by(os.mkdir),
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=list(HARMS))
def test_what_is_wrong_in_the_cache_is_fetched_and_replaced(
    harm: Callable[[Path], object], load: Callable[..., tuple[int, int]], tmp_path: Path
) -> None:
    load()
    before = files(tmp_path)
    for path in before[::2]:
        harm(path)
    fetched, cached = load()
    # Root can read what is not readable.
    assert fetched == len(before[::2]) or before[0].stat().st_mode & 0o777 == 0
    assert fetched + cached > 0
    assert files(tmp_path) == before
    if not before[0].is_dir():
        assert load() == (0, SIZE + 3000)


def test_a_part_of_a_pack_comes_from_the_cache_and_puts_nothing_there(
    load: Callable[..., tuple[int, int]], store: Store, saved: ModelArtifact, tree: Path, tmp_path: Path
) -> None:
    assert load(only="1.txt") == (1, 0)
    assert not (tmp_path / "cache").exists()
    load()
    assert load(only="1.txt") == (0, 1000)
    storage = store.storage
    assert isinstance(storage, CountingStorage)
    storage.read.clear()
    assert store.read_file(saved, "1.txt") == (tree / "1.txt").read_bytes()
    assert store.read_file(saved, "weights", CHUNK - 5, 10) == (tree / "weights").read_bytes()[CHUNK - 5 : CHUNK + 5]
    assert not storage.read
    for path in files(tmp_path):
        path.write_bytes(bytes(path.stat().st_size))
    assert load(only="1.txt") == (1, 0)
    for path in files(tmp_path):
        path.write_bytes(bytes(path.stat().st_size))
    assert store.read_file(saved, "weights", 1, 5) == (tree / "weights").read_bytes()[1:6]


def test_the_least_recently_used_goes_first(storage: CountingStorage, tmp_path: Path) -> None:
    size = 2 * CHUNK
    cache = Cache(str(tmp_path / "cache"), 8 * size)
    store = Store(storage, chunk_size=size, cache=cache)
    keys = []
    for _ in range(7):
        (tmp_path / "file").write_bytes(os.urandom(size))
        keys.append(store.save_model(tmp_path / "file"))
    for number, key in enumerate(keys):
        store.load(key, tmp_path / f"{number}")
        for path in files(tmp_path):
            # An hour ago, one after the other; what is used from now on is younger.
            os.utime(path, (path.stat().st_mtime - 3600,) * 2)
    store.load(keys[0], tmp_path / "again")
    used = {chunk.sha256 for chunk in cache.chunks()}
    for number in range(2):
        (tmp_path / "file").write_bytes(os.urandom(size))
        store.load(store.save_model(tmp_path / "file"), tmp_path / f"new{number}")
        assert sum(path.stat().st_size for path in files(tmp_path)) <= 8 * size
    first, second = (store.manifest(key).chunks[0].sha256 for key in keys[:2])
    left = {chunk.sha256 for chunk in cache.chunks()}
    assert {first, second} <= used
    assert first in left
    assert second not in left


def test_what_is_larger_than_the_limit_is_not_cached(
    load: Callable[..., tuple[int, int]], store: Store, tmp_path: Path
) -> None:
    store.cache = Cache(str(tmp_path / "cache"), CHUNK // 2)
    with pytest.warns(ArtifactWarning, match="larger than its limit of 32 KiB, such as one of 64 KiB; set") as warned:
        load()
    assert len(warned) == 1
    assert sum(path.stat().st_size for path in files(tmp_path)) < CHUNK


def test_a_load_gets_the_room_that_the_cache_takes(
    load: Callable[..., tuple[int, int]], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    load()
    monkeypatch.setattr(CacheFiles, "free", lambda files: (3 * CHUNK, 2 * SIZE))
    assert store.cache is not None
    with store.cache.beside(str(Path(store.root).parent), lambda: SIZE):
        held = sum(chunk.size for chunk in store.cache.chunks())
    assert held + SIZE <= SIZE + 3000 + 3 * CHUNK
    assert held


def fails(number: int) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EIO", "ENOENT"])
@pytest.mark.parametrize("name", ["write", "ftruncate", "mkdir", "rename", "statvfs", "scandir"])
def test_an_error_of_the_disk_never_fails_a_load(
    name: str, code: str, load: Callable[..., tuple[int, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cache").mkdir()
    original = getattr(os, name)
    inside = threading.local()

    def call(*args: Any, **options: Any) -> Any:
        # Only where the cache calls it.
        if getattr(inside, "depth", 0):
            raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
        return original(*args, **options)

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **options: Any) -> Any:
            inside.depth = getattr(inside, "depth", 0) + 1
            try:
                return method(*args, **options)
            finally:
                inside.depth -= 1

        return wrapper

    from metaflow_artifacts._transfer.cache_files import Part

    monkeypatch.setattr(os, name, call)
    for owner, methods in ((Part, ("restart", "write", "commit")), (CacheFiles, ("part", "size", "shrink", "free"))):
        for method in methods:
            monkeypatch.setattr(owner, method, counted(getattr(owner, method)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert load()[1] == 0
        assert load()[1] in (0, SIZE + 3000)
    ours = [str(one.message) for one in caught if one.category is ArtifactWarning]
    assert len(ours) <= 1
    assert all(CACHE in text and str(tmp_path / "cache") in text for text in ours)
    if name in ("write", "mkdir"):
        assert len(ours) == 1
        assert load()[0] > 0
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_somebody_removes_the_cache(load: Callable[..., tuple[int, int]], tmp_path: Path) -> None:
    load()
    shutil.rmtree(tmp_path / "cache")
    assert load()[1] == 0
    assert load() == (0, SIZE + 3000)


def test_a_chunk_that_another_process_fetches_is_waited_for(
    load: Callable[..., tuple[int, int]],
    store: Store,
    storage: CountingStorage,
    saved: ModelArtifact,
    tmp_path: Path,
) -> None:
    chunks = store.manifest(saved).chunks
    mine = chunks[0]
    part = CacheFiles(str(tmp_path / "cache")).part(mine.sha256)
    assert part is not None
    results: list[tuple[int, int]] = []
    thread = threading.Thread(target=lambda: results.append(load()))
    thread.start()
    with storage.seen:
        assert storage.seen.wait_for(lambda: storage.read.total() == len(chunks) - 1, 60)
    part.restart()
    part.write(memoryview(storage.get(chunk_key(mine.sha256))))
    part.commit(mine.sha256)
    part.close()
    thread.join(60)
    # One is the read above.
    assert results == [(len(chunks), mine.size)]
    assert not list((tmp_path / "cache").rglob("*.lock"))


def test_a_process_that_stalls_is_not_waited_for(
    load: Callable[..., tuple[int, int]],
    store: Store,
    saved: ModelArtifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache_module, "_PATIENCE_S", 0.0)
    chunks = store.manifest(saved).chunks
    part = CacheFiles(str(tmp_path / "cache")).part(chunks[0].sha256)
    assert part is not None
    assert load() == (len(chunks), 0)
    # What it left is nobody's as soon as its lock is free.
    part.restart()
    part.write(memoryview(b"cut"))
    part.forget()
    load()
    assert store.cache is not None
    store.cache.clear()
    assert files(tmp_path) == []


def test_patience_counts_from_the_last_growth(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path))
    part = CacheFiles(str(tmp_path)).part("0" * 64)
    assert part is not None
    part.restart()
    now = 0.0
    patience = cache_module.Patience(cache, lambda: now)
    chunk = Chunk("0" * 64, 50_000_000)
    assert not patience.is_over(chunk)
    now = 29
    part.write(memoryview(b"1"))
    assert not patience.is_over(chunk)
    now = 58
    assert not patience.is_over(chunk)
    now = 60
    assert patience.is_over(chunk)
    part.close()


def test_patience_has_an_end_where_a_chunk_grows_slowly(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path))
    part = CacheFiles(str(tmp_path)).part("0" * 64)
    assert part is not None
    part.restart()
    now = 0.0
    patience = cache_module.Patience(cache, lambda: now)
    chunk = Chunk("0" * 64, 20_000_000)
    while not patience.is_over(chunk):
        part.write(memoryview(b"1"))
        now += 1
        assert now < 60
    assert now > 50
    part.close()


def test_saves_in_the_background_fill_the_cache(
    store: Store, load: Callable[..., tuple[int, int]], tree: Path, tmp_path: Path
) -> None:
    assert not (tmp_path / "cache").exists()
    # Other content: what is stored already is not written again.
    for path in tree.iterdir():
        path.write_bytes(os.urandom(path.stat().st_size))
    store.save_model(tree)
    assert not (tmp_path / "cache").exists()
    for path in tree.iterdir():
        path.write_bytes(os.urandom(path.stat().st_size))
    with in_background():
        saved = store.save_model(tree)
    store.storage.delete(chunk_key(chunk.sha256) for chunk in store.manifest(saved).chunks)
    store.load(saved, tmp_path / "loaded")
    for path in tree.iterdir():
        assert (tmp_path / "loaded" / path.name).read_bytes() == path.read_bytes()


def test_check_and_the_store_do_not_see_the_cache(
    store: Store, load: Callable[..., tuple[int, int]], saved: ModelArtifact
) -> None:
    load()
    for chunk in store.manifest(saved).chunks:
        flip(Path(store.root) / chunk_key(chunk.sha256))
    assert len(check(store, read=True).problems) == len(store.manifest(saved).chunks)
    assert load()[0] == 0


def test_the_users_directory_says_who_shares_the_cache(load: Callable[..., tuple[int, int]], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o1777)
    before = os.umask(0o077)
    try:
        part = CacheFiles(str(cache)).part("0" * 64)
        load()
    finally:
        os.umask(before)
    assert part is not None
    assert stat.S_IMODE((cache / TOP).stat().st_mode) == 0o1777
    assert stat.S_IMODE((cache / TOP / ("0" * 64 + ".lock")).stat().st_mode) == 0o644
    part.close()
    assert {stat.S_IMODE(path.stat().st_mode) for path in files(tmp_path)} == {0o600}


@pytest.mark.parametrize(("kind", "plant"), [(".lock", HARMS["a link"]), (".part", HARMS["a directory"])])
def test_what_another_user_has_left_costs_one_chunk(
    kind: str,
    plant: Callable[[Path], object],
    load: Callable[..., tuple[int, int]],
    store: Store,
    saved: ModelArtifact,
    tmp_path: Path,
) -> None:
    chunk = store.manifest(saved).chunks[0]
    path = tmp_path / "cache" / TOP / f"{chunk.sha256}{kind}"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    plant(path)
    load()
    kept = kind == ".part"  # The part has another name, and the lock has not.
    assert load() == (0 if kept else 1, SIZE + 3000 - (0 if kept else chunk.size))
    cache_files = CacheFiles(str(tmp_path / "cache"))
    left, removed = cache_files.shrink(0)
    assert removed
    assert left == cache_files.size()


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    cache_files = CacheFiles(str(tmp_path))
    part = cache_files.part("0" * 64)
    assert part is not None
    part.restart()
    reader, writer = os.pipe()
    gate, end = os.pipe()
    child = os.fork()
    if not child:
        os.close(end)
        part.close()
        os.write(writer, b"x")
        os.read(gate, 1)
        os._exit(0)
    try:
        assert os.read(reader, 1) == b"x"
        assert (tmp_path / TOP / ("0" * 64 + ".part")).exists()
        assert cache_files.part("0" * 64) is None
        part.forget()  # as where the process is killed
        again = cache_files.part("0" * 64)
        assert again is not None
        again.close()
    finally:
        os.close(end)
        os.waitpid(child, 0)
        for fd in (reader, writer, gate):
            os.close(fd)


def test_a_lock_that_may_not_be_opened_yet_is_anothers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / TOP).mkdir()
    (tmp_path / TOP / ("0" * 64 + ".lock")).touch()
    opened = os.open

    def refuse(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if str(path).endswith(".lock"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", refuse)
    assert CacheFiles(str(tmp_path)).part("0" * 64) is None


def test_the_directory_is_seen_with_its_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_mode = os.fchmod
    calls = []

    def seen(fd: int, mode: int) -> None:
        calls.append((tmp_path / TOP).exists())
        set_mode(fd, mode)

    monkeypatch.setattr(os, "fchmod", seen)
    part = CacheFiles(str(tmp_path)).part("0" * 64)
    assert part is not None
    part.close()
    assert calls == [False, True]
    assert os.listdir(tmp_path) == [TOP]


def test_a_link_in_place_of_the_cache_is_not_followed(load: Callable[..., tuple[int, int]], tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache" / TOP).symlink_to(tmp_path / "elsewhere")
    with pytest.warns(ArtifactWarning, match="cannot be written to"):
        assert load()[1] == 0
    assert load()[1] == 0
    assert os.listdir(tmp_path / "elsewhere") == []
