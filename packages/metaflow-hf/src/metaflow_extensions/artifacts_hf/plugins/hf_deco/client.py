"""What both ways to the Hub have in common: where it is, what its answers mean, and when a request is made again."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from urllib.parse import quote

from .arguments import RepoRequest
from .errors import HubDenied, HubError, HubUnavailable
from .library import Library, import_library
from .text import one_line

__all__ = ["MAX_ATTEMPTS", "MAX_RETRY_AFTER_S", "HubClient", "is_commit"]

MAX_ATTEMPTS = 5
"""Attempts of a request before it fails; for a file, attempts after its last new byte."""
FIRST_PAUSE_S = 0.5
"""Seconds before the second attempt. Each further pause is twice as long."""
LONGEST_PAUSE_S = 8.0
MAX_RETRY_AFTER_S = 300.0
"""The longest wait in seconds that the Hub may ask for (Retry-After). If it asks for more, the request fails."""

_TRANSIENT_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


class HubClient:
    """One repo on the Hub, as `request` asks for it."""

    def __init__(self, request: RepoRequest, warn: Callable[[str], None] = lambda message: None) -> None:
        """`warn` is called before each retry. Raises UsageError if huggingface_hub cannot be imported."""
        self.request = request
        self._warn = warn
        self._library: Library = import_library()
        self._constants = self._library.constants
        self.cancelled = threading.Event()
        """Set to stop all work: pauses before retries end at once."""
        self._endpoint = (request.endpoint or self._constants.ENDPOINT).rstrip("/")

    @property
    def library(self) -> str:
        """huggingface_hub with its version, for messages."""
        return self._library.name

    @property
    def offline(self) -> bool:
        """Whether no request may be made: HF_HUB_OFFLINE is set, or local_files_only was passed."""
        return bool(self._constants.HF_HUB_OFFLINE) or self.request.local_files_only

    @property
    def where(self) -> str:
        """The Hub's address for messages, without a user name and password."""
        return re.sub(r"//[^/@]*@", "//", self._endpoint)

    @property
    def _folder(self) -> str:
        return "" if self.request.repo_type == "model" else f"{self.request.repo_type}s/"

    def _file_url(self, commit: str, path: str) -> str:
        return f"{self._endpoint}/{self._folder}{self.request.repo_id}/resolve/{commit}/{quote(path)}"

    def _require_online(self) -> None:
        if self.offline:
            raise HubUnavailable(
                "no request to the Hub is allowed: HF_HUB_OFFLINE is set, or local_files_only was passed", final=True
            )

    def _raise_for_status(self, status: int, headers: Mapping[str, str], what: str) -> None:
        """Raise the error that an answer means; `what` was asked for."""
        if status >= 400:
            error = self._error_of(status, headers, what)
            error.status = status
            raise error

    def _error_of(self, status: int, headers: Mapping[str, str], what: str) -> HubError:
        code = headers.get("X-Error-Code", "")
        says = " ".join(headers.get("X-Error-Message", "").split())[:200]
        answer = f"the Hub answers {status}" + (f" ({says})" if says else "")
        if status in _TRANSIENT_STATUSES:
            hint = "; it limits the rate of requests: log in, or wait before the next run" if status == 429 else ""
            return HubUnavailable(f"{what}: {answer}{hint}", retry_after=_retry_after(headers))
        if code == "GatedRepo" or status == 403:
            return HubDenied(
                f"{what}: {answer}: access is restricted; ask for it at {self.where}/{self._folder}"
                f"{self.request.repo_id}, then set HF_TOKEN to a token of that account, or pass token="
            )
        if code == "RevisionNotFound":
            return HubDenied(f"{what}: the Hub has this repo, but not this revision; check the branch, tag or commit")
        if code == "EntryNotFound":
            return HubDenied(f"{what}: {answer}: a file that it lists is not there")
        if status in (401, 404):
            return HubDenied(
                f"{what}: {answer}: there is no such {self.request.repo_type}, or it is private and the token is "
                "missing or of another account; check repo_id and repo_type, set HF_TOKEN or pass token="
            )
        return HubError(f"{what}: {answer}")

    def _unreachable(self, error: BaseException, what: str) -> HubUnavailable:
        return HubUnavailable(f"{what}: {self.where} cannot be reached ({type(error).__name__}: {one_line(error)})")

    def _pause(self, attempt: int, failure: HubUnavailable, max_retry_after: float) -> None:
        if failure.final:
            raise failure from None
        seconds = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1))
        if failure.retry_after is not None:
            if failure.retry_after > max_retry_after:
                raise HubUnavailable(
                    f"{failure}; it asks to wait {failure.retry_after:.0f} s, which is too long"
                ) from None
            seconds = failure.retry_after
        self._warn(f"{failure}; trying again in {seconds:.0f} s")
        pause(seconds, self.cancelled)


def pause(seconds: float, cancelled: threading.Event) -> None:
    """Wait before a retry; the wait ends early when `cancelled` is set."""
    cancelled.wait(seconds)


def is_commit(value: object) -> bool:
    """Whether this is the id of a commit."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{40}", value) is not None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the Hub asks to wait, from Retry-After or from the reset of its rate limit."""
    value = (headers.get("Retry-After") or "").strip()
    if value.isdigit():
        return float(value)
    if value:
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except (TypeError, ValueError):
            return None
    limit = re.search(r"\br=0\b.*\bt=(\d+)", headers.get("RateLimit", ""))
    return float(limit[1]) if limit else None
