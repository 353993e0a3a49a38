"""Objects in an S3 bucket, below a prefix."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import mmap
import threading
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar
from urllib.parse import urlsplit

from metaflow_artifacts._storage.base import PATIENCE_S, ObjectInfo, Storage
from metaflow_artifacts._storage.names import TEMPORARY, check_key, check_prefix, is_key
from metaflow_artifacts._storage.s3_client import THREADS, Body, client_config, portable
from metaflow_artifacts._storage.s3_deletes import Deletes
from metaflow_artifacts._storage.s3_errors import code_of, faults, is_unsupported, was_retried
from metaflow_artifacts._storage.s3_objects import ObjectReader, StagedObject, memory
from metaflow_artifacts._storage.s3_requests import Requests
from metaflow_artifacts.errors import (
    ArtifactNotFound,
    InvalidInput,
    StorageError,
    TransientStorageError,
)

__all__ = ["S3Storage", "client_config"]

_WHOLE_BODY_BYTES = 256 << 10

# The host names of S3 itself, in all of AWS's partitions.
_AWS_HOSTS = (
    ".amazonaws.com",
    ".amazonaws.com.cn",
    ".amazonaws.eu",
    ".api.aws",
    ".api.amazonwebservices.com.cn",
    ".api.amazonwebservices.eu",
    ".c2s.ic.gov",
    ".sc2s.sgov.gov",
    ".cloud.adc-e.uk",
    ".csp.hci.ic.gov",
)


_NOT_TO_COPY = frozenset({"AccessDenied", "InvalidObjectState"})
"""Answers for an object with another's key, or in an archive, which can be replaced all the same."""


