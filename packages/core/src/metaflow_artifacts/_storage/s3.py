"""Objects in an S3 bucket, below a prefix."""

from __future__ import annotations

import functools
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, ClassVar
from urllib.parse import urlsplit

from metaflow_artifacts._storage.base import PATIENCE_S, ObjectInfo
from metaflow_artifacts._storage.names import check_key
from metaflow_artifacts._storage.outgoing import Outgoing
from metaflow_artifacts._storage.remote import RemoteStorage, path_of
from metaflow_artifacts._storage.remote_errors import error_for, missing, understood
from metaflow_artifacts._storage.remote_objects import Answer, Body, CopiedBody, Described
from metaflow_artifacts._storage.s3_client import THREADS, client_config, default_client, takes
from metaflow_artifacts._storage.s3_client import portable as portable_client
from metaflow_artifacts._storage.s3_errors import code_of, is_unsupported, told_as_retried
from metaflow_artifacts._storage.s3_quick import QuickRequests, Written
from metaflow_artifacts._storage.s3_service import S3Service
from metaflow_artifacts.errors import ArtifactNotFound, InvalidInput, StorageError, TransientStorageError

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


_SHA256 = re.compile(r"[A-Za-z0-9+/]{43}=")
_MD5 = re.compile(r"[0-9a-f]{32}")

_WRITTEN_HEADERS = {
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "SSEKMSKeyId": "x-amz-server-side-encryption-aws-kms-key-id",
}
_IF_FREE = {"IfNoneMatch": "*"}
_NOT_TO_COPY = frozenset({"AccessDenied", "InvalidObjectState"})
"""Answers for an object with another's key, or in an archive, which can be replaced all the same."""


