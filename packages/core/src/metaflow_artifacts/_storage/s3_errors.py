"""Messages for the errors of botocore, in one line, and whether a retry may help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from metaflow_artifacts._storage import remote_errors as words
from metaflow_artifacts._storage.remote_errors import Fault, RequestContext, literal, one_line
from metaflow_artifacts._storage.remote_proxies import origins, proxy_fault
from metaflow_artifacts.errors import ArtifactError, InvalidInput

__all__ = ["code_of", "explain", "faults", "is_unsupported", "told_as_retried", "was_retried"]

_CHECK_CREDENTIALS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the AWS profile or the role"

_REASONS = {
    "NoSuchBucket": words.REASONS["no bucket"],
    "InvalidBucketName": "{bucket!r} is not a valid bucket name; check the datastore root",
    "AccessDenied": words.REASONS["denied"],
    "AllAccessDisabled": "access to the bucket {bucket!r} is disabled; ask the owner of its account to enable it",
    "ExpiredToken": "the AWS credentials have expired; renew them (for SSO: aws sso login)",
    "InvalidAccessKeyId": "{endpoint} does not know the AWS access key; " + _CHECK_CREDENTIALS,
    "SignatureDoesNotMatch": "{endpoint} refused the AWS secret key; " + _CHECK_CREDENTIALS,
    "InvalidToken": "{endpoint} refused the AWS session token; " + _CHECK_CREDENTIALS,
    "RequestTimeTooSkewed": words.REASONS["clock"],
    "PermanentRedirect": "the bucket {bucket!r} lies in another region; set AWS_DEFAULT_REGION to it",
    "InvalidObjectState": words.REASONS["archived"],
    "InsufficientStorage": words.REASONS["full"],
    "NotImplemented": "{endpoint} does not support this request; use a server with conditional writes",
    "SlowDown": words.REASONS["slow"],
    "BadDigest": words.REASONS["changed"],
}
_ALIASES = {
    "403": "AccessDenied",
    "Forbidden": "AccessDenied",
    "AccountProblem": "AllAccessDisabled",
    "ExpiredTokenException": "ExpiredToken",
    "TokenRefreshRequired": "ExpiredToken",
    "RequestExpired": "ExpiredToken",
    "InvalidSecurity": "InvalidAccessKeyId",
    "UnrecognizedClientException": "InvalidAccessKeyId",
    "301": "PermanentRedirect",
    "AuthorizationHeaderMalformed": "PermanentRedirect",
    "IllegalLocationConstraintException": "PermanentRedirect",
    "507": "InsufficientStorage",
    "XMinioStorageFull": "InsufficientStorage",
    "QuotaExceeded": "InsufficientStorage",
    "501": "NotImplemented",
    "503": "SlowDown",
    "429": "SlowDown",
    "ServiceUnavailable": "SlowDown",
    "Throttling": "SlowDown",
    "ThrottlingException": "SlowDown",
    "TooManyRequests": "SlowDown",
    "RequestLimitExceeded": "SlowDown",
    "BandwidthLimitExceeded": "SlowDown",
    "XAmzContentChecksumMismatch": "BadDigest",
}
_PASSING = frozenset(
    {
        "SlowDown",
        "BadDigest",
        "InternalError",
        "RequestTimeout",
        "RequestTimeoutException",
        "IncompleteBody",
        "OperationAborted",
        "ConditionalRequestConflict",
        "409",
    }
)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_UNSUPPORTED = frozenset({400, 405, 411, 501})
_NO_FILE = (FileNotFoundError, IsADirectoryError, PermissionError)
_PERMANENT = frozenset({"NotImplemented", "InsufficientStorage"})


def faults() -> tuple[type[Exception], ...]:
    """The exceptions that a failed request to S3 raises."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    return (BotoCoreError, ClientError, ResponseParserError, HTTPError, ConnectionError, TimeoutError)


def code_of(error: BaseException | None) -> str:
    """The error code of S3's answer, '' where there was none."""
    answer: dict[str, Any] = getattr(error, "response", None) or {}
    code = str(answer.get("Error", {}).get("Code", ""))
    return _ALIASES.get(code, code)


def was_retried(error: BaseException) -> bool:
    """Whether botocore itself made the request more than once."""
    answer: dict[str, Any] = getattr(error, "response", None) or {}
    return bool(answer.get("ResponseMetadata", {}).get("RetryAttempts"))


