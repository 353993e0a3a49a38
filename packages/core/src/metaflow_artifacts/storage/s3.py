"""Objects in an S3 bucket, below a prefix."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import mmap
import os
import random
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, TypeVar

from metaflow_artifacts.errors import (
    ArtifactNotFound,
    InvalidReference,
    StorageError,
    TransientStorageError,
)
from metaflow_artifacts.storage._names import TEMPORARY, check_key, check_prefix, is_key
from metaflow_artifacts.storage._s3_client import THREADS, Body, client_config, default_client, prepare
from metaflow_artifacts.storage._s3_errors import Place, code_of, explain, faults, was_retried
from metaflow_artifacts.storage.base import ObjectInfo, Storage

__all__ = ["S3Storage", "client_config"]

_T = TypeVar("_T")

_ATTEMPTS = 7
_ATTEMPTS_TO_SEND = 3
# No attempt begins later than this many seconds after the first one.
_PATIENCE = 40.0
_PAUSE = 0.2
_LONGEST_PAUSE = 5.0
_DELETE_BATCH = 1000
_WHOLE_BODY = 256 << 10

# One lock for the making of clients; a child of fork gets a new one, for its parent's may be held for ever.
_making = threading.Lock()


def _renew_lock() -> None:
    global _making
    _making = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


class S3Storage(Storage):
    """Objects in an S3 bucket, below a prefix.

    `root` is `s3://bucket` or `s3://bucket/prefix`. `client` is a function of no arguments that returns a boto3 S3
    client (see `client_config` for its settings); without it, one is made as boto3 is configured. One client serves
    all threads of a process and is made at the first request, anew after a fork. `sse` (`AES256`, `aws:kms`) and
    `sse_kms_key_id` ask for server-side encryption of all that is written.

    A request that fails in a way that passes is made again for up to 40 s; then TransientStorageError is raised.
    """

    stages_in_memory: ClassVar[bool] = True

    def __init__(
        self,
        root: str,
        client: Callable[[], Any] | None = None,
        *,
        sse: str | None = None,
        sse_kms_key_id: str | None = None,
    ) -> None:
        self.bucket, self._prefix = _parse(root)
        self.root = f"s3://{self.bucket}/{self._prefix}".rstrip("/")
        self.threads = THREADS
        self._make_client = client or default_client
        self._client: tuple[int, Any] | None = None
        self._written: dict[str, str] = {}
        if sse:
            self._written["ServerSideEncryption"] = sse
        if sse_kms_key_id:
            self._written["SSEKMSKeyId"] = sse_kms_key_id
        self._bucket_exists = False
        self._local = threading.local()

    def __repr__(self) -> str:
        return f"S3Storage({self.root!r})"

    def connect(self) -> None:
        """Make the client before the first request needs it, which takes some 60 ms; nothing is sent.

        Where it cannot be made, the first request tries again and says why.
        """
        # Whatever the function that makes clients raises.
        with contextlib.suppress(Exception):
            self._connected("reach", "")

    def put(self, key: str, data: bytes) -> None:
        self._put(key, memoryview(data), ChecksumSHA256=_checksum(hashlib.sha256(data).digest()))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        try:
            checksum = _checksum(hashlib.sha256(data).digest())
            self._put(key, memoryview(data), ChecksumSHA256=checksum, IfNoneMatch="*")
        except _AlreadyThere as error:
            # Where an answer was lost, the object that is in the way may be the one that the first attempt wrote.
            return error.retried and self.get(key) == data
        return True

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        def request(client: Any) -> bytes:
            answer = self._get(client, key, start, length)
            if answer is None:
                return b""
            with contextlib.closing(answer["Body"]) as body:
                data: bytes = body.read()
            return data

        check_key(key)
        return self._request("read", key, request)

    @contextlib.contextmanager
    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[_ObjectReader]:
        check_key(key)
        reader = _ObjectReader(self, key, start, length)
        try:
            yield reader
        finally:
            reader.close()

    @contextlib.contextmanager
    def stage(self, size: int) -> Iterator[_StagedObject]:
        # Kept for the thread's next object: the first touch of 16 MiB costs as much as copying them.
        buffer: mmap.mmap | None = self._local.__dict__.pop("buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = _memory(size)
        staged = _StagedObject(self, buffer)
        try:
            yield staged
        finally:
            self._local.buffer = staged.close()

    def stat(self, key: str) -> ObjectInfo | None:
        check_key(key)
        head = functools.partial(_head, {"Bucket": self.bucket, "Key": self._prefix + key})
        try:
            try:
                answer = self._request("read", key, head)
            except StorageError as error:
                if code_of(error.__cause__) not in {"AccessDenied", "400"}:
                    raise
                # The answer to HEAD has no body; the one to GET says why it was refused.
                self.get(key, 0, 1)
                answer = self._request("read", key, head)
        except ArtifactNotFound:
            self._demand_bucket(key)
            return None
        return ObjectInfo(key, answer["ContentLength"], answer["LastModified"].timestamp())

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        return self._pages(prefix)

    def _pages(self, prefix: str) -> Iterator[ObjectInfo]:
        skipped = len(self._prefix)
        more: dict[str, str] = {}
        while True:
            where = {"Bucket": self.bucket, "Prefix": self._prefix + prefix, **more}
            page = self._request("list", prefix, functools.partial(_list, where))
            for name, size, modified in page["Objects"]:
                key = name[skipped:]
                if is_key(key) and not key.startswith(TEMPORARY):
                    yield ObjectInfo(key, size, modified)
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, keys: Iterable[str]) -> None:
        remaining = iter(keys)
        while batch := list(itertools.islice(remaining, _DELETE_BATCH)):
            for key in batch:
                check_key(key)
            self._delete(batch)

    def _delete(self, keys: Iterable[str]) -> None:
        objects = [{"Key": self._prefix + key} for key in keys]

        def request(client: Any) -> None:
            from botocore.exceptions import ClientError

            answer = client.delete_objects(Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True})
            failed = [error for error in answer.get("Errors", ()) if error.get("Code") != "NoSuchKey"]
            if failed:
                # Only these are tried again, and the first of them is what the user is told.
                objects[:] = [{"Key": error["Key"]} for error in failed]
                place = self._place("delete", failed[0]["Key"][len(self._prefix) :])
                raise explain(ClientError({"Error": failed[0]}, "DeleteObjects"), place)

        self._request("delete", objects[0]["Key"][len(self._prefix) :], request)

    def touch(self, key: str, after: float = 0.0) -> bool:
        check_key(key)
        name = self._prefix + key
        source = {"Bucket": self.bucket, "Key": name}

        def request(client: Any) -> None:
            client.copy_object(
                Bucket=self.bucket, Key=name, CopySource=source, MetadataDirective="REPLACE", **self._written
            )

        try:
            self._request("refresh the time of", key, request)
        except ArtifactNotFound:
            return False
        return True

    def url(self, key: str) -> str:
        return f"{self.root}/{key}"

    def _put(self, key: str, data: memoryview, **options: str) -> None:
        check_key(key, writing=True)
        fields = {"Bucket": self.bucket, "Key": self._prefix + key, **self._written, **options}
        attempts = itertools.count()

        def request(client: Any) -> None:
            again = next(attempts) > 0
            large = Body(data) if len(data) > _WHOLE_BODY else None
            try:
                client.put_object(Body=bytes(data) if large is None else large, **fields)
            except faults() as error:
                if "IfNoneMatch" in options and code_of(error) in {"PreconditionFailed", "412"}:
                    raise _AlreadyThere(again or was_retried(error)) from error
                raise
            finally:
                if large is not None:
                    large.close()

        self._request("write", key, request)

    def _get(self, client: Any, key: str, start: int, length: int | None, etag: str | None = None) -> Any:
        """The answer to a request for a range of an object; None where the range holds nothing."""
        if start < 0 or (length is not None and length < 0):
            raise InvalidReference(f"range of {key!r}: start {start} and length {length} must not be negative")
        fields = {"Bucket": self.bucket, "Key": self._prefix + key}
        # No range is empty, in HTTP: one byte tells whether the object exists.
        ranged = start > 0 or length is not None
        if ranged:
            fields["Range"] = f"bytes={start}-" + ("" if length is None else str(start + max(length, 1) - 1))
        if etag is not None:
            fields["IfMatch"] = etag
        try:
            answer = client.get_object(**fields)
        except faults() as error:
            if code_of(error) in {"InvalidRange", "416"}:
                return None
            raise
        if ranged and "ContentRange" not in answer:
            answer["Body"].close()
            raise StorageError(f"cannot read {self.url(key)}: {client.meta.endpoint_url} does not serve byte ranges")
        if length == 0:
            answer["Body"].close()
            return None
        return answer

    def _request(self, action: str, key: str, request: Callable[[Any], _T], began: float | None = None) -> _T:
        """Make a request, again where its failure may pass. Raises an ArtifactError.

        `began` is the monotonic time from which patience counts, where something was tried before.
        """
        began = time.monotonic() if began is None else began
        for attempt in itertools.count(1):
            try:
                result = request(self._connected(action, key))
            except faults() as error:
                failure = explain(error, self._place(action, key))
                # Wrong bytes are hardly ever the network's fault: the buffer changed, or the digest is of another.
                futile = attempt >= _ATTEMPTS_TO_SEND and code_of(error) == "BadDigest"
                if futile or not isinstance(failure, TransientStorageError) or _is_last(attempt, began):
                    try:
                        raise failure from error
                    finally:
                        # Else a cycle through this frame would keep the frames above it, and their buffers.
                        del failure
            except TransientStorageError:
                if _is_last(attempt, began):
                    raise
            else:
                self._bucket_exists = True
                return result
            pause(attempt)
        raise AssertionError("unreachable")

    def _demand_bucket(self, key: str) -> None:
        """Raise unless the bucket exists: the answer to HEAD does not tell which of the two is missing."""
        if not self._bucket_exists:
            with contextlib.suppress(ArtifactNotFound):
                self._request("read", key, lambda c: c.list_objects_v2(Bucket=self.bucket, MaxKeys=1, Prefix="-"))

    def _connected(self, action: str, key: str) -> Any:
        held = self._client
        if held is not None and held[0] == os.getpid():
            return held[1]
        with _making:
            held = self._client
            if held is None or held[0] != os.getpid():
                held = self._client = os.getpid(), self._new_client(action, key)
        return held[1]

    def _new_client(self, action: str, key: str) -> Any:
        where = f"cannot {action} {self.url(key)}"
        try:
            from botocore.exceptions import BotoCoreError
        except ImportError as error:
            raise StorageError(f"{where}: boto3 is not installed; pip install boto3") from error
        try:
            return prepare(self._make_client())
        except BotoCoreError as error:
            raise explain(error, Place(action, self.url(key), self.bucket, "the endpoint")) from error
        except ValueError as error:
            # What botocore raises for an endpoint that is not a URL.
            raise StorageError(f"{where}: no S3 client can be made ({error}); check the endpoint") from error

    def _place(self, action: str, key: str) -> Place:
        endpoint = self._client[1].meta.endpoint_url if self._client else "the endpoint"
        return Place(action, self.url(key), self.bucket, endpoint)


class _AlreadyThere(Exception):
    def __init__(self, retried: bool) -> None:
        super().__init__(retried)
        self.retried = retried


class _ObjectReader:
    """Reads an object from one answer, and goes on where it broke off in another."""

    def __init__(self, storage: S3Storage, key: str, start: int, length: int | None) -> None:
        self._storage = storage
        self._key = key
        self._position = start
        self._body: Any = None
        self._etag: str | None = None
        answer = storage._request("read", key, lambda client: storage._get(client, key, start, length))
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
                if _is_last(failures, progress):
                    raise
                self.close()
                pause(failures)
                continue
            done += count
            progress, failures = time.monotonic(), 0
        return done

    def _read(self, buffer: memoryview) -> int:
        try:
            # botocore's readinto reads into a buffer of its own too, and old versions have none.
            data = self._body.read(len(buffer))
            count = len(data)
            buffer[:count] = data
        except faults() as error:
            raise explain(error, self._storage._place("read", self._key)) from error
        if not count:
            url = self._storage.url(self._key)
            raise TransientStorageError(f"cannot read {url}: the server sent less than it announced; try again")
        self._position += count
        return count

    def _reopened(self, progress: float) -> Any:
        storage, key, left = self._storage, self._key, self._end - self._position

        def request(client: Any) -> Any:
            try:
                return storage._get(client, key, self._position, left, self._etag)
            except faults() as error:
                if code_of(error) in {"PreconditionFailed", "412"}:
                    url = storage.url(key)
                    raise TransientStorageError(
                        f"cannot read {url}: it was replaced meanwhile; read it anew"
                    ) from error
                raise

        answer = storage._request("read", key, request, progress)
        if answer is None or int(answer["ContentLength"]) != left:
            raise StorageError(f"cannot read {storage.url(key)}: its size changed while it was read")
        return answer["Body"]

    def close(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


class _StagedObject:
    def __init__(self, storage: S3Storage, buffer: mmap.mmap) -> None:
        self._storage = storage
        self._buffer = buffer
        self._size = 0

    def write(self, block: memoryview, /) -> None:
        end = self._size + len(block)
        if end > len(self._buffer):
            grown = _memory(max(end, 2 * len(self._buffer)))
            grown[: self._size] = memoryview(self._buffer)[: self._size]
            self._buffer = grown
        memoryview(self._buffer)[self._size : end] = block
        self._size = end

    def commit(self, key: str, sha256: bytes) -> None:
        data = memoryview(self._buffer)[: self._size]
        self._storage._put(key, data, ChecksumSHA256=_checksum(sha256))

    def close(self) -> mmap.mmap:
        return self._buffer


def _memory(size: int) -> mmap.mmap:
    """A buffer that goes back to the system with the thread that has it: malloc would keep some for each thread."""
    buffer = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Advice only: kernels without huge pages refuse it.
        with contextlib.suppress(OSError):
            buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


def _head(where: dict[str, str], client: Any) -> Any:
    return client.head_object(**where)


def _checksum(sha256: bytes) -> str:
    """What S3 compares with the bytes that arrive."""
    return b64encode(sha256).decode()


def _list(where: dict[str, str], client: Any) -> Any:
    page = client.list_objects_v2(**where)
    if "Objects" not in page:
        # botocore takes an answer without a body for one that says nothing: here, that nothing is stored.
        raise TransientStorageError(
            f"cannot list s3://{where['Bucket']}/{where['Prefix']}: the server sent less than it announced; try again"
        )
    return page


def _is_last(attempt: int, began: float) -> bool:
    return attempt >= _ATTEMPTS or time.monotonic() - began > _PATIENCE


def pause(attempt: int) -> None:
    """Wait before the next attempt; at random, so that tasks that failed together do not come back together."""
    time.sleep(random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE, _PAUSE * 2 ** (attempt - 1)))


def _parse(root: str) -> tuple[str, str]:
    bucket, _, path = root.removeprefix("s3://").partition("/")
    path = path.rstrip("/")
    if not root.startswith("s3://") or not bucket or not root.isprintable():
        raise InvalidReference(f"datastore root {root!r} is not an s3:// URL; it has the form s3://bucket/prefix")
    if path and any(part in {"", ".", ".."} for part in path.split("/")):
        raise InvalidReference(f"datastore root {root!r} has an empty part, '.' or '..' in its path; remove it")
    return bucket, path + "/" if path else ""