class S3Storage(RemoteStorage):
    """Objects in an S3 bucket, below a prefix.

    `root` is `s3://bucket` or `s3://bucket/prefix`. `client` is a function of no arguments that returns a boto3 S3
    client (see `client_config` for its settings); without it, one is made as boto3 is configured. A pickle has the
    function's name if it stands at the top of a module. Of any other function it has the endpoint and region of its
    client: the credentials are then those that boto3 finds where the pickle is read. `sse` (`AES256`, `aws:kms`) and
    `sse_kms_key_id` ask for server-side encryption of all that is written. For `patience` see RemoteStorage.
    """

    batch: ClassVar[int] = 1000
    keeps_sha256: ClassVar[bool] = True

    def __init__(
        self,
        root: str,
        client: Callable[[], Any] | None = None,
        *,
        sse: str | None = None,
        sse_kms_key_id: str | None = None,
        patience: float = PATIENCE_S,
    ) -> None:
        bucket, prefix = _parse(root)
        whole = f"s3://{bucket}/{prefix}".removesuffix("/")
        self._connect = client or default_client
        super().__init__(whole, bucket, prefix, S3Service(self._connect), THREADS, patience)
        self._written: dict[str, str] = {}
        self._quick_requests: QuickRequests | None = None
        if sse:
            self._written["ServerSideEncryption"] = sse
        if sse_kms_key_id:
            self._written["SSEKMSKeyId"] = sse_kms_key_id

    def _maker(self, portable: bool) -> Callable[[], S3Storage]:
        client = portable_client(self._connect, lambda: self._requests.client("reach", "")) if portable else None
        return functools.partial(
            S3Storage,
            self.root,
            client or self._connect,
            sse=self._written.get("ServerSideEncryption"),
            sse_kms_key_id=self._written.get("SSEKMSKeyId"),
            patience=self._requests.patience,
        )

    @property
    def trusts_put_if_absent(self) -> bool:
        host = urlsplit(self.server).hostname or ""
        return host.endswith(_AWS_HOSTS)

    def stat(self, key: str) -> ObjectInfo | None:
        found = self.stat_before_write(key)
        if found is None:
            self._demand_bucket(key)
        return found

    def stat_before_write(self, key: str) -> ObjectInfo | None:
        check_key(key)
        head = functools.partial(self._head, key)
        try:
            try:
                return self._requests.make("read", key, head)
            except StorageError as error:
                if code_of(error.__cause__) not in {"AccessDenied", "400"}:
                    raise
                # The answer to HEAD has no body. The answer to GET has one, which says why it was refused.
                self.get(key, 0, 1)
                return self._requests.make("read", key, head)
        except ArtifactNotFound:
            return None

    def _head(self, key: str, client: Any) -> ObjectInfo:
        quick = self._quick(client).head(self._prefix + key)
        if quick is None:
            answer = client.head_object(Bucket=self.bucket, Key=self._prefix + key)
            with understood():
                return ObjectInfo(key, answer["ContentLength"], answer["LastModified"].timestamp())
        if not quick.exists:
            raise error_for(missing(), self._requests.context("read", key))
        return ObjectInfo(key, quick.size, quick.modified)

    def _page(self, client: Any, prefix: str, more: Any) -> tuple[Iterable[tuple[str, int, float]], Any]:
        where = {"Bucket": self.bucket, "Prefix": prefix}
        page = client.list_objects_v2(**where, **({"ContinuationToken": more} if more else {}))
        if "Objects" not in page:
            # botocore parses an answer without a body as an empty one: here, as an empty listing.
            raise TransientStorageError(
                f"cannot list s3://{self.bucket}/{prefix}: the server sent less than it announced; try again"
            )
        more = page.get("NextContinuationToken") if page.get("IsTruncated") else None
        if more is None and page.get("IsTruncated"):
            raise StorageError(
                f"cannot list s3://{self.bucket}/{prefix}: {self.server} cuts its answer short and does not say where "
                "the next one begins; a server with ListObjectsV2 is needed"
            )
        return page["Objects"], more

    def _delete(self, client: Any, name: str) -> object:
        return client.delete_object(Bucket=self.bucket, Key=name)

    def _delete_batch(self, client: Any, names: list[str]) -> list[tuple[str, Exception]]:
        # Not every server has DeleteObjects, and some require a Content-MD5, which boto3 no longer sends.
        from botocore.exceptions import ClientError

        objects = [{"Key": name} for name in names]
        answer = client.delete_objects(Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True})
        failed = [error for error in answer.get("Errors", ()) if error.get("Code") != "NoSuchKey"]
        return [(error["Key"], ClientError({"Error": error}, "DeleteObjects")) for error in failed]

    def _renew(self, client: Any, name: str, after: float) -> float | None:
        fields = {"Bucket": self.bucket, "Key": name, "CopySource": {"Bucket": self.bucket, "Key": name}}
        answer = client.copy_object(**fields, MetadataDirective="REPLACE", **self._written)
        modified = answer.get("CopyObjectResult", {}).get("LastModified")
        # Some servers answer with fractions of a second, which the stored time does not have.
        return None if modified is None else int(modified.timestamp())

    def _shares_service(self, source: S3Storage) -> bool:
        mine, theirs = (urlsplit(storage.server).hostname or "" for storage in (self, source))
        return self.server == source.server or any(
            mine.endswith(suffix) and theirs.endswith(suffix) for suffix in _AWS_HOSTS
        )

    def _describe(self, client: Any, name: str) -> Described:
        answer = client.head_object(Bucket=self.bucket, Key=name, ChecksumMode="ENABLED")
        with understood():
            return _described(answer, answer["ContentLength"])

    def _copy(self, client: Any, name: str, source: S3Storage, source_name: str, found: Described) -> Described:
        answer = client.copy_object(
            Bucket=self.bucket,
            Key=name,
            CopySource={"Bucket": source.bucket, "Key": source_name},
            CopySourceIfMatch=found.version,
            ChecksumAlgorithm="SHA256",
            **self._written,
            **(_IF_FREE if takes(client, "CopyObject", *_IF_FREE) else {}),
        )
        made = _described(answer.get("CopyObjectResult", {}), None)
        if made.digest == found.digest or made.sha256 is not None:
            return made
        # Some servers say more about an object than about a copy.
        return self._describe(client, name)

    def _discard(self, client: Any, name: str, version: str) -> object:
        if not takes(client, "DeleteObject", "IfMatch"):
            return None
        return client.delete_object(Bucket=self.bucket, Key=name, IfMatch=version)

    def _is_unsupported(self, error: BaseException | None) -> bool:
        return is_unsupported(error)

    def _is_denied(self, error: BaseException | None) -> bool:
        code = code_of(error)
        return code == "AccessDenied" or code.startswith("KMS")

    def _may_be_replaced(self, error: BaseException | None) -> bool:
        code = code_of(error)
        return code in _NOT_TO_COPY or code.startswith("KMS")

    def keeps_versions(self) -> bool:
        try:
            answer = self._requests.make("read", "", lambda client: client.get_bucket_versioning(Bucket=self.bucket))
        except StorageError as error:
            if code_of(error.__cause__) == "AccessDenied" or is_unsupported(error.__cause__):
                return False
            raise
        return bool(answer.get("Status") == "Enabled")

    def _write(self, client: Any, name: str, data: memoryview | Outgoing, sha256: bytes, new: bool) -> None:
        """Write an object and send its digest, which most servers compare with the bytes that arrive."""
        fields = {"Bucket": self.bucket, "Key": name, **self._written, **({"IfNoneMatch": "*"} if new else {})}
        checksum = b64encode(sha256).decode()
        body = Body(data) if isinstance(data, memoryview) else data
        try:
            written = self._quick(client).put(name, body, checksum, new=new)
            if written is Written.YES:
                return
            body.seek(0)
            whole = bytes(data) if isinstance(data, memoryview) and len(data) <= _WHOLE_BODY_BYTES else body
            with told_as_retried() if written is Written.MAYBE else nullcontext():
                answer = client.put_object(Body=whole, ChecksumSHA256=checksum, **fields)
            with understood():
                # Without it, it is not S3 that has answered, and nothing may be stored.
                answer["ETag"]
        finally:
            if isinstance(body, Body):
                body.close()

    def _read(self, client: Any, name: str, first: int, last: int | None, ranged: bool, version: str | None) -> Answer:
        quick = self._quick(client).open(name, first, last, version)
        if quick is not None:
            return Answer(quick, quick.length, quick.version, b"content-range" in quick.headers)
        fields = {"Bucket": self.bucket, "Key": name}
        if ranged:
            fields["Range"] = f"bytes={first}-" + ("" if last is None else str(last))
        if version is not None:
            fields["IfMatch"] = version
        answer = client.get_object(**fields)
        with understood():
            length = answer["ContentLength"]
        return Answer(CopiedBody(answer["Body"]), length, answer.get("ETag"), "ContentRange" in answer)

    def _quick(self, client: Any) -> QuickRequests:
        quick = self._quick_requests
        if quick is None or quick.client is not client:
            written = {_WRITTEN_HEADERS[field]: value for field, value in self._written.items()}
            quick = self._quick_requests = QuickRequests(client, self.bucket, written)
        return quick

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


def _described(answer: Any, size: int | None) -> Described:
    tag = str(answer.get("ETag") or "")
    sha256 = str(answer.get("ChecksumSHA256") or "")
    return Described(
        size,
        tag or None,
        # Not of an object that was sent in parts: that is a digest of digests.
        b64decode(sha256) if _SHA256.fullmatch(sha256) else None,
        # Nor is the tag then an MD5; some servers answer without its quotes.
        tag.strip('"') if _MD5.fullmatch(tag.strip('"')) else None,
        answer["LastModified"].timestamp() if "LastModified" in answer else None,
    )


def _parse(root: str) -> tuple[str, str]:
    """Bucket and prefix of a root."""
    bucket, _, path = root.removeprefix("s3://").partition("/")
    if not root.startswith("s3://") or not bucket or not root.isprintable():
        raise InvalidInput(f"datastore root {root!r} is not an s3:// URL; it has the form s3://bucket/prefix")
    return bucket, path_of(root, path)
