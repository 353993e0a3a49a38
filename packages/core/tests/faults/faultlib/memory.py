"""A storage in memory whose objects have the times that a test gives them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

from metaflow_artifacts._storage import ObjectInfo, Reader, Staged, Storage
from metaflow_artifacts.errors import ArtifactNotFound

__all__ = ["MemoryStorage"]


class MemoryStorage(Storage):
    """Objects in a dict. `times` has the time of each, in seconds since the epoch."""

    stages_in_memory = True
    threads = 2

    def __init__(self, root: str = "memory") -> None:
        self.root = root
        self.objects: dict[str, bytes] = {}
        self.times: dict[str, float] = {}
        self.reads: list[str] = []

    @property
    def trusts_put_if_absent(self) -> bool:
        return True

    def put(self, key: str, data: bytes) -> None:
        self.objects[key] = data
        self.times.setdefault(key, 0.0)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if key in self.objects:
            return False
        self.put(key, data)
        return True

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self.reads.append(key)
        if key not in self.objects:
            raise ArtifactNotFound(f"nothing is stored at {key}")
        return self.objects[key][start : None if length is None else start + length]

    def open(self, key: str, start: int = 0, length: int | None = None) -> AbstractContextManager[Reader]:
        raise NotImplementedError

    def stage(self, size: int) -> AbstractContextManager[Staged]:
        raise NotImplementedError

    def stat(self, key: str) -> ObjectInfo | None:
        return ObjectInfo(key, len(self.objects[key]), self.times[key]) if key in self.objects else None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for key, data in list(self.objects.items()):
            if key.startswith(prefix):
                yield ObjectInfo(key, len(data), self.times[key])

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)

    def touch(self, key: str, after: float = 0.0) -> bool:
        return key in self.objects

    def url(self, key: str) -> str:
        return f"{self.root}/{key}"
