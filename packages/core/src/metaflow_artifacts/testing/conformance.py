"""What every storage backend must do, as tests: a backend's own tests subclass `StorageConformance`.

```python
class TestMyStorage(StorageConformance):
    @pytest.fixture
    def storage(self, tmp_path):
        return MyStorage(tmp_path)

    def raw_put(self, storage, key, data): ...
    def raw_get(self, storage, key): ...
    def raw_keys(self, storage): ...
```

The raw hooks reach the objects past the backend, so that a fault in writing cannot hide behind the same fault in
reading. The tests need nothing but an empty storage each, and no order.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from metaflow_artifacts.errors import ArtifactNotFound, InvalidReference, StorageError
from metaflow_artifacts.storage.base import ObjectInfo, Storage
from metaflow_artifacts.testing._race import race_in_processes, race_in_threads

__all__ = ["HOSTILE_KEYS", "ODD_KEYS", "StorageConformance"]

HOSTILE_KEYS = [
    "",
    "/",
    "/etc/passwd",
    "../escaped",
    "a/../../escaped",
    "a/..",
    ".",
    "..",
    "./a",
    "a/./b",
    "a//b",
    "a/",
    "//a",
    "a\0b",
    "a\nb",
    "a\tb",
    "a\x7fb",
    "a\\b",
    "caf\u00e9",
    "\ud800",
    "a" * 256,
    "/".join(["a" * 100] * 9),
]
"""Keys that every operation of every storage refuses with InvalidReference, whatever lies in the storage."""

ODD_KEYS = [
    " ",
    "a b",
    " lead/trail ",
    "dot./.hidden/...",
    "a..b/..c/d..",
    "100%/%2e%2e/%00",
    "pl+us&amp;=?#",
    "q'u\"o`te",
    "<tag>|{a}[b]^~",
    "a:b,c;d@e!f$g*(h)",
    "-rf",
    "UPPER/upper",
    "l" * 255,
    "/".join(["d" * 70] * 11),
]
"""Keys that look dangerous and are not: every storage carries them as they are."""


class StorageConformance:
    """Subclass it, give the fixture and the three hooks, and run it under pytest."""

    many = 10_000
    """How many objects the listing of many makes; more than the backend lists in one request."""

    verifies_digests = False
    """Whether a staged object whose digest is wrong is refused."""

    @pytest.fixture
    def storage(self) -> Storage:
        """An empty storage, of a root that no other test has."""
        raise NotImplementedError

    def raw_put(self, storage: Storage, key: str, data: bytes) -> None:
        """Write an object without the storage."""
        raise NotImplementedError

    def raw_get(self, storage: Storage, key: str) -> bytes | None:
        """Read an object without the storage; None where there is none."""
        raise NotImplementedError

    def raw_keys(self, storage: Storage) -> set[str]:
        """The keys of all that lies below the root, temporary objects too, without the storage."""
        raise NotImplementedError

    def reopen(self, storage: Storage) -> Callable[[], Storage]:
        """A function that opens the same root in another process; it is pickled."""
        raise NotImplementedError

    # Writing and reading

    def test_put_writes_the_object_itself(self, storage: Storage) -> None:
        storage.put("a/b", b"content")
        assert self.raw_get(storage, "a/b") == b"content"
        assert self.raw_keys(storage) == {"a/b"}

    def test_get_reads_what_lies_there(self, storage: Storage) -> None:
        self.raw_put(storage, "a/b", b"content")
        assert storage.get("a/b") == b"content"

    def test_put_replaces(self, storage: Storage) -> None:
        self.raw_put(storage, "a/b", b"a longer one")
        storage.put("a/b", b"new")
        assert self.raw_get(storage, "a/b") == b"new"

    def test_empty_object(self, storage: Storage) -> None:
        storage.put("a/empty", b"")
        assert self.raw_get(storage, "a/empty") == b""
        assert storage.get("a/empty") == b""
        assert storage.get("a/empty", 0, 10) == b""
        assert read_blocks(storage, "a/empty") == [b""]
        info = storage.stat("a/empty")
        assert info is not None
        assert info.size == 0
        assert [found.key for found in storage.list("")] == ["a/empty"]

    def test_missing_object(self, storage: Storage) -> None:
        storage.put("a/b", b"")
        for key in ("a/c", "c", "a/b2", "a"):
            with pytest.raises(ArtifactNotFound, match=key):
                storage.get(key)
            with pytest.raises(ArtifactNotFound, match=key):
                storage.get(key, 1, 2)
            with pytest.raises(ArtifactNotFound, match=key):
                storage.get(key, 0, 0)
            with pytest.raises(ArtifactNotFound, match=key):
                read_blocks(storage, key)
            assert storage.stat(key) is None
            assert storage.touch(key) is False

    @pytest.mark.parametrize(
        ("start", "length"),
        [(0, None), (0, 0), (0, 1), (0, 26), (0, 99), (5, None), (5, 0), (5, 3), (25, 1), (25, 9), (26, None), (99, 5)],
    )
    def test_ranges(self, storage: Storage, start: int, length: int | None) -> None:
        data = b"abcdefghijklmnopqrstuvwxyz"
        self.raw_put(storage, "alphabet", data)
        wanted = data[start:] if length is None else data[start : start + length]
        assert storage.get("alphabet", start, length) == wanted
        assert b"".join(read_blocks(storage, "alphabet", start, length, block=7)) == wanted

    def test_negative_ranges_are_refused(self, storage: Storage) -> None:
        self.raw_put(storage, "a", b"content")
        for start, length in ((-1, None), (0, -1)):
            with pytest.raises(InvalidReference):
                storage.get("a", start, length)
            with pytest.raises(InvalidReference):
                read_blocks(storage, "a", start, length)

    def test_large_object_in_blocks(self, storage: Storage) -> None:
        data = hashlib.sha256(b"seed").digest() * (600 << 10) + b"odd"
        with storage.stage(1 << 20) as staged:
            for at in range(0, len(data), 1_000_003):
                staged.write(memoryview(data)[at : at + 1_000_003])
            staged.commit("large", hashlib.sha256(data).digest())
        assert self.raw_get(storage, "large") == data
        blocks = read_blocks(storage, "large", block=1 << 20)
        assert b"".join(blocks) == data
        assert [len(block) for block in blocks[:-2]] == [1 << 20] * (len(blocks) - 2)
        assert (
            b"".join(read_blocks(storage, "large", 12_345_678, 3_000_000)) == data[12_345_678 : 12_345_678 + 3_000_000]
        )

    def test_reading_only_the_beginning(self, storage: Storage) -> None:
        self.raw_put(storage, "large", b"x" * (8 << 20))
        for _ in range(3):
            with storage.open("large") as reader:
                block = memoryview(bytearray(10))
                assert reader.readinto(block) == 10
        assert storage.get("large", 0, 3) == b"xxx"

    # Staging

    def test_staged_object_appears_at_the_commit(self, storage: Storage) -> None:
        with storage.stage(6) as staged:
            staged.write(memoryview(b"con"))
            staged.write(memoryview(b"tent"))
            assert list(storage.list("")) == []
            assert storage.stat("a/b") is None
            staged.commit("a/b", hashlib.sha256(b"content").digest())
            assert self.raw_get(storage, "a/b") == b"content"
        assert self.raw_keys(storage) == {"a/b"}

    def test_staged_block_is_taken_before_write_returns(self, storage: Storage) -> None:
        block = bytearray(b"first")
        with storage.stage(10) as staged:
            staged.write(memoryview(block))
            block[:] = b"later"
            staged.write(memoryview(block))
            staged.commit("a", hashlib.sha256(b"firstlater").digest())
        assert self.raw_get(storage, "a") == b"firstlater"

    def test_stage_without_commit_leaves_nothing(self, storage: Storage) -> None:
        storage.put("other", b"")
        with storage.stage(7) as staged:
            staged.write(memoryview(b"content"))
        with suppress(ZeroDivisionError), storage.stage(7) as staged:
            staged.write(memoryview(b"content"))
            raise ZeroDivisionError
        assert self.raw_keys(storage) == {"other"}

    def test_commit_replaces(self, storage: Storage) -> None:
        self.raw_put(storage, "a/b", b"older and longer")
        with storage.stage(3) as staged:
            staged.write(memoryview(b"new"))
            staged.commit("a/b", hashlib.sha256(b"new").digest())
        assert self.raw_get(storage, "a/b") == b"new"

    def test_commit_of_nothing(self, storage: Storage) -> None:
        with storage.stage(0) as staged:
            staged.commit("a/b", hashlib.sha256(b"").digest())
        assert self.raw_get(storage, "a/b") == b""

    def test_stages_beside_and_after_each_other(self, storage: Storage) -> None:
        with storage.stage(5) as first, storage.stage(5) as second:
            first.write(memoryview(b"first"))
            second.write(memoryview(b"second"))
            first.commit("first", hashlib.sha256(b"first").digest())
            second.commit("second", hashlib.sha256(b"second").digest())
        with storage.stage(3) as third:
            third.write(memoryview(b"3rd"))
            third.commit("third", hashlib.sha256(b"3rd").digest())
        assert {key: self.raw_get(storage, key) for key in self.raw_keys(storage)} == {
            "first": b"first",
            "second": b"second",
            "third": b"3rd",
        }

    def test_digest_on_the_way(self, storage: Storage) -> None:
        if not self.verifies_digests:
            return
        for size in (10, 1 << 20):
            with storage.stage(size) as staged:
                staged.write(memoryview(b"x" * size))
                with pytest.raises(StorageError, match="changed on its way"):
                    staged.commit("a/b", hashlib.sha256(b"something else").digest())
        assert self.raw_keys(storage) == set()

    # Times, deletion

    def test_stat(self, storage: Storage) -> None:
        # S3 cuts its times to whole seconds; clocks of servers are not this machine's.
        before = time.time() - 60
        storage.put("a/b", b"content")
        info = storage.stat("a/b")
        assert info is not None
        assert (info.key, info.size) == ("a/b", 7)
        assert before < info.modified < time.time() + 60
        assert list(storage.list("a/")) == [pytest_info(info)]

    def test_touch_renews_the_time_and_nothing_else(self, storage: Storage) -> None:
        for key, data in (("small", b"content"), ("large", b"0123456789abcdef" * (1 << 20)), ("empty", b"")):
            storage.put(key, data)
            first = storage.stat(key)
            assert first is not None
            deadline = time.monotonic() + 30
            modified = first.modified
            while modified <= first.modified and time.monotonic() < deadline:
                time.sleep(0.2)
                assert storage.touch(key) is True
                second = storage.stat(key)
                assert second is not None
                assert second.size == first.size
                modified = second.modified
            assert modified > first.modified
            assert self.raw_get(storage, key) == data

    def test_delete(self, storage: Storage) -> None:
        for key in ("a/1", "a/2", "a/3", "b"):
            self.raw_put(storage, key, b"x")
        storage.delete(["a/1", "a/3", "never", "a/never", "a"])
        assert self.raw_keys(storage) == {"a/2", "b"}
        storage.delete([])
        storage.delete(iter(["a/2", "a/2"]))
        assert self.raw_keys(storage) == {"b"}
        assert storage.stat("a/2") is None
        storage.put("a/2", b"again")
        assert self.raw_get(storage, "a/2") == b"again"

    # Listing

    def test_list_by_prefix(self, storage: Storage) -> None:
        keys = {"a", "ab/1", "ab/12", "ab/2/x", "ab/2/y", "abc/1", "b/ab"}
        for key in keys:
            # A disk cannot hold both `a` and `a/b`, and no two keys of the store are so.
            self.raw_put(storage, key, key.encode())
        for prefix in (
            "",
            "a",
            "ab",
            "ab/",
            "ab/1",
            "ab/12",
            "ab/2",
            "ab/2/",
            "ab/2/x",
            "abc",
            "b/a",
            "c",
            "ab/3/",
            "ab/12/",
        ):
            found = list(storage.list(prefix))
            assert sorted(info.key for info in found) == sorted(key for key in keys if key.startswith(prefix))
            assert all(info.size == len(info.key) and info.modified > 0 for info in found)

    def test_list_of_an_empty_root(self, storage: Storage) -> None:
        assert list(storage.list("")) == []
        assert list(storage.list("a/b")) == []
        assert list(storage.leftovers()) == []

    def test_list_does_not_show_temporary_objects(self, storage: Storage) -> None:
        storage.put("mf.artifacts/x", b"")
        with storage.stage(4) as staged:
            staged.write(memoryview(b"half"))
            for prefix in ("", "mf.artifacts/", "mf.artifacts/t", "mf.artifacts/tmp/"):
                assert {info.key for info in storage.list(prefix)} <= {"mf.artifacts/x"}
            leftovers = [info.key for info in storage.leftovers()]
            assert len(leftovers) == (0 if storage.stages_in_memory else 1)
        assert list(storage.leftovers()) == []

    def test_leftovers_can_be_deleted(self, storage: Storage) -> None:
        with storage.stage(4) as staged:
            staged.write(memoryview(b"half"))
            storage.delete([info.key for info in storage.leftovers()])
            assert list(storage.leftovers()) == []

    def test_list_and_delete_many(self, storage: Storage) -> None:
        keys = {f"many/{number:05}" for number in range(self.many)}
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: self.raw_put(storage, key, b"x"), keys))
        found = list(storage.list("many/"))
        assert len(found) == len(keys)
        assert {info.key for info in found} == keys
        storage.delete(info.key for info in found)
        assert self.raw_keys(storage) == set()

    def test_listing_while_objects_go(self, storage: Storage) -> None:
        for number in range(20):
            self.raw_put(storage, f"a/{number}", b"x")
        stay = {f"a/{number}" for number in range(0, 20, 2)}
        listing = storage.list("a/")
        seen = {next(listing).key}
        storage.delete(f"a/{number}" for number in range(1, 20, 2))
        seen |= {info.key for info in listing}
        assert stay <= seen

    # Keys

    @pytest.mark.parametrize("key", HOSTILE_KEYS, ids=ascii)
    def test_hostile_keys(self, storage: Storage, key: str) -> None:
        storage.put("a/keep", b"content")
        calls: list[Callable[[], Any]] = [
            lambda: storage.put(key, b"x"),
            lambda: storage.put_if_absent(key, b"x"),
            lambda: storage.get(key),
            lambda: read_blocks(storage, key),
            lambda: stage(storage, key, b"x"),
            lambda: storage.stat(key),
            lambda: storage.touch(key),
            lambda: storage.delete(["a/never", key]),
        ]
        for call in calls:
            with pytest.raises(InvalidReference) as caught:
                call()
            assert len(str(caught.value).splitlines()) == 1
        assert self.raw_keys(storage) == {"a/keep"}

    @pytest.mark.parametrize(
        "prefix", ["/", "//", "../", "a/../", "a//", "./", "a/./", "a\0", "\n", "caf\u00e9"], ids=ascii
    )
    def test_hostile_prefixes(self, storage: Storage, prefix: str) -> None:
        with pytest.raises(InvalidReference):
            list(storage.list(prefix))

    def test_nothing_is_written_among_temporary_objects(self, storage: Storage) -> None:
        calls: list[Callable[[], Any]] = [
            lambda: storage.put("mf.artifacts/tmp/x", b"x"),
            lambda: storage.put_if_absent("mf.artifacts/tmp/x", b"x"),
            lambda: stage(storage, "mf.artifacts/tmp/x", b"x"),
        ]
        for call in calls:
            with pytest.raises(InvalidReference, match="temporary"):
                call()
        assert self.raw_keys(storage) == set()

    @pytest.mark.parametrize("key", ODD_KEYS)
    def test_odd_keys(self, storage: Storage, key: str) -> None:
        storage.put(key, key.encode())
        assert self.raw_keys(storage) == {key}
        assert self.raw_get(storage, key) == key.encode()
        assert storage.get(key) == key.encode()
        assert storage.put_if_absent(key, b"") is False
        assert storage.touch(key) is True
        stage(storage, key, b"staged")
        assert [(info.key, info.size) for info in storage.list("")] == [(key, 6)]
        assert [info.key for info in storage.list(key)] == [key]
        storage.delete([key])
        assert self.raw_keys(storage) == set()

    def test_url_of_a_key(self, storage: Storage) -> None:
        assert storage.url("a/b") == f"{storage.root}/a/b"
        assert not storage.root.endswith("/")

    # Writers at once

    def test_put_if_absent(self, storage: Storage) -> None:
        assert storage.put_if_absent("a/b", b"first") is True
        assert storage.put_if_absent("a/b", b"second") is False
        assert self.raw_get(storage, "a/b") == b"first"
        assert self.raw_keys(storage) == {"a/b"}
        storage.delete(["a/b"])
        assert storage.put_if_absent("a/b", b"") is True
        assert storage.put_if_absent("a/b", b"") is False

    def test_put_if_absent_of_a_large_object(self, storage: Storage) -> None:
        data = b"0123456789abcdef" * (100 << 10)
        assert storage.put_if_absent("a", data) is True
        assert storage.put_if_absent("a", data[1:]) is False
        assert self.raw_get(storage, "a") == data

    @pytest.mark.parametrize(("writers", "rounds"), [(2, 40), (20, 4)])
    def test_one_of_many_threads_wins(self, storage: Storage, writers: int, rounds: int) -> None:
        self.check_race(storage, race_in_threads(storage, "race", writers, rounds), rounds)

    @pytest.mark.parametrize(("processes", "threads", "rounds"), [(2, 1, 40), (4, 5, 4)])
    def test_one_of_many_processes_wins(self, storage: Storage, processes: int, threads: int, rounds: int) -> None:
        wins = race_in_processes(self.reopen(storage), "race", processes, threads, rounds)
        self.check_race(storage, wins, rounds)

    def check_race(self, storage: Storage, wins: list[tuple[str, bytes]], rounds: int) -> None:
        """Exactly one writer of each key was told that it won, and what it wrote is there."""
        assert sorted(key for key, _ in wins) == sorted(f"race/{number}" for number in range(rounds))
        assert {key: self.raw_get(storage, key) for key, _ in wins} == dict(wins)
        assert self.raw_keys(storage) == {key for key, _ in wins}

    def test_many_writers_of_the_same_content(self, storage: Storage) -> None:
        data = b"content" * 100_000
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: stage(storage, "a/b/c", data), range(32)))
        assert self.raw_get(storage, "a/b/c") == data
        assert self.raw_keys(storage) == {"a/b/c"}

    def test_readers_see_whole_objects(self, storage: Storage) -> None:
        size = 3 << 20
        contents = [bytes([65 + number]) * (size + number) for number in range(4)]
        storage.put("a", contents[0])
        stop = threading.Event()

        def write() -> None:
            for number in range(24):
                if number % 2:
                    storage.put("a", contents[number % 4])
                else:
                    stage(storage, "a", contents[number % 4])
            stop.set()

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            try:
                while not stop.is_set() and not writing.done():
                    assert storage.get("a") in contents
                    # A reader that is told of the change must begin again; it never gets both.
                    with suppress(StorageError):
                        assert b"".join(read_blocks(storage, "a", block=200_000)) in contents
                    info = storage.stat("a")
                    assert info is not None
                    assert info.size in {len(content) for content in contents}
            finally:
                writing.result()


def pytest_info(info: ObjectInfo) -> Any:
    """An ObjectInfo that equals one of the same object, whose time may be given more or less exactly."""
    return _SameObject(info)


class _SameObject:
    def __init__(self, info: ObjectInfo) -> None:
        self.info = info

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ObjectInfo)
            and (other.key, other.size) == (self.info.key, self.info.size)
            and abs(other.modified - self.info.modified) < 1
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"about {self.info}"


def read_blocks(
    storage: Storage, key: str, start: int = 0, length: int | None = None, block: int = 1 << 20
) -> list[bytes]:
    """An object, or a range of it, as `open` gives it: block by block, the last one empty."""

    def blocks() -> Iterator[bytes]:
        buffer = memoryview(bytearray(block))
        with storage.open(key, start, length) as reader:
            while count := reader.readinto(buffer):
                yield bytes(buffer[:count])
            yield b""

    return list(blocks())


def stage(storage: Storage, key: str, data: bytes) -> None:
    """Write an object by way of `stage`."""
    with storage.stage(len(data)) as staged:
        staged.write(memoryview(data))
        staged.commit(key, hashlib.sha256(data).digest())
