"""Clients of Google Cloud Storage: one bucket, through the SDK's credentials, endpoint and session."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from metaflow_artifacts._storage.job import tracked
from metaflow_artifacts._storage.outgoing import Outgoing
from metaflow_artifacts._storage.remote import be_quiet
from metaflow_artifacts._storage.remote_errors import BadAnswer, understood
from metaflow_artifacts._storage.remote_objects import Body

__all__ = ["SCOPES", "THREADS", "GcsClient", "default_credentials"]

THREADS = 24
"""Concurrent requests to begin with; see `s3_client`."""

SCOPES = ("https://www.googleapis.com/auth/devstorage.read_write",)

_CONNECTIONS = 96
_CONNECT_SECONDS = 5
_READ_SECONDS = 18
_BOUNDARY = "==metaflow-artifacts-9c1f5f0b=="


class GcsClient:
    """Makes requests to one bucket, each once; many threads may use it. Raises what the SDK raises.

    The SDK itself sends objects above 8 MiB in a way that cannot be made conditional in one request, and reads whole
    objects into memory. So the requests for objects are made here, with the session of the SDK.
    """

    def __init__(
        self, bucket: str, credentials: Any, project: str | None, endpoint: str | None, patience: float
    ) -> None:
        from google.auth.transport.requests import AuthorizedSession
        from google.cloud import storage
        from requests.adapters import HTTPAdapter

        # Knows the endpoint: Google's own, that of the credentials' universe, or what STORAGE_EMULATOR_HOST says.
        options = {"api_endpoint": endpoint} if endpoint else None
        sdk = storage.Client(project=project or "none", credentials=credentials, client_options=options)
        # Before version 2.15, the SDK kept it to itself.
        found = sdk.api_endpoint if hasattr(sdk, "api_endpoint") else sdk._connection.API_BASE_URL
        self.endpoint = str(found).rstrip("/")
        be_quiet("google.auth")
        self._credentials = credentials
        self._session = AuthorizedSession(credentials, max_refresh_attempts=0)
        adapter = HTTPAdapter(pool_maxsize=_CONNECTIONS, max_retries=0)
        adapter.poolmanager.pool_classes_by_scheme = tracked(adapter.poolmanager.pool_classes_by_scheme)
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, adapter)
        self._timeout = (_CONNECT_SECONDS, min(_READ_SECONDS, patience))
        self._bucket = quote(bucket, safe="")

    def object(self, method: str, name: str, more: str = "", **options: Any) -> Any:
        """The response to a request about one object; `more` is what follows its name."""
        return self._send(method, f"/storage/v1/b/{self._bucket}/o/{quote(name, safe='')}{more}", **options)

    def bucket(self, more: str = "", **options: Any) -> Any:
        """The answer to a question about the bucket."""
        return self._send("GET", f"/storage/v1/b/{self._bucket}{more}", **options).json()

    def rewrite(
        self,
        name: str,
        bucket: str | None = None,
        source: str | None = None,
        generation: str | None = None,
        new: bool = False,
    ) -> Any:
        """Copy an object onto itself, or the object `source` of another bucket, if it is of this generation.

        With `new`, only if there is no object of this name. The answer describes the new version.
        """
        first = self._bucket if bucket is None else quote(bucket, safe="")
        begin = f"/storage/v1/b/{first}/o/{quote(source or name, safe='')}"
        target = f"/rewriteTo/b/{self._bucket}/o/{quote(name, safe='')}"
        params = {} if generation is None else {"ifSourceGenerationMatch": generation}
        if new:
            params["ifGenerationMatch"] = "0"
        while True:
            answer = self._send("POST", begin + target, params=params).json()
            with understood():
                if answer.get("done"):
                    return answer["resource"]
                params["rewriteToken"] = answer["rewriteToken"]

    def upload(self, name: str, data: memoryview | Outgoing, params: dict[str, str]) -> None:
        """Write an object with one request."""
        about = json.dumps({"name": name, "contentType": "application/octet-stream"})
        head = (
            f"--{_BOUNDARY}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{about}\r\n"
            f"--{_BOUNDARY}\r\nContent-Type: application/octet-stream\r\n\r\n"
        )
        body = _Parts([head.encode(), data, f"\r\n--{_BOUNDARY}--".encode()])
        try:
            stored = self._send(
                "POST",
                f"/upload/storage/v1/b/{self._bucket}/o",
                params={"uploadType": "multipart", **params},
                headers={"Content-Type": f'multipart/related; boundary="{_BOUNDARY}"'},
                data=body,
            ).json()
            # Anything else can answer with 200 too: a proxy that wants a password, for example.
            with understood():
                if (stored["name"], int(stored["size"])) != (name, len(data)):
                    raise BadAnswer(f"{stored['size']} bytes of {len(data)} stored as {stored['name']!r}")
        finally:
            body.close()

    def _send(self, method: str, path: str, **options: Any) -> Any:
        from google.api_core.exceptions import from_http_response

        # A redirection is not the service's: it has none, and a write would be repeated as a read.
        send = functools.partial(
            self._session.request,
            method,
            self.endpoint + path,
            timeout=self._timeout,
            allow_redirects=False,
            **options,
        )
        response = send()
        if response.status_code == 401:
            # A token that was revoked, or that has expired by the server's clock. The session would not rewind a body.
            response.close()
            self._refresh()
            if "data" in options:
                options["data"].seek(0)
            response = send()
        if response.status_code >= 300:
            with response:
                raise from_http_response(response)
        return response

    def _refresh(self) -> None:
        import requests
        from google.auth.transport.requests import Request

        with requests.Session() as session:
            self._credentials.refresh(Request(session))


class _Parts:
    """Contents as one file, which is read in blocks and not copied."""

    def __init__(self, parts: Sequence[bytes | memoryview | Outgoing]) -> None:
        self._parts = [part if isinstance(part, Outgoing) else Body(memoryview(part)) for part in parts]

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def read(self, size: int = -1) -> memoryview | bytes:
        if size < 0:
            return b"".join(bytes(part.read()) for part in self._parts)
        for part in self._parts:
            if block := part.read(size):
                return block
        return b""

    def seek(self, position: int, whence: int = 0) -> int:
        """To the begin only."""
        if position or whence:
            raise OSError("only the begin can be sought")
        for part in self._parts:
            part.seek(0)
        return 0

    def tell(self) -> int:
        return sum(part.tell() for part in self._parts)

    def close(self) -> None:
        for part in self._parts:
            part.close()
        self._parts = []


def default_credentials() -> tuple[Any, str | None]:
    """Google's application default credentials, and their project."""
    import google.auth
    from google.auth.credentials import AnonymousCredentials

    if os.environ.get("STORAGE_EMULATOR_HOST"):
        # As the SDK does.
        return AnonymousCredentials(), None
    be_quiet("google.auth")
    credentials, project = google.auth.default(scopes=SCOPES)
    return credentials, project
