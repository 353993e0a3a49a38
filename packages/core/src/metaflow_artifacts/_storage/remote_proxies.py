"""What keeps requests from leaving for any cloud: a proxy, or a file of trusted certificates, that is of no use."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from metaflow_artifacts._storage.remote_errors import PERMANENT, Fault, literal, one_line
from metaflow_artifacts.errors import StorageError

__all__ = ["demand_certificates", "origins", "proxy_fault"]

_CHECK = "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
_REFUSED = re.compile(r"Tunnel connection failed: (?P<said>(?P<status>\d{3}).*)")
_UNUSABLE = frozenset({"InvalidProxyURL", "InvalidSchema", "ProxySchemeUnknown", "ProxySchemeUnsupported"})
_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def proxy_fault(error: Exception) -> Fault | None:
    """The fault, if it is that of the proxy before the service; without the proxy's URL, which can have a password."""
    found = list(origins(error))
    kinds = {type(one).__name__ for one in found}
    if kinds & _UNUSABLE:
        # The innermost one, in the words of urllib3 or requests, which do not have the URL.
        return Fault(f"the proxy for {{endpoint}} cannot be used ({_text(found[-1])}); {_CHECK}")
    if not kinds & {"ProxyError", "ProxyConnectionError"}:
        return None
    for one in found:
        refused = _REFUSED.search(str(one)) if type(one) is OSError else None
        if refused is not None:
            status = int(refused["status"])
            passing = status == 429 or (status >= 500 and status not in PERMANENT)
            said = f"the proxy refused to connect to {{endpoint}} (it answered {literal(refused['said'].strip())})"
            return Fault(f"{said}; {_CHECK}", passing)
    # Not where a certificate of the proxy itself is not trusted.
    passing = not any("CERTIFICATE_VERIFY_FAILED" in str(one) for one in found)
    return Fault(f"cannot connect to {{endpoint}} through the proxy ({_text(found[-1])}); {_CHECK}", passing)


def origins(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it says it comes from: each library has its own way to say it."""
    left: list[object] = [error]
    seen: list[object] = []
    while left:
        one = left.pop(0)
        if not isinstance(one, BaseException) or any(one is other for other in seen):
            continue
        seen.append(one)
        yield one
        # urllib3, requests, Azure's SDK and botocore; Google's chains them.
        left += [*one.args, getattr(one, "reason", None), getattr(one, "original_error", None), one.__cause__]
        left += [getattr(one, "inner_exception", None), getattr(one, "kwargs", None) or {}]
        left += [more["error"] for more in left if isinstance(more, dict) and "error" in more]


def _text(error: BaseException) -> str:
    return literal(one_line(error)).rstrip(".") or type(error).__name__


def demand_certificates(where: str) -> None:
    """Raise StorageError if `requests` is told to use a file of trusted certificates that is not there.

    It would raise a plain OSError at the first request.
    """
    path, name = next(((os.environ[name], name) for name in _BUNDLES if os.environ.get(name)), ("", ""))
    if path and not os.path.exists(path):
        raise StorageError(f"{where}: {name} names {path}, which does not exist; correct it, or remove it")
