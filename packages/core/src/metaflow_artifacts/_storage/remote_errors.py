"""What the error messages of all clouds have in common: their form, and the words for what happens on each of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from metaflow_artifacts.errors import ArtifactError, ArtifactNotFound, InvalidInput, StorageError, TransientStorageError

__all__ = [
    "CHECK_ROOT",
    "PERMANENT",
    "REASONS",
    "BadAnswer",
    "Fault",
    "RequestContext",
    "answered",
    "broken",
    "certificate",
    "error_for",
    "is_untrusted",
    "late",
    "literal",
    "missing",
    "not_understood",
    "one_line",
    "redirected",
    "too_long",
    "understood",
    "unreachable",
    "unusable",
]


class RequestContext(NamedTuple):
    """What the error message of a request names."""

    action: str
    url: str
    bucket: str
    endpoint: str
    place: str = "bucket"
    """What this cloud calls a bucket."""


class Fault(NamedTuple):
    """Why a request failed, how to go on, whether a further attempt may succeed, and the class of the error."""

    reason: str
    """May hold `{place}`, `{bucket}` and `{endpoint}`; see `literal` for other text."""
    passing: bool = False
    kind: type[ArtifactError] = StorageError


CHECK_ROOT = "check the datastore root and the endpoint"

REASONS = {
    "no bucket": "the {place} {bucket!r} does not exist at {endpoint}; " + CHECK_ROOT,
    "denied": "access denied; the credentials in use lack the permission for this in {place} {bucket!r}; grant it",
    "full": "the storage behind {endpoint} is full; free space there, or choose another datastore",
    "slow": "{endpoint} asks to slow down; try again later, or with fewer tasks at once",
    "changed": "the content was changed in transit; try again",
    "archived": "the object was moved to an archive; restore it first",
    "clock": "the clock of this machine is wrong; set it",
}
"""Sentences for what every cloud can answer."""

PERMANENT = frozenset({501, 505, 507})
"""Statuses from 500 on after which another attempt gets the same answer."""


def error_for(fault: Fault, context: RequestContext) -> ArtifactError:
    """The error to raise: what could not be done, where, why, and how to go on."""
    reason = fault.reason.format(place=context.place, bucket=context.bucket, endpoint=context.endpoint)
    message = f"cannot {context.action} {context.url}: {reason}"
    return TransientStorageError(message) if fault.passing else fault.kind(message)


def missing() -> Fault:
    return Fault("nothing is stored there; check the key and the datastore", False, ArtifactNotFound)


def too_long() -> Fault:
    return Fault("the key is too long; use a shorter datastore root", False, InvalidInput)


def answered(code: object, message: object, passing: bool) -> Fault:
    """For an answer that has no sentence of its own."""
    text = one_line(message)
    said = f"the server at {{endpoint}} answered {literal(str(code))}"
    said += literal(f" ({text})") if text and text != "Unknown" else ""
    said += "; try again" if passing else "; check the endpoint and the settings of the {place}"
    return Fault(said, passing)


def redirected(location: str | None) -> Fault:
    """For a redirect that is not the service's own."""
    to = literal(repr(one_line(location)[:200])) if location else "another address"
    return Fault(f"what answers at {{endpoint}} redirects to {to}; configure the address of the service itself")


def certificate(text: str) -> Fault:
    return Fault(
        f"the TLS certificate of {{endpoint}} is not trusted ({text}); name the file of its certificate authority in "
        "AWS_CA_BUNDLE (S3) or REQUESTS_CA_BUNDLE (other clouds)"
    )


def is_untrusted(text: str) -> bool:
    """Whether an error of TLS says that a certificate is not trusted, or that no certificates to trust were found."""
    return any(sign in text.upper() for sign in ("CERTIFICATE_VERIFY_FAILED", "NO_CERTIFICATE_OR_CRL_FOUND"))


def unreachable(text: str) -> Fault:
    return Fault(f"cannot connect to {{endpoint}} ({text.rstrip('.')}); check the endpoint and the network", True)


def unusable(error: BaseException) -> Fault:
    """For an error of the SDK on this machine, before anything is sent."""
    text = literal(one_line(error))
    return Fault(f"the credentials or the settings cannot be used ({text}); check them, and the files that they name")


def late() -> Fault:
    return Fault("no answer from {endpoint} in time; try again, or check the endpoint and the network", True)


def broken(text: str) -> Fault:
    return Fault(f"the connection to {{endpoint}} broke ({text}); try again", True)


class BadAnswer(Exception):
    """An answer that the service does not give, such as the page of a proxy: what it stands for was not done."""


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """The block takes an answer apart. Raises BadAnswer where the answer lacks something, or has it in another form."""
    try:
        yield
    except ArtifactError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise BadAnswer(f"{type(error).__name__}: {error}") from error


def not_understood(text: object) -> Fault:
    found = literal(one_line(text))[:200]
    return Fault(
        f"what answers at {{endpoint}} is not the service, or a proxy has changed its answer ({found}); try again, or "
        "check the endpoint and the network",
        True,
    )


def one_line(text: object) -> str:
    return " ".join(str(text or "").split())


def literal(text: str) -> str:
    """Text for a `Fault`, as it is."""
    return text.replace("{", "{{").replace("}", "}}")
