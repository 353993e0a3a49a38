"""Storages of Azure and Google for another process: see `handover`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._storage.handover import Ask, Handover, NotPortable, Portable

__all__ = ["hand_over_azure", "hand_over_gcs"]


def _parts(storage: Any) -> tuple[Callable[..., Storage], Any]:
    """What makes the storage from a function that gives credentials, and that function."""
    make = storage._maker(False)
    return functools.partial(make.func, make.args[0], **make.keywords), make.args[1]


def hand_over_azure(storage: Any) -> Handover:
    """See `hand_over`."""
    make, credential_of = _parts(storage)
    credential = credential_of()
    if hasattr(credential, "get_token"):

        def answer(question: Any) -> Any:
            scopes, options = question
            return tuple(credential.get_token(*scopes, **options))

        return Handover(Portable(functools.partial(_open_azure, make, "token", None)), answer, asks=True)
    if hasattr(credential, "named_key"):
        held: Any = "key", tuple(credential.named_key)
    elif hasattr(credential, "signature"):
        held = "signature", credential.signature
    elif credential is None or isinstance(credential, (str, dict)):
        held = "value", credential
    else:
        raise NotPortable(f"an Azure credential of the type {type(credential).__name__} cannot be handed over")
    return Handover(Portable(functools.partial(_open_azure, make, *held)), lambda question: None, asks=False)


def _open_azure(make: Callable[..., Storage], kind: str, value: Any, ask: Ask) -> Storage:
    def credential() -> Any:
        if kind == "token":
            return _AzureTokens(ask)
        if kind == "value":
            return value
        from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential

        return AzureNamedKeyCredential(*value) if kind == "key" else AzureSasCredential(value)

    return make(credential)


class _AzureTokens:
    """A credential as Azure's SDK has them. The SDK keeps a token until it is about to expire."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def get_token(self, *scopes: str, **options: Any) -> Any:
        from azure.core.credentials import AccessToken

        return AccessToken(*self._ask((scopes, options)))


def hand_over_gcs(storage: Any) -> Handover:
    """See `hand_over`."""
    from google.auth.credentials import AnonymousCredentials

    from metaflow_artifacts._storage.gcs_client import default_credentials

    make, credentials_of = _parts(storage)
    credentials, project = (credentials_of or default_credentials)()
    anonymous = isinstance(credentials, AnonymousCredentials)
    about = {
        "_quota_project_id": getattr(credentials, "quota_project_id", None),
        "_universe_domain": getattr(credentials, "universe_domain", None),
    }

    def answer(token: Any) -> Any:
        import requests
        from google.auth.transport.requests import Request

        # The other process asks when it has no token, or when its token is of no use any more.
        if not credentials.valid or credentials.token == token:
            with requests.Session() as session:
                credentials.refresh(Request(session))
        return credentials.token, credentials.expiry

    return Handover(Portable(functools.partial(_open_gcs, make, anonymous, about, project)), answer, asks=not anonymous)


def _open_gcs(
    make: Callable[..., Storage], anonymous: bool, about: dict[str, Any], project: str | None, ask: Ask
) -> Storage:
    from google.auth.credentials import AnonymousCredentials, Credentials

    class Asked(Credentials):  # type: ignore[misc]
        """Tokens that are asked for when they expire."""

        token: Any

        def refresh(self, request: Any) -> None:
            self.token, self.expiry = ask(self.token)

    def credentials() -> tuple[Any, str | None]:
        if anonymous:
            return AnonymousCredentials(), project
        found = Asked()
        for name, value in about.items():
            if value is not None:
                setattr(found, name, value)
        return found, project

    return make(credentials)
