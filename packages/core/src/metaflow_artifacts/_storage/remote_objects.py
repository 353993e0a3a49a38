"""Objects in a cloud that are being read or written."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from metaflow_artifacts._storage import job
from metaflow_artifacts._storage.memory import memory
from metaflow_artifacts._storage.remote_requests import Requests
from metaflow_artifacts.errors import StorageError, TransientStorageError

__all__ = ["Answer", "Body", "CopiedBody", "Described", "ObjectReader", "ResponseBody", "StagedObject"]


class Source(Protocol):
    """The body of an answer."""

    def read(self, size: int = -1, /) -> bytes: ...

    def readinto(self, buffer: memoryview, /) -> int: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Answer:
    """A server's answer to a request for an object or a range of one, whose body is not read yet."""

    body: Source
    length: int
    """How many bytes the body has, as the server says."""
    version: str | None
    """What names this version of the object in a further request."""
    ranged: bool
    """Whether the server gave the range that was asked for, not the whole object."""


@dataclass(frozen=True)
class Described:
    """What a server says about an object without its content."""

    size: int | None
    """In bytes; None where the answer does not have it."""
    version: str | None
    """As that of an Answer."""
    sha256: bytes | None
    """The digest of its content, where the service keeps one."""
    digest: str | None
    """Another digest of its content and nothing else, such as MD5, in the service's own form."""
    modified: float | None
    """When it was written, in seconds since the epoch; None where the answer does not have it."""

    def is_like(self, source: Described, sha256: bytes) -> bool:
        """Whether this copy of `source` has been shown to have its content, or that of the digest `sha256`."""
        if self.size not in (None, source.size):
            return False
        if self.sha256 is not None:
            # It decides alone: the other digest is as wrong as the source may be.
            return self.sha256 == sha256
        return self.digest is not None and self.digest == source.digest


class CopiedBody:
    """A body of an SDK, which gives new bytes at each read."""

    def __init__(self, body: Any) -> None:
        self._body = body

    def read(self, size: int = -1, /) -> bytes:
        data: bytes = self._body.read() if size < 0 else self._body.read(size)
        return data

    def readinto(self, buffer: memoryview, /) -> int:
        # Not readinto: botocore's readinto copies as well, and old versions do not have it.
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._body.close()


class ResponseBody(CopiedBody):
    """The body of a response of the library requests, as the server sent it, read no further than asked for."""

    def __init__(self, response: Any) -> None:
        super().__init__(response)
        # Older versions of urllib3 take a body that ends early for a whole one.
        response.raw.enforce_content_length = True

    def read(self, size: int = -1, /) -> bytes:
        data: bytes = self._body.raw.read(None if size < 0 else size, decode_content=False)
        return data


class ObjectReader:
    """Reads an object. Where an answer breaks off, a further request reads the rest.

    `get(client, start, length, version)` requests a range of the object: None where the range holds nothing.
    """

    def __init__(
        self, requests: Requests, key: str, get: Callable[..., Answer | None], start: int, length: int | None
    ) -> None:
        self._requests = requests
        self._key = key
        self._get = get
        self._position = start
        self._body: Any = None
        self._version: str | None = None
        answer = requests.make("read", key, lambda client: get(client, start, length))
        self._end = start
        if answer is not None:
            self._body = answer.body
            self._end = start + answer.length
            self._version = answer.version

    def readinto(self, buffer: memoryview, /) -> int:
        wanted = min(len(buffer), self._end - self._position)
        done = 0
        progress = time.monotonic()
        failures = 0
        while done < wanted:
            if self._body is None:
                self._body = self._reopened(progress)
            try:
                count = self._read(buffer[done:wanted])
            except TransientStorageError:
                failures += 1
                seconds = self._requests.pause(failures, progress)
                if seconds is None:
                    raise
                self.close()
                job.pause(seconds)
                continue
            done += count
            progress, failures = time.monotonic(), 0
        return done

    def _read(self, buffer: memoryview) -> int:
        service = self._requests.service
        try:
            count: int = self._body.readinto(buffer)
        except service.faults() as error:
            raise service.explain(error, self._requests.context("read", self._key)) from error
        if not count:
            raise TransientStorageError(f"cannot read {self._url}: the server sent less than it announced; try again")
        self._position += count
        return count

    def _reopened(self, progress: float) -> Any:
        left = self._end - self._position
        service = self._requests.service

        def request(client: Any) -> Answer | None:
            try:
                return self._get(client, self._position, left, self._version)
            except service.faults() as error:
                if service.is_refusal(error):
                    raise TransientStorageError(
                        f"cannot read {self._url}: it was replaced while it was read; read it again"
                    ) from error
                raise

        answer = self._requests.make("read", self._key, request, progress)
        if answer is None or answer.length != left:
            raise StorageError(f"cannot read {self._url}: its size changed while it was read; read it again")
        return answer.body

    @property
    def _url(self) -> str:
        return f"{self._requests.root}/{self._key}"

    def close(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


class StagedObject:
    """Bytes in a buffer; `put(key, data, sha256)` sends them."""

    def __init__(self, buffer: mmap.mmap, put: Callable[[str, memoryview, bytes], None]) -> None:
        self._put = put
        self._buffer = buffer
        self._size = 0

    def write(self, block: memoryview, /) -> None:
        end = self._size + len(block)
        if end > len(self._buffer):
            grown = memory(max(end, 2 * len(self._buffer)))
            grown[: self._size] = memoryview(self._buffer)[: self._size]
            self._buffer = grown
        memoryview(self._buffer)[self._size : end] = block
        self._size = end

    def commit(self, key: str, sha256: bytes) -> None:
        data = memoryview(self._buffer)[: self._size]
        self._put(key, data, sha256)


class Body:
    """A buffer as a file that is read in blocks of the size that is sent at once, and not copied."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0

    def __len__(self) -> int:
        return len(self._data)

    def read(self, size: int = -1) -> memoryview:
        end = len(self._data) if size < 0 else self._position + job.send_bytes()
        block = self._data[self._position : end]
        self._position += len(block)
        return block

    def seek(self, position: int, whence: int = 0) -> int:
        self._position = position + (0, self._position, len(self._data))[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        """Release the buffer: botocore keeps what it has sent in a reference cycle for a while."""
        self._data = memoryview(b"")
