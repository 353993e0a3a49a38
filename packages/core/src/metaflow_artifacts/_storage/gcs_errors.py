"""Messages for the errors of Google's SDK, in one line, and whether a retry may help."""

from __future__ import annotations

from typing import Any

from metaflow_artifacts._storage import remote_errors as words
from metaflow_artifacts._storage.remote_errors import Fault, RequestContext, literal, one_line
from metaflow_artifacts._storage.remote_proxies import proxy_fault
from metaflow_artifacts.errors import ArtifactError

__all__ = ["explain", "faults", "is_unsupported", "status_of"]

_CHECK_CREDENTIALS = (
    "check GOOGLE_APPLICATION_CREDENTIALS, gcloud auth application-default login, or the service account"
)
_SLOW = frozenset({"rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded"})
_PASSING_STATUSES = frozenset({408, 409, 429})
_NO_SUCH_OBJECT = frozenset({"read", "delete", "refresh the time of"})


def faults() -> tuple[type[Exception], ...]:
    """The exceptions that a failed request to GCS raises."""
    from google.api_core.exceptions import GoogleAPICallError
    from google.auth.exceptions import GoogleAuthError
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    return (GoogleAPICallError, GoogleAuthError, RequestException, HTTPError, ConnectionError, TimeoutError)


def status_of(error: BaseException | None) -> int:
    """The status of the answer, 0 where there was none."""
    code = getattr(error, "code", None)
    return int(code) if isinstance(code, int) else 0


def is_unsupported(error: BaseException | None) -> bool:
    """Whether the server refuses this kind of request, so that the caller should use another kind."""
    return status_of(error) in {405, 411, 501}


def explain(error: Exception, context: RequestContext) -> ArtifactError:
    """The error to raise, chained to `error`."""
    return words.error_for(_answer(error, context.action) if status_of(error) else _failure(error), context)


def _answer(error: Any, action: str) -> Fault:
    status = status_of(error)
    text = one_line(error.message)
    reasons = {str(one.get("reason", "")) for one in error.errors if isinstance(one, dict)}
    if status == 404:
        is_bucket = "bucket does not exist" in text or action not in _NO_SUCH_OBJECT
        return Fault(words.REASONS["no bucket"]) if is_bucket else words.missing()
    if status in {429, 503} or reasons & _SLOW:
        return Fault(words.REASONS["slow"], True)
    if status == 401:
        return Fault(f"{{endpoint}} refused the credentials; {_CHECK_CREDENTIALS}")
    if status == 403:
        return Fault(words.REASONS["denied"])
    passing = (status >= 500 and status not in words.PERMANENT) or status in _PASSING_STATUSES
    return words.answered(status, text.partition(": ")[2] or text, passing)


def _failure(error: Exception) -> Fault:
    from google.auth import exceptions as google
    from requests import exceptions as requests
    from urllib3 import exceptions as urllib3

    text = literal(one_line(error))
    if (found := proxy_fault(error)) is not None:
        return found
    if words.is_untrusted(text):
        return words.certificate(text)
    if isinstance(error, google.TransportError):
        return words.unreachable(text)
    if isinstance(error, google.GoogleAuthError):
        passing = bool(getattr(error, "retryable", False))
        return Fault(f"no Google Cloud credentials ({text.rstrip('.')}); {_CHECK_CREDENTIALS}", passing)
    if isinstance(error, (requests.ReadTimeout, urllib3.ReadTimeoutError, TimeoutError)):
        return words.late()
    cause = getattr(error.args[0], "reason", None) if error.args else None
    if isinstance(error, requests.ConnectTimeout) or isinstance(cause, urllib3.NewConnectionError):
        return words.unreachable(text)
    passing_errors = (
        requests.ConnectionError,
        requests.ChunkedEncodingError,
        # A body that was cut short or changed is no JSON.
        requests.InvalidJSONError,
        urllib3.HTTPError,
        ConnectionError,
    )
    return words.broken(text) if isinstance(error, passing_errors) else Fault(text)
