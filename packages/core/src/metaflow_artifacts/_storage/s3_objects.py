"""S3 objects that are being read or written."""

from __future__ import annotations

import contextlib
import mmap
import time
from collections.abc import Callable
from typing import Any

from metaflow_artifacts._storage import job
from metaflow_artifacts._storage.s3_errors import code_of, explain, faults
from metaflow_artifacts._storage.s3_requests import Requests
from metaflow_artifacts.errors import StorageError, TransientStorageError

__all__ = ["ObjectReader", "StagedObject", "memory"]


class ObjectReader:
    """Reads an object. Where an answer breaks off, a further request reads the rest.

    `get(client, start, length, etag)` requests a range of the object: None where the range holds nothing.
    """

    def __init__(self, requests: Requests, key: str, get: Callable[..., Any], start: int, length: int | None) -> None:
        self._requests = requests
        self._key = key
        self._get = get
        self._position = start
        self._body: Any = None
        self._etag: str | None = None
        answer = requests.make("read", key, lambda client: get(client, start, length))
        self._end = start
        if answer is not None:
            self._body = answer["Body"]
            self._end = start + int(answer["ContentLength"])
            self._etag = answer.get("ETag")

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
        try:
            # Not readinto: botocore's readinto copies as well, and old versions do not have it.
            data = self._body.read(len(buffer))
            count = len(data)
            buffer[:count] = data
        except faults() as error:
            raise explain(error, self._requests.context("read", self._key)) from error
        if not count:
            raise TransientStorageError(f"cannot read {self._url}: the server sent less than it announced; try again")
        self._position += count
        return count

    def _reopened(self, progress: float) -> Any:
        left = self._end - self._position

        def request(client: Any) -> Any:
            try:
                return self._get(client, self._position, left, self._etag)
            except faults() as error:
                if code_of(error) in {"PreconditionFailed", "412"}:
                    raise TransientStorageError(
                        f"cannot read {self._url}: it was replaced while it was read; read it again"
                    ) from error
                raise

        answer = self._requests.make("read", self._key, request, progress)
        if answer is None or int(answer["ContentLength"]) != left:
            raise StorageError(f"cannot read {self._url}: its size changed while it was read")
        return answer["Body"]

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


def memory(size: int) -> mmap.mmap:
    """A buffer whose memory goes back to the system when it is freed; malloc would keep some for each thread."""
    buffer = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Advice only: kernels without huge pages refuse it.
        with contextlib.suppress(OSError):
            buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer
