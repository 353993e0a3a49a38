"""A storage that tells somebody about each operation before it passes it on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from metaflow_artifacts._storage import ObjectInfo, Reader, Staged, Storage

Watcher = Callable[[str, str], None]
"""Called with the operation and its key; what it raises, the operation raises."""


class Watched(Storage):
    """`inner`, with `before` called first. Operations are named as the methods; staging is `write` and `commit`."""

    def __init__(self, inner: Storage, before: Watcher) -> None:
        self.inner = inner
        self.before = before
        self.root = inner.root
        self.threads = inner.threads
        self.stages_in_memory = inner.stages_in_memory  # type: ignore[misc]
        self.resolution = inner.resolution  # type: ignore[misc]

    def put(self, key: str, data: bytes) -> None:
        self.before("put", key)
        self.inner.put(key, data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self.before("put_if_absent", key)
        return self.inner.put_if_absent(key, data)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self.before("get", key)
        return self.inner.get(key, start, length)

    @contextmanager
    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[Reader]:
        self.before("open", key)
        with self.inner.open(key, start, length) as reader:
            yield reader

    @contextmanager
    def stage(self, size: int) -> Iterator[Staged]:
        self.before("stage", "")
        with self.inner.stage(size) as staged:
            yield _WatchedStaged(staged, self.before)

    def stat(self, key: str) -> ObjectInfo | None:
        self.before("stat", key)
        return self.inner.stat(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.before("list", prefix)
        yield from self.inner.list(prefix)

    def delete(self, keys: Iterable[str]) -> None:
        keys = [*keys]
        for key in keys:
            self.before("delete", key)
        self.inner.delete(keys)

    def touch(self, key: str, after: float = 0.0) -> bool:
        self.before("touch", key)
        return self.inner.touch(key, after)

    def leftovers(self) -> Iterator[ObjectInfo]:
        return self.inner.leftovers()

    def identity(self) -> object:
        return self.inner.identity()

    @property
    def trusts_put_if_absent(self) -> bool:
        return self.inner.trusts_put_if_absent

    def now(self) -> float:
        return self.inner.now()

    def is_settled(self, info: ObjectInfo) -> bool:
        return self.inner.is_settled(info)

    def keeps_versions(self) -> bool:
        return self.inner.keeps_versions()

    def url(self, key: str) -> str:
        return self.inner.url(key)


class _WatchedStaged:
    def __init__(self, staged: Staged, before: Watcher) -> None:
        self.staged = staged
        self.before = before

    def write(self, block: memoryview, /) -> None:
        self.before("write", "")
        self.staged.write(block)

    def commit(self, key: str, sha256: bytes) -> None:
        self.before("commit", key)
        self.staged.commit(key, sha256)
