"""Storages for another process of this user, which needs no Metaflow: their settings, and keys that it asks for.

Keys that expire are renewed in the process that hands a storage over, by what renews them there. The other one asks for
the newest whenever it needs them. Nothing here is for a file, an environment variable or a command line.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._storage.local import LocalStorage

__all__ = ["Ask", "Handover", "NotPortable", "Portable", "hand_over"]

Ask = Callable[[Any], Any]
"""Asks a question of the process that handed a storage over, and returns its answer, or raises what that raised."""

_AGAIN_S = 60.0
"""How long keys that expire are used before they are asked for again; they are renewed minutes before they expire."""


class NotPortable(Exception):
    """A storage cannot be handed over, for the reason in the message."""


@dataclass(frozen=True, repr=False)
class Portable:
    """What the other process gets, by a pickle that may hold keys."""

    open: Callable[[Ask], Storage]
    """Makes the storage."""
    number: int = 0
    """What tells it from others that ask. Two with equal settings may be for different keys."""


@dataclass(frozen=True, repr=False)
class Handover:
    """A storage that is handed over."""

    portable: Portable
    answer: Ask
    """Answers what the other process asks."""
    asks: bool
    """Whether it asks anything."""


def hand_over(storage: Storage) -> Handover:
    """How another process can use a storage. May make requests for keys. Raises NotPortable, and what these raise."""
    if type(storage) is LocalStorage:
        return Handover(Portable(functools.partial(_same, storage)), _nothing, asks=False)
    kind = f"{type(storage).__module__}.{type(storage).__qualname__}"
    # By name: what a storage needs is imported where it is used.
    if kind == "metaflow_artifacts._storage.s3.S3Storage":
        return _hand_over_s3(storage)
    if kind == "metaflow_artifacts._storage.azure.AzureStorage":
        from metaflow_artifacts._storage.handover_clouds import hand_over_azure

        return hand_over_azure(storage)
    if kind == "metaflow_artifacts._storage.gcs.GcsStorage":
        from metaflow_artifacts._storage.handover_clouds import hand_over_gcs

        return hand_over_gcs(storage)
    raise NotPortable(f"{type(storage).__name__} is not a storage of these packages")


def _same(storage: Storage, ask: Ask) -> Storage:
    return storage


def _nothing(question: Any) -> Any:
    return None


def _hand_over_s3(storage: Any) -> Handover:
    make = storage._maker(False)
    client = storage._requests.client("reach", "")
    if not _makes_plain_clients(make.args[1]):
        raise NotPortable("its S3 client is made by a function, and may have settings that no other process can have")
    try:
        settings = _S3Settings.of(client)
        credentials = client._request_signer._credentials
    except AttributeError as error:
        # Not all of this is public in botocore.
        raise NotPortable(f"this botocore does not show how a client is made: {error}") from error

    def answer(question: Any) -> Any:
        return None if credentials is None else tuple(credentials.get_frozen_credentials())

    from botocore.credentials import Credentials

    # Those of all other classes may be renewed.
    expire = credentials is not None and type(credentials) is not Credentials
    keys = None if expire else answer(None)
    make = functools.partial(make.func, make.args[0], **make.keywords)
    return Handover(Portable(functools.partial(_open_s3, make, settings, keys, expire)), answer, asks=expire)


def _makes_plain_clients(function: Any) -> bool:
    """Whether a function makes S3 clients that settings and keys describe: one of ours, or one that says so."""
    from metaflow_artifacts._storage.s3_client import default_client

    if isinstance(function, functools.partial):
        function = function.func
    says = getattr(function, "makes_plain_clients", None)
    return function is default_client or (says is not None and bool(says()))


@dataclass(frozen=True)
class _S3Settings:
    """What a boto3 client is made from, without keys."""

    region: str | None
    endpoint: str
    verify: Any
    options: dict[str, Any]
    is_unsigned: bool

    @classmethod
    def of(cls, client: Any) -> _S3Settings:
        """Raises AttributeError where this botocore has other names for them."""
        from botocore import UNSIGNED
        from botocore.config import Config

        config = client.meta.config
        names = (name for name in Config.OPTION_DEFAULTS if name != "user_agent")
        options = {name: value for name in names if (value := getattr(config, name)) is not None}
        is_unsigned = options.get("signature_version") is UNSIGNED
        if is_unsigned:
            # A pickle of it is another object.
            del options["signature_version"]
        session = client._endpoint.http_session
        # Its environment may have changed since, and the other process works in another directory.
        options["proxies"] = dict(session._proxy_config._proxies)
        if "client_cert" in options:
            options["client_cert"] = _absolute(options["client_cert"])
        verify = _absolute(session._verify)
        return cls(client.meta.region_name, client.meta.endpoint_url, verify, options, is_unsigned)

    def client(self, credentials: Any) -> Any:
        """A client like the one that these are of."""
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.session import Session

        session: Any = Session()
        session._credentials = credentials
        signing = {"signature_version": UNSIGNED} if self.is_unsigned else {}
        config = Config(**self.options, **signing)
        make = functools.partial(
            session.create_client, "s3", region_name=self.region, verify=self.verify, config=config
        )
        client = make()
        # Given to it, the usual endpoint would count as one of the user's, which changes how requests are made.
        return client if client.meta.endpoint_url == self.endpoint else make(endpoint_url=self.endpoint)


def _absolute(value: Any) -> Any:
    """A path, or some of them, as they are named in every directory; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(map(_absolute, value))
    return os.path.abspath(value) if isinstance(value, str) else value


def _open_s3(
    make: Callable[..., Storage], settings: _S3Settings, keys: tuple[str, ...] | None, expire: bool, ask: Ask
) -> Storage:
    from botocore.credentials import Credentials, ReadOnlyCredentials

    class Asked(Credentials):
        """Keys that are asked for again after a while."""

        def __init__(self) -> None:
            super().__init__("", "", method="metaflow-artifacts")
            self._lock = threading.Lock()
            self._frozen: Any = None
            self._until = 0.0

        def get_frozen_credentials(self) -> Any:
            with self._lock:
                if time.monotonic() > self._until:
                    self._frozen = ReadOnlyCredentials(*ask(None))
                    self.access_key, self.secret_key, self.token = self._frozen[:3]
                    self._until = time.monotonic() + _AGAIN_S
                return self._frozen

    found = Asked() if expire else None if keys is None else Credentials(*keys[:3])
    return make(lambda: settings.client(found))
