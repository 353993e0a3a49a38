"""Storages that do something before each operation of another one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from metaflow_artifacts._storage import CopyOutcome, ObjectInfo, Reader, Staged, Storage

__all__ = ["ForwardingStorage", "Watched"]


class ForwardingStorage(Storage):
    """Passes every operation on to `inner`; subclasses override `before`."""

    def __init__(self, inner: Storage) -> None:
        self.inner = inner
        self.root = inner.root
        self.threads = inner.threads
        self.stages_in_memory = inner.stages_in_memory  # type: ignore[misc]
        self.resolution = inner.resolution  # type: ignore[misc]

    def before(self, operation: str, key: str) -> None:
        """Called before each operation, with the name of its method and its key, or the prefix of a listing.

        Writing a staged object is `write` and `commit`. What this raises, the operation raises.
        """

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
            yield _ForwardingStaged(staged, self.before)

    def stat(self, key: str) -> ObjectInfo | None:
        self.before("stat", key)
        return self.inner.stat(key)

    def copy_from(self, source: Storage, key: str, size: int, sha256: bytes, *, strict: bool = False) -> CopyOutcome:
        self.before("copy_from", key)
        return self.inner.copy_from(source, key, size, sha256, strict=strict)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.before("list", prefix)
        return self.inner.list(prefix)

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

    @property
    def server(self) -> str:
        return self.inner.server

    def now(self) -> float:
        return self.inner.now()

    def is_settled(self, info: ObjectInfo) -> bool:
        return self.inner.is_settled(info)

    def keeps_versions(self) -> bool:
        return self.inner.keeps_versions()

    def url(self, key: str) -> str:
        return self.inner.url(key)


class _ForwardingStaged:
    def __init__(self, staged: Staged, before: Callable[[str, str], None]) -> None:
        self.staged = staged
        self.before = before

    def write(self, block: memoryview, /) -> None:
        self.before("write", "")
        self.staged.write(block)

    def commit(self, key: str, sha256: bytes) -> None:
        self.before("commit", key)
        self.staged.commit(key, sha256)


class Watched(ForwardingStorage):
    """Calls `watcher` with each operation and its key before `inner` does it."""

    def __init__(self, inner: Storage, watcher: Callable[[str, str], None]) -> None:
        super().__init__(inner)
        self.before = watcher  # type: ignore[assignment, method-assign]