@contextmanager
def told_as_retried() -> Iterator[None]:
    """In the block, botocore makes a request that was made before in another way: its error says so."""
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as error:
        answer: dict[str, Any] = error.response  # type: ignore[assignment]  # Servers leave parts out.
        answer.setdefault("ResponseMetadata", {})["RetryAttempts"] = 1
        raise


def is_unsupported(error: BaseException | None) -> bool:
    """Whether the server refuses this kind of request, so that the caller should use another kind."""
    answer: dict[str, Any] = getattr(error, "response", None) or {}
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    code = code_of(error)
    # Expired credentials and the like are a 400 too.
    is_general = code == "NotImplemented" or (
        code not in _REASONS and code not in _PASSING and not code.startswith("KMS")
    )
    return status in _UNSUPPORTED and is_general


def explain(error: Exception, context: RequestContext) -> ArtifactError:
    """The error to raise, chained to `error`."""
    from botocore.exceptions import ClientError

    return words.error_for(_answer(error) if isinstance(error, ClientError) else _failure(error), context)


def _answer(error: Any) -> Fault:
    code = code_of(error)
    details = error.response.get("Error", {})
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    if code in {"NoSuchKey", "404", "NotFound"}:
        return words.missing()
    if code == "KeyTooLongError":
        return words.too_long()
    if status in _REDIRECTS and code in {"", str(status), "PermanentRedirect"} and not _names_region(error):
        where = error.response["ResponseMetadata"].get("HTTPHeaders", {}).get("location")
        return words.redirected(where)
    passing = code in _PASSING or (status >= 500 and code not in _PERMANENT)
    if code.startswith("KMS"):
        said = one_line(details.get("Message"))
        return Fault(literal(f"the encryption key cannot be used: {said}; check the key, and who may use it"))
    if code in _REASONS:
        return Fault(_REASONS[code], passing)
    return words.answered(code or status, details.get("Message"), passing)


def _names_region(error: Any) -> bool:
    """Whether a redirect is S3's own, to the region of the bucket."""
    answer = error.response
    said = str(answer.get("Error", {}).get("Code", ""))
    return not said.isdecimal() or "x-amz-bucket-region" in answer["ResponseMetadata"].get("HTTPHeaders", {})


def _failure(error: Exception) -> Fault:
    from botocore import exceptions as botocore
    from botocore.parsers import ResponseParserError
    from urllib3 import exceptions as urllib3

    if isinstance(error, ResponseParserError):
        return words.not_understood(error)
    text = literal(one_line(error))
    if (found := proxy_fault(error)) is not None:
        return found
    if isinstance(error, botocore.SSLError) and any(type(one) in _NO_FILE for one in origins(error)):
        return Fault(f"the file of trusted certificates cannot be read ({text}); check AWS_CA_BUNDLE")
    if isinstance(error, botocore.HTTPClientError) and "Invalid header value" in text:
        # The text has the value.
        return Fault(
            f"the AWS credentials have a character that cannot be sent, such as a newline; {_CHECK_CREDENTIALS}"
        )
    credentials = (
        botocore.NoCredentialsError,
        botocore.PartialCredentialsError,
        botocore.CredentialRetrievalError,
        botocore.ProfileNotFound,
        botocore.SSOError,
        botocore.TokenRetrievalError,
        botocore.NoAuthTokenError,
    )
    if isinstance(error, credentials):
        return Fault(f"no AWS credentials ({text.rstrip('.')}); {_CHECK_CREDENTIALS}")
    if isinstance(error, botocore.ParamValidationError):
        return Fault(f"{text}; {words.CHECK_ROOT}", False, InvalidInput)
    if isinstance(error, botocore.SSLError) and "CERTIFICATE" in str(error).upper():
        return words.certificate(text)
    unreachable = (
        botocore.ConnectTimeoutError,
        botocore.EndpointConnectionError,
        botocore.ProxyConnectionError,
        botocore.SSLError,
    )
    if isinstance(error, unreachable):
        return words.unreachable(text)
    if isinstance(error, (botocore.ReadTimeoutError, urllib3.TimeoutError, TimeoutError)):
        return words.late()
    passing = (
        botocore.HTTPClientError,
        botocore.ResponseStreamingError,
        botocore.IncompleteReadError,
        urllib3.HTTPError,
        ConnectionError,
    )
    return words.broken(text) if isinstance(error, passing) else Fault(text)
