"""Conformance: concurrent writers and readers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts.errors import StorageError
from metaflow_artifacts.testing._race import race_in_processes, race_in_threads
from metaflow_artifacts.testing._suite import Suite, read_blocks, stage
from metaflow_artifacts.testing._suite_names import ODD_KEYS

__all__ = ["RaceTests"]


class RaceTests(Suite):
    def test_put_if_absent_refuses_a_key_that_exists(self, storage: Storage) -> None:
        assert storage.put_if_absent("a/b", b"first") is True
        assert storage.put_if_absent("a/b", b"second") is False
        assert self.raw_get(storage, "a/b") == b"first"
        assert self.raw_keys(storage) == {"a/b"}
        storage.delete(["a/b"])
        assert storage.put_if_absent("a/b", b"") is True
        assert storage.put_if_absent("a/b", b"") is False

    def test_put_if_absent_refuses_a_large_object_that_exists(self, storage: Storage) -> None:
        data = b"0123456789abcdef" * (100 << 10)
        assert storage.put_if_absent("a", data) is True
        assert storage.put_if_absent("a", data[1:]) is False
        assert self.raw_get(storage, "a") == data

    @pytest.mark.parametrize("key", ODD_KEYS)
    def test_put_if_absent_refuses_odd_keys_that_exist(self, storage: Storage, key: str) -> None:
        assert storage.put_if_absent(key, b"first") is True
        assert storage.put_if_absent(key, b"second") is False
        assert self.raw_get(storage, key) == b"first"

    def test_require_put_if_absent_accepts_this_storage(self, storage: Storage) -> None:
        for _ in range(2):
            storage.require_put_if_absent()
            self.reopen(storage)().require_put_if_absent()
        assert self.raw_keys(storage) <= {"mf.artifacts/probe"}

    @pytest.mark.parametrize(("writers", "rounds"), [(2, 40), (20, 4)])
    def test_exactly_one_of_many_threads_wins(self, storage: Storage, writers: int, rounds: int) -> None:
        self.check_race(storage, race_in_threads(storage, "race", writers, rounds), rounds)

    @pytest.mark.parametrize(("processes", "threads", "rounds"), [(2, 1, 40), (4, 5, 4)])
    def test_exactly_one_of_many_processes_wins(
        self, storage: Storage, processes: int, threads: int, rounds: int
    ) -> None:
        wins = race_in_processes(self.reopen(storage), "race", processes, threads, rounds)
        self.check_race(storage, wins, rounds)

    def check_race(self, storage: Storage, wins: list[tuple[str, bytes]], rounds: int) -> None:
        """Exactly one writer of each key was told that it won, and what it wrote is there."""
        assert sorted(key for key, _ in wins) == sorted(f"race/{number}" for number in range(rounds))
        assert {key: self.raw_get(storage, key) for key, _ in wins} == dict(wins)
        assert self.raw_keys(storage) == {key for key, _ in wins}

    def test_many_writers_of_the_same_content_leave_one_object(self, storage: Storage) -> None:
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
                    # A reader may get an error because of the change, but never a mixture.
                    with suppress(StorageError):
                        assert b"".join(read_blocks(storage, "a", block=200_000)) in contents
                    info = storage.stat("a")
                    assert info is not None
                    assert info.size in {len(content) for content in contents}
            finally:
                writing.result()
