"""Conformance: keys and listings."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts.errors import InvalidReference
from metaflow_artifacts.testing._suite import Suite, read_blocks, stage

__all__ = ["HOSTILE_KEYS", "ODD_KEYS", "NameTests", "RefusalTests"]

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
"""Keys that every operation of every storage refuses with InvalidReference, whatever the storage contains."""

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
"""Keys that look dangerous and are allowed: every storage stores them unchanged."""


class NameTests(Suite):
    def test_list_finds_the_keys_with_the_prefix(self, storage: Storage) -> None:
        keys = {"a", "ab/1", "ab/12", "ab/2/x", "ab/2/y", "abc/1", "b/ab"}
        for key in keys:
            # A disk cannot hold both `a` and `a/b`. No key of the store is a prefix of another in this way.
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

    def test_list_of_an_empty_root_is_empty(self, storage: Storage) -> None:
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

    def test_list_and_delete_find_all_of_many_objects(self, storage: Storage) -> None:
        keys = {f"many/{number:05}" for number in range(self.many)}
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: self.raw_put(storage, key, b"x"), keys))
        found = list(storage.list("many/"))
        assert len(found) == len(keys)
        assert {info.key for info in found} == keys
        storage.delete(info.key for info in found)
        assert self.raw_keys(storage) == set()

    def test_list_finds_all_objects_that_stay_while_others_are_deleted(self, storage: Storage) -> None:
        for number in range(20):
            self.raw_put(storage, f"a/{number}", b"x")
        stay = {f"a/{number}" for number in range(0, 20, 2)}
        listing = storage.list("a/")
        seen = {next(listing).key}
        storage.delete(f"a/{number}" for number in range(1, 20, 2))
        seen |= {info.key for info in listing}
        assert stay <= seen

    @pytest.mark.parametrize("key", ODD_KEYS)
    def test_odd_keys_are_stored_unchanged(self, storage: Storage, key: str) -> None:
        storage.put(key, key.encode())
        assert self.raw_keys(storage) == {key}
        assert self.raw_get(storage, key) == key.encode()
        assert storage.get(key) == key.encode()
        assert storage.touch(key) is True
        stage(storage, key, b"staged")
        assert [(info.key, info.size) for info in storage.list("")] == [(key, 6)]
        assert [info.key for info in storage.list(key)] == [key]
        storage.delete([key])
        assert self.raw_keys(storage) == set()

    def test_url_is_the_root_and_the_key(self, storage: Storage) -> None:
        assert storage.url("a/b") == f"{storage.root}/a/b"
        assert not storage.root.endswith("/")


class RefusalTests(Suite):
    """Keys that no storage accepts. They are never sent to a server, so one backend of each kind is enough."""

    @pytest.mark.parametrize("key", HOSTILE_KEYS, ids=ascii)
    def test_hostile_keys_are_refused(self, storage: Storage, key: str) -> None:
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
    def test_hostile_prefixes_are_refused(self, storage: Storage, prefix: str) -> None:
        with pytest.raises(InvalidReference):
            list(storage.list(prefix))

    def test_keys_of_temporary_objects_are_not_written(self, storage: Storage) -> None:
        calls: list[Callable[[], Any]] = [
            lambda: storage.put("mf.artifacts/tmp/x", b"x"),
            lambda: storage.put_if_absent("mf.artifacts/tmp/x", b"x"),
            lambda: stage(storage, "mf.artifacts/tmp/x", b"x"),
        ]
        for call in calls:
            with pytest.raises(InvalidReference, match="temporary"):
                call()
        assert self.raw_keys(storage) == set()
