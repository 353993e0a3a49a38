"""Messages for the errors of botocore, in one line, and whether a retry may help."""

from __future__ import annotations

from typing import Any, NamedTuple

from metaflow_artifacts.errors import (
    ArtifactError,
    ArtifactNotFound,
    InvalidInput,
    StorageError,
    TransientStorageError,
)

__all__ = ["RequestContext", "code_of", "explain", "faults", "is_unsupported", "was_retried"]


class RequestContext(NamedTuple):
    """What the error message of a request names."""

    action: str
    url: str
    bucket: str
    endpoint: str


_CHECK_ROOT = "check the datastore root and the endpoint"
_CHECK_CREDENTIALS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the AWS profile or the role"

_REASONS = {
    "NoSuchBucket": "the bucket {bucket!r} does not exist at {endpoint}; " + _CHECK_ROOT,
    "InvalidBucketName": "{bucket!r} is not a valid bucket name; check the datastore root",
    "AccessDenied": "access denied; the credentials in use lack the permission for this in bucket {bucket!r}; grant it",
    "AllAccessDisabled": "access to the bucket {bucket!r} is disabled",
    "ExpiredToken": "the AWS credentials have expired; renew them (for SSO: aws sso login)",
    "InvalidAccessKeyId": "{endpoint} does not know the AWS access key; " + _CHECK_CREDENTIALS,
    "SignatureDoesNotMatch": "{endpoint} refused the AWS secret key; " + _CHECK_CREDENTIALS,
    "InvalidToken": "{endpoint} refused the AWS session token; " + _CHECK_CREDENTIALS,
    "RequestTimeTooSkewed": "the clock of this machine is wrong; set it",
    "PermanentRedirect": "the bucket {bucket!r} lies in another region; set AWS_DEFAULT_REGION to it",
    "InvalidObjectState": "the object was moved to an archive; restore it first",
    "InsufficientStorage": "the storage behind {endpoint} is full; free space there, or choose another datastore",
    "NotImplemented": "{endpoint} does not support this request (conditional writes are needed)",
    "SlowDown": "{endpoint} asks to slow down; try again later, or with fewer tasks at once",
    "BadDigest": "the content was changed in transit; try again",
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
_UNSUPPORTED = frozenset({400, 405, 411, 501})
_PERMANENT = frozenset({"NotImplemented", "InsufficientStorage"})


def faults() -> tuple[type[Exception], ...]:
    """The exceptions that a failed request to S3 raises."""
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    return (BotoCoreError, ClientError, HTTPError, ConnectionError, TimeoutError)


def code_of(error: BaseException | None) -> str:
    """The error code of S3's answer, '' where there was none."""
    answer: dict[str, Any] = getattr(error, "response", None) or {}
    code = str(answer.get("Error", {}).get("Code", ""))
    return _ALIASES.get(code, code)


def was_retried(error: BaseException) -> bool:
    """Whether botocore itself made the request more than once."""
    answer: dict[str, Any] = getattr(error, "response", None) or {}
    return bool(answer.get("ResponseMetadata", {}).get("RetryAttempts"))


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

    reason, passing, kind = _answer(error) if isinstance(error, ClientError) else _failure(error)
    message = (
        f"cannot {context.action} {context.url}: {reason.format(bucket=context.bucket, endpoint=context.endpoint)}"
    )
    return TransientStorageError(message) if passing else kind(message)


def _answer(error: Any) -> tuple[str, bool, type[ArtifactError]]:
    code = code_of(error)
    details = error.response.get("Error", {})
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    if code in {"NoSuchKey", "404", "NotFound"}:
        return "nothing is stored there; check the key and the datastore", False, ArtifactNotFound
    if code == "KeyTooLongError":
        return "the key is too long; use a shorter datastore root", False, InvalidInput
    passing = code in _PASSING or (status >= 500 and code not in _PERMANENT)
    if code.startswith("KMS"):
        return _literal(f"the encryption key cannot be used: {_one_line(details.get('Message'))}"), False, StorageError
    said = f"the server at {{endpoint}} answered {code or status}"
    message = _one_line(details.get("Message"))
    said += _literal(f" ({message})") if message and message != "Unknown" else ""
    said += "; try again" if passing else "; check the endpoint and the settings of the bucket"
    reason = _REASONS.get(code) or said
    return reason, passing, StorageError


def _failure(error: Exception) -> tuple[str, bool, type[ArtifactError]]:
    from botocore import exceptions as botocore
    from urllib3 import exceptions as urllib3

    text = _literal(_one_line(error))
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
        return f"no AWS credentials ({text.rstrip('.')}); {_CHECK_CREDENTIALS}", False, StorageError
    if isinstance(error, botocore.ParamValidationError):
        return f"{text}; {_CHECK_ROOT}", False, InvalidInput
    if isinstance(error, botocore.SSLError) and "CERTIFICATE" in str(error).upper():
        return f"the TLS certificate of {{endpoint}} is not trusted ({text})", False, StorageError
    unreachable = (
        botocore.ConnectTimeoutError,
        botocore.EndpointConnectionError,
        botocore.ProxyConnectionError,
        botocore.SSLError,
    )
    if isinstance(error, unreachable):
        return (
            f"cannot connect to {{endpoint}} ({text.rstrip('.')}); check the endpoint and the network",
            True,
            StorageError,
        )
    if isinstance(error, (botocore.ReadTimeoutError, urllib3.TimeoutError, TimeoutError)):
        return "no answer from {endpoint} in time; try again, or check the endpoint and the network", True, StorageError
    passing = (
        botocore.HTTPClientError,
        botocore.ResponseStreamingError,
        botocore.IncompleteReadError,
        urllib3.HTTPError,
        ConnectionError,
    )
    if isinstance(error, passing):
        return f"the connection to {{endpoint}} broke ({text}); try again", True, StorageError
    return text, False, StorageError


def _one_line(text: object) -> str:
    return " ".join(str(text or "").split())


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
