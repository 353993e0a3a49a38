"""Objects in a container of Azure Blob Storage, below a prefix."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, ClassVar

from metaflow_artifacts._storage import azure_errors
from metaflow_artifacts._storage.azure_client import (
    THREADS,
    Address,
    configured_endpoint,
    container_client,
    copy_blob,
    default_credential,
    is_azure,
    parse_root,
)
from metaflow_artifacts._storage.azure_errors import code_of, status_of
from metaflow_artifacts._storage.base import PATIENCE_S, ObjectInfo
from metaflow_artifacts._storage.names import check_key
from metaflow_artifacts._storage.outgoing import Outgoing
from metaflow_artifacts._storage.remote import RemoteStorage
from metaflow_artifacts._storage.remote_errors import RequestContext, understood
from metaflow_artifacts._storage.remote_objects import Answer, Body, Described, ResponseBody
from metaflow_artifacts._storage.remote_proxies import demand_certificates
from metaflow_artifacts._storage.remote_requests import Service, named
from metaflow_artifacts.errors import ArtifactError, ArtifactNotFound, StorageError

__all__ = ["AzureStorage"]


class AzureStorage(RemoteStorage):
    """Objects in a container of Azure Blob Storage, below a prefix.

    `root` is `<endpoint>/<container>` or `<endpoint>/<container>/<prefix>`. `endpoint` is the address that credentials
    are meant for; see `parse_root` for which others are allowed. Without it, it is what the environment variable
    METAFLOW_AZURE_STORAGE_BLOB_SERVICE_ENDPOINT says. `credential` is a function of no arguments that returns what
    azure-storage-blob takes as a credential; without it, azure-identity looks for one. A pickle has the function's name
    if it stands at the top of a module; in place of any other, azure-identity looks for a credential where the pickle
    is read. For `patience` see RemoteStorage.
    """

    batch: ClassVar[int] = 256
    page: ClassVar[int] = 5000
    """How many objects one request lists."""

    def __init__(
        self,
        root: str,
        credential: Callable[[], Any] | None = None,
        *,
        endpoint: str | None = None,
        patience: float = PATIENCE_S,
    ) -> None:
        endpoint = endpoint or configured_endpoint()
        self.address = parse_root(root, endpoint)
        where, container, prefix = self.address
        self._credential = credential or default_credential
        self._configured = endpoint
        service = _Service(self.address, self._credential, endpoint, patience)
        whole = f"{where}/{container}/{prefix}".removesuffix("/")
        super().__init__(whole, container, prefix, service, THREADS, patience)

    def _maker(self, portable: bool) -> Callable[[], AzureStorage]:
        credential = named(self._credential) if portable else self._credential
        patience = self._requests.patience
        return functools.partial(AzureStorage, self.root, credential, endpoint=self._configured, patience=patience)

    @property
    def trusts_put_if_absent(self) -> bool:
        return is_azure(self.address.endpoint)

    def stat(self, key: str) -> ObjectInfo | None:
        check_key(key)
        name = self._prefix + key
        try:
            found = self._requests.make("read", key, lambda client: self._describe(client, name))
        except ArtifactNotFound:
            return None
        return ObjectInfo(key, found.size or 0, found.modified or 0.0)

    def keeps_versions(self) -> bool:
        # Whether versions are kept is a setting of the account, which no request for data shows. Their ids do.
        def request(client: Any) -> bool:
            listed = client.list_blobs(name_starts_with=self._prefix, include=["versions"], results_per_page=1)
            with understood():
                return any(blob.get("version_id") for blob in next(listed.by_page(), ()))

        try:
            return self._requests.make("list", "", request)
        except StorageError as error:
            if status_of(error.__cause__) == 403 or azure_errors.is_unsupported(error.__cause__):
                return False
            raise

    def _write(self, client: Any, name: str, data: memoryview | Outgoing, sha256: bytes, new: bool) -> None:
        body = data if isinstance(data, Outgoing) else Body(data)

        def attach(request: Any) -> None:
            # The SDK itself takes nothing but bytes for a write with one request, and would need memory for them. This
            # is called before the request is signed.
            request.http_request.headers["Content-Length"] = str(len(body))
            request.http_request.data = body

        try:
            client.get_blob_client(name).upload_blob(b"", overwrite=not new, raw_request_hook=attach)
        finally:
            if isinstance(body, Body):
                body.close()

    def _read(self, client: Any, name: str, first: int, last: int | None, ranged: bool, version: str | None) -> Answer:
        from azure.core import MatchConditions

        options: dict[str, Any] = {}
        if ranged:
            options["offset"] = first
        if last is not None:
            options["length"] = last - first + 1
        if version is not None:
            options.update(etag=version, match_condition=MatchConditions.IfNotModified)
        try:
            client.get_blob_client(name).download_blob(raw_response_hook=_take, **options)
        except _Taken as taken:
            response = taken.response
        body = ResponseBody(response)
        headers = response.headers
        with understood():
            length = int(headers["Content-Length"])
        return Answer(body, length, headers.get("ETag"), "Content-Range" in headers)

    def _page(self, client: Any, prefix: str, more: Any) -> tuple[Iterable[tuple[str, int, float]], Any]:
        pages = client.list_blobs(name_starts_with=prefix, results_per_page=self.page).by_page(more)
        with understood():
            objects = [(blob.name, blob.size, blob.last_modified.timestamp()) for blob in next(pages, ())]
        return objects, pages.continuation_token or None

    def _renew(self, client: Any, name: str, after: float) -> float | None:
        answer = client.get_blob_client(name).set_blob_metadata({})
        with understood():
            modified: float = answer["last_modified"].timestamp()
        return modified

    def _shares_service(self, source: AzureStorage) -> bool:
        return self.address.endpoint == source.address.endpoint

    def _describe(self, client: Any, name: str) -> Described:
        found = client.get_blob_client(name).get_blob_properties()
        with understood():
            digest = found.content_settings.content_md5
            md5 = None if digest is None else bytes(digest).hex()
            return Described(found.size, found.etag, None, md5, found.last_modified.timestamp())

    def _copy(self, client: Any, name: str, source: AzureStorage, source_name: str, found: Described) -> Described:
        from_client = source._requests.client("read", source_name)
        copy_blob(from_client.get_blob_client(source_name), client.get_blob_client(name), found.version, found.digest)
        made = self._describe(client, name)
        # The property with the MD5 is copied, so it shows nothing. The service has compared what it read with it.
        return replace(made, digest=found.digest)

    def _discard(self, client: Any, name: str, version: str) -> object:
        from azure.core import MatchConditions

        return client.get_blob_client(name).delete_blob(etag=version, match_condition=MatchConditions.IfNotModified)

    def _delete(self, client: Any, name: str) -> object:
        return client.get_blob_client(name).delete_blob()

    def _delete_batch(self, client: Any, names: list[str]) -> list[tuple[str, Exception]]:
        from azure.core.exceptions import HttpResponseError

        answers = list(client.delete_blobs(*names, raise_on_any_failure=False))
        if len(answers) != len(names):
            # One answer to the request as a whole: this server does not take it.
            raise HttpResponseError(answers[0].reason if answers else None, answers[0] if answers else None)
        return [
            (name, HttpResponseError(answer.reason, answer))
            for name, answer in zip(names, answers, strict=True)
            if answer.status_code not in {202, 404}
        ]

    def _is_unsupported(self, error: BaseException | None) -> bool:
        return azure_errors.is_unsupported(error)

    def _is_denied(self, error: BaseException | None) -> bool:
        return status_of(error) == 403

    def _may_be_replaced(self, error: BaseException | None) -> bool:
        return status_of(error) in {403, 409, 412}


class _Taken(Exception):
    """Carries an answer whose body nobody has read out of the SDK, which would read all of it into memory."""

    def __init__(self, response: Any) -> None:
        super().__init__()
        self.response = response


def _take(answer: Any) -> None:
    if answer.http_response.status_code in {200, 206}:
        raise _Taken(answer.http_response.internal_response)


class _Service(Service):
    place: ClassVar[str] = "container"

    def __init__(
        self, address: Address, credential: Callable[[], Any], configured: str | None, patience: float
    ) -> None:
        self._patience = patience
        self._address = address
        self._credential = credential
        self._configured = configured

    def make_client(self, context: RequestContext) -> Any:
        where = f"cannot {context.action} {context.url}"
        demand_certificates(where)
        try:
            return container_client(self._address, self._credential(), self._configured, self._patience)
        except ImportError as error:
            packages = "azure-storage-blob azure-identity"
            raise StorageError(f"{where}: Azure's SDK is not installed; pip install {packages}") from error
        except ValueError as error:
            raise StorageError(f"{where}: no Azure client can be made ({error}); check the endpoint") from error

    def endpoint(self, client: Any) -> str:
        return self._address.endpoint

    def faults(self) -> tuple[type[Exception], ...]:
        return azure_errors.faults()

    def explain(self, error: Exception, context: RequestContext) -> ArtifactError:
        return azure_errors.explain(error, context)

    def is_refusal(self, error: BaseException | None) -> bool:
        return code_of(error) in {"BlobAlreadyExists", "ConditionNotMet"}

    def is_beyond(self, error: BaseException | None) -> bool:
        return status_of(error) == 416

    def asks_to_slow_down(self, error: BaseException | None) -> bool:
        return status_of(error) in {429, 503}

    def is_changed(self, error: BaseException | None) -> bool:
        return code_of(error) == "Md5Mismatch"
