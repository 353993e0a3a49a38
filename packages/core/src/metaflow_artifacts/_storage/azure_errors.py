"""Messages for the errors of Azure's SDK, in one line, and whether a retry may help."""

from __future__ import annotations

from typing import Any

from metaflow_artifacts._storage import remote_errors as words
from metaflow_artifacts._storage.remote_errors import Fault, RequestContext, literal, one_line
from metaflow_artifacts._storage.remote_proxies import proxy_fault
from metaflow_artifacts.errors import ArtifactError

__all__ = ["code_of", "explain", "faults", "is_unsupported", "status_of"]

_CHECK_CREDENTIALS = "check the identity that is used (az login, the workload or managed identity, AZURE_CLIENT_ID)"
_REFUSED = "{endpoint} refused the credentials; " + _CHECK_CREDENTIALS

_REASONS = {
    "ContainerNotFound": words.REASONS["no bucket"],
    "ContainerBeingDeleted": words.REASONS["no bucket"],
    "ContainerDisabled": words.REASONS["no bucket"],
    "InvalidResourceName": "{bucket!r} is not a valid container name; check the datastore root",
    "AccountIsDisabled": "the storage account at {endpoint} is disabled; ask its owner to enable it",
    "AuthenticationFailed": _REFUSED,
    "InvalidAuthenticationInfo": _REFUSED,
    "NoAuthenticationInformation": _REFUSED,
    "BlobArchived": words.REASONS["archived"],
    "BlobBeingRehydrated": words.REASONS["archived"],
    "ServerBusy": words.REASONS["slow"],
    "Md5Mismatch": words.REASONS["changed"],
}
_PASSING = frozenset({"ServerBusy", "Md5Mismatch", "OperationTimedOut", "InternalError"})
_PASSING_STATUSES = frozenset({408, 409, 429})
_NOT_PASSING = frozenset({"BlobImmutableDueToPolicy", "BlobArchived", "BlobBeingRehydrated", "AccountBeingCreated"})
_UNSUPPORTED = frozenset({400, 405, 411, 501})


def faults() -> tuple[type[Exception], ...]:
    """The exceptions that a failed request to Azure raises."""
    from azure.core.exceptions import AzureError
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    return (AzureError, RequestException, HTTPError, ConnectionError, TimeoutError)


def code_of(error: BaseException | None) -> str:
    """The error code of Azure's answer, '' where there was none."""
    code = getattr(error, "error_code", None)
    if code is None:
        headers = getattr(getattr(error, "response", None), "headers", None) or {}
        code = headers.get("x-ms-error-code")
    return str(getattr(code, "value", code) or "")


def status_of(error: BaseException | None) -> int:
    """The status of Azure's answer, 0 where there was none."""
    return int(getattr(error, "status_code", None) or 0)


def is_unsupported(error: BaseException | None) -> bool:
    """Whether the server refuses this kind of request, so that the caller should use another kind."""
    return status_of(error) in _UNSUPPORTED and code_of(error) not in _REASONS


def explain(error: Exception, context: RequestContext) -> ArtifactError:
    """The error to raise, chained to `error`."""
    # An answer that could not be read to its end, or is no XML, is an error with a status below 400.
    return words.error_for(_answer(error) if status_of(error) >= 400 else _failure(error), context)


def _answer(error: Any) -> Fault:
    code, status = code_of(error), status_of(error)
    passing = code in _PASSING or (status >= 500 and status not in words.PERMANENT) or status in _PASSING_STATUSES
    passing = passing and code not in _NOT_PASSING
    if code in _REASONS:
        return Fault(_REASONS[code], passing and status != 404)
    if status == 404:
        return words.missing()
    if status in {429, 503}:
        return Fault(words.REASONS["slow"], True)
    if status == 507:
        return Fault(words.REASONS["full"])
    if status == 401:
        return Fault(_REFUSED)
    if status == 403:
        return Fault(words.REASONS["denied"])
    first = str(getattr(error, "message", error)).splitlines()[:1]
    return words.answered(code or status, first[0] if first else "", passing)


def _failure(error: Exception) -> Fault:
    from azure.core import exceptions as azure
    from requests import exceptions as requests
    from urllib3 import exceptions as urllib3

    text = literal(one_line(str(error).partition("\n")[0]))
    if (found := proxy_fault(error)) is not None:
        return found
    if isinstance(error, azure.ClientAuthenticationError):
        return Fault(f"no Azure credentials ({text.rstrip('.:')}); {_CHECK_CREDENTIALS}")
    if words.is_untrusted(str(error)):
        return words.certificate(text)
    if isinstance(error, (azure.ServiceResponseTimeoutError, requests.ReadTimeout, urllib3.TimeoutError, TimeoutError)):
        return words.late()
    if isinstance(error, (azure.ServiceRequestError, requests.ConnectTimeout)):
        return words.unreachable(text)
    passing = (
        azure.ServiceResponseError,
        azure.HttpResponseError,
        requests.ConnectionError,
        requests.ChunkedEncodingError,
        urllib3.HTTPError,
        ConnectionError,
    )
    return words.broken(text) if isinstance(error, passing) else Fault(text)
