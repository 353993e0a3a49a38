"""Clients of Azure Blob Storage, and to which addresses credentials may be sent."""

from __future__ import annotations

import os
import re
from base64 import b64encode
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from metaflow_artifacts._storage.job import tracked
from metaflow_artifacts._storage.remote import be_quiet, path_of
from metaflow_artifacts._text import public_url
from metaflow_artifacts.errors import InvalidInput, StorageError

__all__ = [
    "THREADS",
    "Address",
    "configured_endpoint",
    "container_client",
    "copy_blob",
    "default_credential",
    "is_azure",
    "parse_root",
]

THREADS = 24
"""Concurrent requests to begin with; see `s3_client`."""

_CONNECTIONS = 96
_CONNECT_SECONDS = 5
_READ_SECONDS = 18
# Everything is written with one request, and read with one: larger than any object here.
_ONE_PUT_BYTES = 5000 << 20
_ONE_GET_BYTES = 1 << 40

# The host names of Azure's blob services, in all its clouds.
_SUFFIXES = (
    ".blob.core.windows.net",
    ".blob.core.usgovcloudapi.net",
    ".blob.core.chinacloudapi.cn",
    ".blob.storage.azure.net",
)

_SCOPE = "https://storage.azure.com/.default"
_AUTHORITY = re.compile(r"[A-Za-z0-9.-]+(:\d+)?")


class Address(NamedTuple):
    """A root, taken apart."""

    endpoint: str
    """The address of the storage account, without a slash at its end."""
    container: str
    prefix: str


def is_azure(endpoint: str) -> bool:
    """Whether the endpoint is Azure's own."""
    return (urlsplit(endpoint).hostname or "").endswith(_SUFFIXES)


def parse_root(root: str, configured: str | None) -> Address:
    """Endpoint, container and prefix of a root, `<endpoint>/<container>/<prefix>`.

    `configured` is the endpoint that credentials are meant for. Raises StorageError for a root at another address,
    unless it is another account in the same cloud of Azure (without `configured`, in any of its clouds): credentials
    are sent nowhere else, whatever a reference says. Raises InvalidInput for a root that is no such URL.
    """
    form = "https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX"
    wrong = InvalidInput(
        f"datastore root {public_url(root)!r} is not the URL of an Azure container; it has the form {form}"
    )
    try:
        parts = urlsplit(root)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise wrong from None
    # Libraries differ in what else may stand in a host, and in where it ends then.
    if not _AUTHORITY.fullmatch(parts.netloc) or not root.isprintable() or "?" in root or "#" in root:
        raise wrong
    configured = configured.rstrip("/") if configured else None
    if configured and f"{root}/".startswith(f"{configured}/"):
        endpoint, path = configured, root[len(configured) :]
    else:
        known = [
            suffix for suffix in _SUFFIXES if not configured or (urlsplit(configured).hostname or "").endswith(suffix)
        ]
        if parts.scheme != "https" or port not in (None, 443) or not host.endswith(tuple(known)):
            raise StorageError(
                f"{root} is not at the configured Azure endpoint ({_shown(configured)}), and no credentials "
                "are sent to another; set METAFLOW_AZURE_STORAGE_BLOB_SERVICE_ENDPOINT to its address"
            )
        endpoint, path = f"https://{host}", parts.path
    container, _, path = path.strip("/").partition("/")
    if not container or container in {".", ".."}:
        raise wrong
    return Address(endpoint, container, path_of(root, path))


def _shown(endpoint: str | None) -> str:
    """The endpoint for a message. A signature that somebody has put behind it is left out: it is a secret."""
    return public_url(endpoint.partition("?")[0]) if endpoint else "there is none"


def default_credential() -> Any:
    """The credential that azure-identity finds: environment, workload or managed identity, Azure CLI."""
    from azure.identity import DefaultAzureCredential

    return DefaultAzureCredential()


def container_client(
    address: Address, credential: Any, configured: str | None = None, patience: float = _READ_SECONDS
) -> Any:
    """A client of the container that makes each request once, and can be used by many threads.

    A credential that is not a token, but the key or the signature of one account, is sent to the `configured` endpoint
    only; StorageError is raised for another. An answer is waited for at most `patience` seconds.
    """
    import requests
    from azure.storage.blob import ContainerClient
    from requests.adapters import HTTPAdapter

    if not hasattr(credential, "get_token") and configured and address.endpoint != configured.rstrip("/"):
        raise StorageError(f"the credentials for {_shown(configured)} are not sent to {address.endpoint}")
    session = requests.Session()
    adapter = HTTPAdapter(pool_maxsize=_CONNECTIONS, max_retries=0)
    adapter.poolmanager.pool_classes_by_scheme = tracked(adapter.poolmanager.pool_classes_by_scheme)
    for scheme in ("https://", "http://"):
        session.mount(scheme, adapter)
    # They log each credential that is not there, and each answer that broke off.
    be_quiet("azure.identity", "azure.storage", "azure.core")
    return ContainerClient(
        address.endpoint,
        address.container,
        credential=credential,
        transport=_transport(session, min(_READ_SECONDS, patience)),
        retry_total=0,
        max_single_put_size=_ONE_PUT_BYTES,
        max_single_get_size=_ONE_GET_BYTES,
    )


def _transport(session: Any, patience: float) -> Any:
    from azure.core.pipeline.transport import RequestsTransport

    class Transport(RequestsTransport):  # type: ignore[misc]
        def send(self, request: Any, **options: Any) -> Any:
            # The SDK sends a request again after a challenge or a redirection, and what was sent of its body stays
            # read.
            if hasattr(request.data, "seek"):
                request.data.seek(0)
            return super().send(request, **options)

    return Transport(session=session, session_owner=False, connection_timeout=_CONNECT_SECONDS, read_timeout=patience)


def copy_blob(source: Any, target: Any, version: str | None, md5: str | None) -> None:
    """Copy a blob on the service's side, within one account, if it still has this etag and the target does not exist.

    Azure compares what it reads with the MD5 (hex), and refuses to copy anything else; Azurite does not. The service
    reads the source with the credentials of `source`, which the request carries.
    """
    from azure.core import MatchConditions
    from azure.storage.blob import BlobSasPermissions, generate_blob_sas

    url: str = source.url
    more: dict[str, Any] = {}
    credential = source.credential
    if hasattr(credential, "get_token"):
        more["source_authorization"] = f"Bearer {credential.get_token(_SCOPE).token}"
    elif hasattr(credential, "account_key"):
        signature = generate_blob_sas(
            credential.account_name,
            source.container_name,
            source.blob_name,
            account_key=credential.account_key,
            permission=BlobSasPermissions(read=True),
            expiry=datetime.now(timezone.utc) + timedelta(hours=1),
        )
        url = f"{url}?{signature}"
    elif hasattr(credential, "signature") and "?" not in url:
        url = f"{url}?{credential.signature.lstrip('?')}"
    # With one request, which is answered when the copy is there.
    target.start_copy_from_url(
        url,
        requires_sync=True,
        source_etag=version,
        source_match_condition=MatchConditions.IfNotModified,
        match_condition=MatchConditions.IfMissing,
        headers={} if md5 is None else {"x-ms-source-content-md5": b64encode(bytes.fromhex(md5)).decode()},
        **more,
    )


def configured_endpoint() -> str | None:
    """The endpoint that Metaflow's environment variable names."""
    return os.environ.get("METAFLOW_AZURE_STORAGE_BLOB_SERVICE_ENDPOINT") or None