class S3Storage(Storage):
    """Objects in an S3 bucket, below a prefix.

    `root` is `s3://bucket` or `s3://bucket/prefix`. `client` is a function of no arguments that returns a boto3 S3
    client (see `client_config` for its settings); without it, one is made as boto3 is configured. One client serves
    all threads of a process. It is made at the first request, and again after a fork. A pickle has the function's name
    if it stands at the top of a module. Of any other function it has the endpoint and region of its client: the
    credentials are then those that boto3 finds where the pickle is read. `sse` (`AES256`, `aws:kms`) and
    `sse_kms_key_id` ask for server-side encryption of all that is written.

    A request that fails for a reason that may pass is retried; no attempt begins later than `patience` seconds after
    the first one. Then TransientStorageError is raised.
    """

    stages_in_memory: ClassVar[bool] = True

    def __init__(
        self,
        root: str,
        client: Callable[[], Any] | None = None,
        *,
        sse: str | None = None,
        sse_kms_key_id: str | None = None,
        patience: float = PATIENCE_S,
    ) -> None:
        self.bucket, self._prefix = _parse(root)
        self.root = f"s3://{self.bucket}/{self._prefix}".removesuffix("/")
        self.threads = THREADS
        self._written: dict[str, str] = {}
        if sse:
            self._written["ServerSideEncryption"] = sse
        if sse_kms_key_id:
            self._written["SSEKMSKeyId"] = sse_kms_key_id
        self._requests = Requests(self.root, self.bucket, client, patience)
        self._deletes = Deletes(self._requests, self._prefix, self.threads)
        self._local = threading.local()

    def __repr__(self) -> str:
        return f"S3Storage({self.root!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        requests = self._requests
        return self._maker(portable(requests.make_client, lambda: requests.client("reach", ""))), ()

    def __deepcopy__(self, memo: dict[int, Any]) -> S3Storage:
        # In the same process, the copy may use the same function that makes clients, whatever that holds.
        return self._maker(self._requests.make_client)()

    def _maker(self, client: Callable[[], Any]) -> Callable[[], S3Storage]:
        return functools.partial(
            type(self),
            self.root,
            client,
            sse=self._written.get("ServerSideEncryption"),
            sse_kms_key_id=self._written.get("SSEKMSKeyId"),
            patience=self._requests.patience,
        )

    def connect(self) -> None:
        """Make the client before the first request, which takes some 60 ms. Nothing is sent.

        Where it cannot be made, nothing is raised: the first request tries again, and raises.
        """
        self._requests.connect()

    @property
    def trusts_put_if_absent(self) -> bool:
        host = urlsplit(self.server).hostname or ""
        return host.endswith(_AWS_HOSTS)

    @property
    def server(self) -> str:
        endpoint: str = self._requests.client("reach", "").meta.endpoint_url
        return endpoint

    def put(self, key: str, data: bytes) -> None:
        self._put_verified(key, memoryview(data), hashlib.sha256(data).digest())

    def put_if_absent(self, key: str, data: bytes) -> bool:
        try:
            self._put_verified(key, memoryview(data), hashlib.sha256(data).digest(), IfNoneMatch="*")
        except _AlreadyThere as error:
            # If an answer was lost, the object that exists may be the one that the first attempt wrote.
            return error.retried and self.get(key) == data
        return True

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        def request(client: Any) -> bytes:
            answer = self._get(key, client, start, length)
            if answer is None:
                return b""
            with contextlib.closing(answer["Body"]) as body:
                data: bytes = body.read()
            return data

        check_key(key)
        return self._requests.make("read", key, request)

    @contextlib.contextmanager
    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[ObjectReader]:
        check_key(key)
        reader = ObjectReader(self._requests, key, functools.partial(self._get, key), start, length)
        try:
            yield reader
        finally:
            reader.close()

    @contextlib.contextmanager
    def stage(self, size: int) -> Iterator[StagedObject]:
        # Reused for the thread's next object: the first use of 16 MiB of memory takes as long as copying them.
        buffer: mmap.mmap | None = self._local.__dict__.pop("buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = memory(size)
        staged = StagedObject(buffer, self._put_verified)
        try:
            yield staged
        finally:
            self._local.buffer = staged.close()

    def stat(self, key: str) -> ObjectInfo | None:
        check_key(key)
        head = functools.partial(_head, {"Bucket": self.bucket, "Key": self._prefix + key})
        try:
            try:
                answer = self._requests.make("read", key, head)
            except StorageError as error:
                if code_of(error.__cause__) not in {"AccessDenied", "400"}:
                    raise
                # The answer to HEAD has no body. The answer to GET has one, which says why it was refused.
                self.get(key, 0, 1)
                answer = self._requests.make("read", key, head)
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
            page = self._requests.make("list", prefix, functools.partial(_list, where))
            for name, size, modified in page["Objects"]:
                key = name[skipped:]
                if is_key(key) and not key.startswith(TEMPORARY):
                    yield ObjectInfo(key, size, modified)
            if not page.get("IsTruncated"):
                return
            if "NextContinuationToken" not in page:
                raise StorageError(
                    f"cannot list {self.url(prefix)}: {self.server} cuts its answer short and does not say where the "
                    "next one begins; a server with ListObjectsV2 is needed"
                )
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, keys: Iterable[str]) -> None:
        self._deletes.delete(keys)

    def touch(self, key: str, after: float = 0.0) -> bool:
        check_key(key)
        name = self._prefix + key
        fields = {"Bucket": self.bucket, "Key": name, "CopySource": {"Bucket": self.bucket, "Key": name}}

        def request(client: Any) -> Any:
            return client.copy_object(**fields, MetadataDirective="REPLACE", **self._written)

        try:
            answer = self._requests.make("refresh the time of", key, request)
        except ArtifactNotFound:
            return False
        except StorageError as error:
            code = code_of(error.__cause__)
            # A server that does not copy, or an object that this user may not copy: the caller writes it again.
            if is_unsupported(error.__cause__) or code in _NOT_TO_COPY or code.startswith("KMS"):
                return False
            raise
        modified = answer.get("CopyObjectResult", {}).get("LastModified")
        if modified is None:
            info = self.stat(key)
            return info is not None and info.modified > after
        # Some servers answer with fractions of a second, which the stored time does not have.
        return int(modified.timestamp()) > after

    def keeps_versions(self) -> bool:
        try:
            answer = self._requests.make("read", "", lambda client: client.get_bucket_versioning(Bucket=self.bucket))
        except StorageError as error:
            if code_of(error.__cause__) == "AccessDenied" or is_unsupported(error.__cause__):
                return False
            raise
        return bool(answer.get("Status") == "Enabled")

    def url(self, key: str) -> str:
        return f"{self.root}/{key}"

    def _put_verified(self, key: str, data: memoryview, sha256: bytes, **options: str) -> None:
        """Write an object and send its digest, which most servers compare with the bytes that arrive."""
        check_key(key, writing=True)
        checksum = b64encode(sha256).decode()
        fields = {"Bucket": self.bucket, "Key": self._prefix + key, **self._written, **options}
        attempts = itertools.count()

        def request(client: Any) -> None:
            again = next(attempts) > 0
            large = Body(data) if len(data) > _WHOLE_BODY_BYTES else None
            try:
                client.put_object(Body=bytes(data) if large is None else large, ChecksumSHA256=checksum, **fields)
            except faults() as error:
                if "IfNoneMatch" in options and code_of(error) in {"PreconditionFailed", "412"}:
                    raise _AlreadyThere(again or was_retried(error)) from error
                raise
            finally:
                if large is not None:
                    large.close()

        self._requests.make("write", key, request)

    def _get(self, key: str, client: Any, start: int, length: int | None, etag: str | None = None) -> Any:
        """The answer to a request for a range of an object; None where the range holds nothing."""
        if start < 0 or (length is not None and length < 0):
            raise InvalidInput(f"range of {key!r}: start {start} and length {length} must not be negative")
        fields = {"Bucket": self.bucket, "Key": self._prefix + key}
        # HTTP has no empty ranges. One byte shows whether the object exists.
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

    def _demand_bucket(self, key: str) -> None:
        """Raise unless the bucket exists: the answer to HEAD does not say whether the key or the bucket is missing.

        Only this key is listed, since credentials may allow listing below the root only, or nowhere.
        """
        if self._requests.answered:
            return
        where = {"Bucket": self.bucket, "Prefix": self._prefix + key, "MaxKeys": 1}
        try:
            self._requests.make("read", key, lambda client: client.list_objects_v2(**where))
        except ArtifactNotFound:
            pass
        except StorageError as error:
            if code_of(error.__cause__) != "AccessDenied":
                raise


class _AlreadyThere(Exception):
    def __init__(self, retried: bool) -> None:
        super().__init__(retried)
        self.retried = retried


def _head(where: dict[str, str], client: Any) -> Any:
    return client.head_object(**where)


def _list(where: dict[str, str], client: Any) -> Any:
    page = client.list_objects_v2(**where)
    if "Objects" not in page:
        # botocore parses an answer without a body as an empty one: here, as an empty listing.
        raise TransientStorageError(
            f"cannot list s3://{where['Bucket']}/{where['Prefix']}: the server sent less than it announced; try again"
        )
    return page


def _parse(root: str) -> tuple[str, str]:
    """Bucket and prefix of a root. The prefix is used as it is, without slashes at its ends, as Metaflow does."""
    bucket, _, path = root.removeprefix("s3://").partition("/")
    path = path.strip("/")
    if not root.startswith("s3://") or not bucket or not root.isprintable():
        raise InvalidInput(f"datastore root {root!r} is not an s3:// URL; it has the form s3://bucket/prefix")
    if any(part in {".", ".."} for part in path.split("/")):
        raise InvalidInput(f"datastore root {root!r} has a part '.' or '..' in its path; remove it")
    return bucket, path + "/" if path else ""
