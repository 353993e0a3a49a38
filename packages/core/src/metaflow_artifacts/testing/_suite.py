"""The base of the conformance suite: the hooks that a backend implements, and helpers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, ClassVar

import pytest

from metaflow_artifacts._storage.base import ObjectInfo, Storage

__all__ = ["Suite", "about", "in_blocks", "read_blocks", "stage"]


class Suite:
    """The fixture and the hooks that a backend implements."""

    many = 10_000
    """How many objects the test of long listings makes: more than the backend lists in one request."""

    broken: ClassVar[dict[str, str]] = {}
    """Names of tests that this backend fails, and why. They run, and must fail."""

    unreliable: ClassVar[dict[str, str]] = {}
    """Names of tests that this backend passes or fails depending on a race, and why."""

    @pytest.fixture(autouse=True)
    def _expect_broken_promises(self, request: pytest.FixtureRequest) -> None:
        name = request.node.originalname
        if name in self.broken:
            request.applymarker(pytest.mark.xfail(reason=self.broken[name], strict=True))
        if name in self.unreliable:
            request.applymarker(pytest.mark.xfail(reason=self.unreliable[name], strict=False))

    @pytest.fixture
    def storage(self) -> Storage:
        """An empty storage, whose root no other test uses."""
        raise NotImplementedError

    def beside(self, storage: Storage) -> Storage:
        """An empty storage on the same service, whose root no other test uses; the raw hooks reach it too."""
        raise NotImplementedError

    def raw_put(self, storage: Storage, key: str, data: bytes) -> None:
        """Write an object without the storage."""
        raise NotImplementedError

    def raw_get(self, storage: Storage, key: str) -> bytes | None:
        """Read an object without the storage; None where there is none."""
        raise NotImplementedError

    def raw_keys(self, storage: Storage) -> set[str]:
        """The keys of all objects below the root, including temporary ones, without the storage."""
        raise NotImplementedError

    def reopen(self, storage: Storage) -> Callable[[], Storage]:
        """A function that opens the same root in another process; it is pickled."""
        raise NotImplementedError


def about(info: ObjectInfo) -> Any:
    """An ObjectInfo that equals others of the same object, whose times may be rounded."""
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
    """The blocks of an object, or of a range of it, as `open` reads them; the last one is empty."""

    def blocks() -> Iterator[bytes]:
        buffer = memoryview(bytearray(block))
        with storage.open(key, start, length) as reader:
            while count := reader.readinto(buffer):
                yield bytes(buffer[:count])
            yield b""

    return list(blocks())


def stage(storage: Storage, key: str, data: bytes) -> None:
    """Write an object with `stage`."""
    with storage.stage(len(data)) as staged:
        staged.write(memoryview(data))
        staged.commit(key, hashlib.sha256(data).digest())


def in_blocks(data: bytes, block: int = 300_000) -> Generator[memoryview, None, None]:
    """The content block by block, each in the same buffer, as a file is read."""
    buffer = bytearray(block)
    for at in range(0, len(data), block):
        part = data[at : at + block]
        buffer[: len(part)] = part
        yield memoryview(buffer)[: len(part)]
