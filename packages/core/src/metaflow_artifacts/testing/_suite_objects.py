"""Conformance: writing, reading, staging, times and deletion of one object."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator
from contextlib import suppress

import pytest

from metaflow_artifacts._storage.base import CopyOutcome, Storage
from metaflow_artifacts._storage.outgoing import ContentChanged
from metaflow_artifacts.errors import ArtifactNotFound, InvalidInput, StorageError
from metaflow_artifacts.testing._suite import Suite, about, in_blocks, read_blocks

__all__ = ["ObjectTests"]


class ObjectTests(Suite):
    def test_put_writes_the_object_itself(self, storage: Storage) -> None:
        storage.put("a/b", b"content")
        assert self.raw_get(storage, "a/b") == b"content"
        assert self.raw_keys(storage) == {"a/b"}

    def test_get_reads_what_is_stored(self, storage: Storage) -> None:
        self.raw_put(storage, "a/b", b"content")
        assert storage.get("a/b") == b"content"

    def test_put_replaces(self, storage: Storage) -> None:
        self.raw_put(storage, "a/b", b"a longer one")
        storage.put("a/b", b"new")
        assert self.raw_get(storage, "a/b") == b"new"

    def test_an_empty_object_can_be_read_and_listed(self, storage: Storage) -> None:
        storage.put("a/empty", b"")
        assert self.raw_get(storage, "a/empty") == b""
        assert storage.get("a/empty") == b""
        assert storage.get("a/empty", 0, 10) == b""
        assert read_blocks(storage, "a/empty") == [b""]
        info = storage.stat("a/empty")
        assert info is not None
        assert info.size == 0
        assert [found.key for found in storage.list("")] == ["a/empty"]

    def test_a_missing_object_is_not_found(self, storage: Storage) -> None:
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
    def test_ranges_end_with_the_object(self, storage: Storage, start: int, length: int | None) -> None:
        data = b"abcdefghijklmnopqrstuvwxyz"
        self.raw_put(storage, "alphabet", data)
        wanted = data[start:] if length is None else data[start : start + length]
        assert storage.get("alphabet", start, length) == wanted
        assert b"".join(read_blocks(storage, "alphabet", start, length, block=7)) == wanted

    def test_negative_ranges_are_refused(self, storage: Storage) -> None:
        self.raw_put(storage, "a", b"content")
        for start, length in ((-1, None), (0, -1)):
            with pytest.raises(InvalidInput):
                storage.get("a", start, length)
            with pytest.raises(InvalidInput):
                read_blocks(storage, "a", start, length)

    def test_a_large_object_is_read_in_blocks(self, storage: Storage) -> None:
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

    def test_a_reader_may_stop_after_the_beginning(self, storage: Storage) -> None:
        self.raw_put(storage, "large", b"x" * (8 << 20))
        for _ in range(3):
            with storage.open("large") as reader:
                block = memoryview(bytearray(10))
                assert reader.readinto(block) == 10
        assert storage.get("large", 0, 3) == b"xxx"

    def test_a_staged_object_appears_at_the_commit(self, storage: Storage) -> None:
        with storage.stage(6) as staged:
            staged.write(memoryview(b"con"))
            staged.write(memoryview(b"tent"))
            assert list(storage.list("")) == []
            assert storage.stat("a/b") is None
            staged.commit("a/b", hashlib.sha256(b"content").digest())
            assert self.raw_get(storage, "a/b") == b"content"
        assert self.raw_keys(storage) == {"a/b"}

    def test_a_staged_block_is_copied_before_write_returns(self, storage: Storage) -> None:
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

    def test_commit_without_a_write_stores_an_empty_object(self, storage: Storage) -> None:
        with storage.stage(0) as staged:
            staged.commit("a/b", hashlib.sha256(b"").digest())
        assert self.raw_get(storage, "a/b") == b""

    def test_several_objects_can_be_staged_at_once(self, storage: Storage) -> None:
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

    def test_wrong_digests_are_refused(self, storage: Storage) -> None:
        """Nothing relies on this promise. A backend that does not verify digests names this test in `broken`."""
        for size in (10, 1 << 20):
            with storage.stage(size) as staged:
                staged.write(memoryview(b"x" * size))
                with pytest.raises(StorageError, match="changed in transit"):
                    staged.commit("a/b", hashlib.sha256(b"something else").digest())
        assert self.raw_keys(storage) == set()

    def test_sent_content_is_written_whole(self, storage: Storage) -> None:
        for size in (0, 10, 3 << 20):
            data = hashlib.sha256(b"seed").digest() * (size // 32) + b"x" * (size % 32)
            self.raw_put(storage, "a/b", b"older")
            storage.send("a/b", size, hashlib.sha256(data).digest(), lambda data=data: in_blocks(data))  # type: ignore[misc]
            assert self.raw_get(storage, "a/b") == data

    def test_content_that_changed_before_it_was_sent_is_not_written(self, storage: Storage) -> None:
        """It differs from its digest in the first or the last byte, is too short, or too long."""
        data = b"0123456789abcdef" * (3 << 16)
        digest = hashlib.sha256(data).digest()
        for changed in (b"x" + data[1:], data[:-1] + b"x", data[:-1], data + b"x", b""):
            with pytest.raises(ContentChanged):
                storage.send("a/b", len(data), digest, lambda changed=changed: in_blocks(changed))  # type: ignore[misc]
            assert self.raw_keys(storage) == set()

    def test_content_that_cannot_be_read_is_not_written(self, storage: Storage) -> None:
        data = b"0123456789abcdef" * (3 << 16)

        def blocks() -> Generator[memoryview, None, None]:
            yield memoryview(data)[: 1 << 20]
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            storage.send("a/b", len(data), hashlib.sha256(data).digest(), blocks)
        assert self.raw_keys(storage) == set()

    @pytest.mark.parametrize("size", [0, 10, 5 << 20])
    def test_a_copy_is_the_object(self, storage: Storage, size: int) -> None:
        other = self.beside(storage)
        data = hashlib.sha256(b"seed").digest() * (size // 32) + b"x" * (size % 32)
        storage.send("a/b", size, hashlib.sha256(data).digest(), lambda: in_blocks(data))
        assert other.copy_from(storage, "a/b", size, hashlib.sha256(data).digest()) is CopyOutcome.COPIED
        assert self.raw_get(other, "a/b") == data
        assert self.raw_keys(other) == {"a/b"}
        self.raw_put(storage, "a/b", b"another")
        storage.delete(["a/b"])
        assert self.raw_get(other, "a/b") == data

    def test_a_copy_has_the_time_of_the_copying(self, storage: Storage) -> None:
        other = self.beside(storage)
        storage.put("a/b", b"content")
        first = storage.stat("a/b")
        assert first is not None
        deadline = time.monotonic() + 30
        modified = first.modified
        while modified <= first.modified and time.monotonic() < deadline:
            time.sleep(0.2)
            other.delete(["a/b"])
            outcome = other.copy_from(storage, "a/b", 7, hashlib.sha256(b"content").digest())
            assert outcome is CopyOutcome.COPIED
            copied = other.stat("a/b")
            assert copied is not None
            modified = copied.modified
        assert modified > first.modified

    def test_a_renewal_leaves_the_time_of_a_copy_alone(self, storage: Storage) -> None:
        other = self.beside(storage)
        storage.put("a/b", b"content")
        outcome = other.copy_from(storage, "a/b", 7, hashlib.sha256(b"content").digest())
        assert outcome is CopyOutcome.COPIED
        copied, first = other.stat("a/b"), storage.stat("a/b")
        assert copied is not None
        assert first is not None
        deadline = time.monotonic() + 30
        while not storage.touch("a/b", first.modified) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert other.stat("a/b") == about(copied)

    def test_a_copy_replaces_nothing(self, storage: Storage) -> None:
        other = self.beside(storage)
        storage.put("a/b", b"content")
        self.raw_put(other, "a/b", b"another")
        outcome = other.copy_from(storage, "a/b", 7, hashlib.sha256(b"content").digest())
        assert outcome is CopyOutcome.EXISTS
        assert self.raw_get(other, "a/b") == b"another"

    def test_what_is_not_there_is_not_copied(self, storage: Storage) -> None:
        other = self.beside(storage)
        storage.put("a/other", b"content")
        outcome = other.copy_from(storage, "a/b", 7, hashlib.sha256(b"content").digest())
        assert outcome is CopyOutcome.UNFIT
        assert self.raw_keys(other) == set()

    def test_an_object_of_another_size_is_not_copied(self, storage: Storage) -> None:
        other = self.beside(storage)
        storage.put("a/b", b"contents")
        outcome = other.copy_from(storage, "a/b", 7, hashlib.sha256(b"content").digest())
        assert outcome is CopyOutcome.UNFIT
        assert self.raw_keys(other) == set()

    def test_an_object_with_another_digest_is_not_copied(self, storage: Storage) -> None:
        """With `strict`, also where the service has no SHA-256 that would show it."""
        other = self.beside(storage)
        storage.put("a/b", b"another")
        self.raw_put(storage, "a/c", b"another")
        for key in ("a/b", "a/c"):
            outcome = other.copy_from(storage, key, 7, hashlib.sha256(b"content").digest(), strict=True)
            assert outcome is CopyOutcome.UNFIT
        assert self.raw_keys(other) == set()

    def test_stat_gives_size_and_time(self, storage: Storage) -> None:
        # S3 has whole seconds, and the clock of a server may differ.
        before = time.time() - 60
        storage.put("a/b", b"content")
        info = storage.stat("a/b")
        assert info is not None
        assert (info.key, info.size) == ("a/b", 7)
        assert before < info.modified < time.time() + 60
        assert list(storage.list("a/")) == [about(info)]

    def test_touch_changes_the_time_and_nothing_else(self, storage: Storage) -> None:
        for key, data in (("small", b"content"), ("large", b"0123456789abcdef" * (1 << 20)), ("empty", b"")):
            storage.put(key, data)
            first = storage.stat(key)
            assert first is not None
            deadline = time.monotonic() + 30
            renewed = False
            while not renewed and time.monotonic() < deadline:
                time.sleep(0.2)
                renewed = storage.touch(key, first.modified)
                second = storage.stat(key)
                assert second is not None
                assert second.size == first.size
                # Not the other way round: a server may give a time in its answer that is a second earlier.
                assert not renewed or second.modified > first.modified
            assert renewed
            assert self.raw_get(storage, key) == data

    def test_delete_removes_what_exists(self, storage: Storage) -> None:
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
