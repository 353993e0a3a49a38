"""Objects in a bucket of Google Cloud Storage, below a prefix."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from metaflow_artifacts._storage import gcs_errors
from metaflow_artifacts._storage.base import PATIENCE_S, ObjectInfo
from metaflow_artifacts._storage.gcs_client import THREADS, GcsClient, default_credentials
from metaflow_artifacts._storage.gcs_errors import status_of
from metaflow_artifacts._storage.names import check_key
from metaflow_artifacts._storage.outgoing import Outgoing
from metaflow_artifacts._storage.remote import RemoteStorage, path_of
from metaflow_artifacts._storage.remote_errors import BadAnswer, RequestContext, understood
from metaflow_artifacts._storage.remote_objects import Answer, Described, ResponseBody
from metaflow_artifacts._storage.remote_proxies import demand_certificates
from metaflow_artifacts._storage.remote_requests import Service, named
from metaflow_artifacts.errors import ArtifactError, ArtifactNotFound, InvalidInput, StorageError

__all__ = ["GcsStorage"]

_DESCRIBED = "name,size,updated"
_DIGESTS = "size,generation,md5Hash,crc32c,updated"


class GcsStorage(RemoteStorage):
    """Objects in a bucket of Google Cloud Storage, below a prefix.

    `root` is `gs://bucket` or `gs://bucket/prefix`. `credentials` is a function of no arguments that returns Google's
    credentials and their project, or None; without it, they are the application default credentials. `endpoint` is the
    address of the service; without it, what Google's SDK takes. A pickle has the function's name if it stands at the
    top of a module, and none otherwise. For `patience` see RemoteStorage.
    """

    def __init__(
        self,
        root: str,
        credentials: Callable[[], tuple[Any, str | None]] | None = None,
        *,
        endpoint: str | None = None,
        patience: float = PATIENCE_S,
    ) -> None:
        bucket, prefix = _parse(root)
        whole = f"gs://{bucket}/{prefix}".removesuffix("/")
        self._credentials = credentials
        self._endpoint = endpoint
        super().__init__(whole, bucket, prefix, _Service(bucket, credentials, endpoint, patience), THREADS, patience)

    def _maker(self, portable: bool) -> Callable[[], GcsStorage]:
        credentials = named(self._credentials) if portable else self._credentials
        patience = self._requests.patience
        return functools.partial(GcsStorage, self.root, credentials, endpoint=self._endpoint, patience=patience)

    @property
    def trusts_put_if_absent(self) -> bool:
        host = urlsplit(self.server).hostname or ""
        return host == "storage.googleapis.com"

    def stat(self, key: str) -> ObjectInfo | None:
        check_key(key)
        name = self._prefix + key
        try:
            found = self._requests.make("read", key, lambda client: _copyable(_described(client, name)))
        except ArtifactNotFound:
            return None
        return ObjectInfo(key, found.size or 0, found.modified or 0.0)

    def keeps_versions(self) -> bool:
        fields = {"fields": "versioning,softDeletePolicy"}
        try:
            answer = self._requests.make("list", "", lambda client: _object(client.bucket(params=fields)))
        except StorageError as error:
            if status_of(error.__cause__) == 403 or gcs_errors.is_unsupported(error.__cause__):
                return False
            raise
        kept = int(answer.get("softDeletePolicy", {}).get("retentionDurationSeconds", 0))
        return bool(answer.get("versioning", {}).get("enabled")) or kept > 0

    def _write(self, client: GcsClient, name: str, data: memoryview | Outgoing, sha256: bytes, new: bool) -> None:
        client.upload(name, data, {"ifGenerationMatch": "0"} if new else {})

    def _read(
        self, client: GcsClient, name: str, first: int, last: int | None, ranged: bool, version: str | None
    ) -> Answer:
        from google.api_core.exceptions import PreconditionFailed

        # Without compression on the way, and without the check of a whole object's digest.
        headers = {"Accept-Encoding": "identity"}
        params = {"alt": "media"}
        if ranged:
            headers["Range"] = f"bytes={first}-" + ("" if last is None else str(last))
        if version is not None:
            params["ifGenerationMatch"] = version
        response = client.object("GET", name, params=params, headers=headers, stream=True)
        found = response.headers.get("X-Goog-Generation")
        # Some servers do not look at the condition.
        if version is not None and found != version:
            response.close()
            raise PreconditionFailed(f"generation {found} in place of {version}")
        with understood():
            length = int(response.headers["Content-Length"])
        return Answer(ResponseBody(response), length, found, "Content-Range" in response.headers)

    def _page(self, client: GcsClient, prefix: str, more: Any) -> tuple[Iterable[tuple[str, int, float]], Any]:
        params = {"prefix": prefix, "fields": f"items({_DESCRIBED}),nextPageToken"}
        page = client.bucket("/o", params={**params, **({"pageToken": more} if more else {})})
        with understood():
            objects = [(item["name"], int(item["size"]), _time(item["updated"])) for item in page.get("items", ())]
            return objects, page.get("nextPageToken") or None

    def _renew(self, client: GcsClient, name: str, after: float) -> float | None:
        from google.api_core.exceptions import TooManyRequests

        try:
            return _copyable(client.rewrite(name)).modified
        except TooManyRequests:
            # An object can be written once a second. Perhaps somebody else has just renewed it.
            modified = _copyable(_described(client, name)).modified
            if modified is not None and modified > after:
                return modified
            raise

    def _shares_service(self, source: GcsStorage) -> bool:
        return self.server == source.server

    def _describe(self, client: GcsClient, name: str) -> Described:
        return _copyable(_described(client, name, _DIGESTS))

    def _copy(self, client: GcsClient, name: str, source: GcsStorage, source_name: str, found: Described) -> Described:
        return _copyable(client.rewrite(name, source.bucket, source_name, found.version, new=True))

    def _discard(self, client: GcsClient, name: str, version: str) -> object:
        return client.object("DELETE", name, params={"ifGenerationMatch": version})

    def _delete(self, client: GcsClient, name: str) -> object:
        return client.object("DELETE", name)

    def _is_unsupported(self, error: BaseException | None) -> bool:
        return gcs_errors.is_unsupported(error)

    def _is_denied(self, error: BaseException | None) -> bool:
        return status_of(error) == 403

    def _may_be_replaced(self, error: BaseException | None) -> bool:
        return status_of(error) == 403


class _Service(Service):
    def __init__(
        self,
        bucket: str,
        credentials: Callable[[], tuple[Any, str | None]] | None,
        endpoint: str | None,
        patience: float,
    ) -> None:
        self._patience = patience
        self._bucket = bucket
        self._endpoint = endpoint
        self._credentials = credentials or default_credentials

    def make_client(self, context: RequestContext) -> Any:
        where = f"cannot {context.action} {context.url}"
        demand_certificates(where)
        try:
            import google.cloud.storage  # noqa: F401
            from google.auth.exceptions import GoogleAuthError
        except ImportError as error:
            raise StorageError(
                f"{where}: google-cloud-storage is not installed; pip install google-cloud-storage"
            ) from error
        try:
            return GcsClient(self._bucket, *self._credentials(), self._endpoint, self._patience)
        except GoogleAuthError as error:
            raise self.explain(error, context) from error
        except ValueError as error:
            raise StorageError(f"{where}: no client of Google Cloud Storage can be made ({error})") from error

    def endpoint(self, client: Any) -> str:
        url: str = client.endpoint
        return url

    def faults(self) -> tuple[type[Exception], ...]:
        return gcs_errors.faults()

    def explain(self, error: Exception, context: RequestContext) -> ArtifactError:
        return gcs_errors.explain(error, context)

    def asks_to_slow_down(self, error: BaseException | None) -> bool:
        return status_of(error) in {429, 503}

    def is_refusal(self, error: BaseException | None) -> bool:
        return status_of(error) == 412

    def is_beyond(self, error: BaseException | None) -> bool:
        return status_of(error) == 416


def _object(answer: Any) -> Any:
    if not isinstance(answer, dict):
        raise BadAnswer(f"no JSON object: {answer!r}")
    return answer


def _described(client: GcsClient, name: str, fields: str = _DESCRIBED) -> Any:
    return client.object("GET", name, params={"fields": fields}).json()


def _copyable(found: Any) -> Described:
    with understood():
        # Objects that were composed of others have no MD5.
        digest = found.get("md5Hash") or found.get("crc32c")
        return Described(int(found["size"]), found.get("generation"), None, digest, _time(found["updated"]))


def _time(text: str) -> float:
    """A time of GCS in seconds since the epoch."""
    # Python 3.10 knows neither the letter nor fractions of any length.
    seconds, _, fraction = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{seconds}+00:00").timestamp() + (float(f"0.{fraction}") if fraction else 0.0)


def _parse(root: str) -> tuple[str, str]:
    """Bucket and prefix of a root."""
    bucket, _, path = root.removeprefix("gs://").partition("/")
    if not root.startswith("gs://") or not bucket or not root.isprintable():
        raise InvalidInput(f"datastore root {root!r} is not a gs:// URL; it has the form gs://bucket/prefix")
    return bucket, path_of(root, path)
