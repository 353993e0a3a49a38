"""One repo on the Hub, by the public functions of huggingface_hub: its commit, access to it, what answers mean.

Settings are those of huggingface_hub: endpoint, proxies, certificates, offline mode and tokens.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from metaflow_artifacts.plugin import ArtifactError, UsageError

from ...toplevel.hf_toplevel import __version__
from .arguments import RepoRequest
from .errors import CannotStream, HubDenied, HubError, HubUnavailable, one_line

__all__ = ["MAX_ATTEMPTS", "MAX_RETRY_AFTER_S", "Hub", "Resolved", "import_library"]

T = TypeVar("T")

MAX_ATTEMPTS = 5
"""Attempts of a request before it fails; for a file, attempts after its last new byte."""
FIRST_PAUSE_S = 0.5
"""Seconds before the second attempt. Each further pause is twice as long."""
LONGEST_PAUSE_S = 8.0
MAX_RETRY_AFTER_S = 300.0
"""The longest wait in seconds that the Hub may ask for (Retry-After). If it asks for more, the request fails."""

_TRANSIENT_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_COMMIT = re.compile("[0-9a-f]{40}")


def import_library() -> Any:
    """huggingface_hub, in whichever version is installed. Raises UsageError if there is none, or its import fails."""
    try:
        import huggingface_hub
        from huggingface_hub import constants, utils  # noqa: F401  # Used as its attributes.
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "huggingface_hub":
            raise UsageError(
                "@huggingface_hub needs the Python package huggingface_hub, which is not installed here; install it, "
                'for a remote step for example with @pypi(packages={"huggingface_hub": "..."})'
            ) from error
        # A package that does not fit its dependencies, or this machine, fails with any error.
        raise UsageError(
            f"@huggingface_hub: the Python package huggingface_hub is installed here, but importing it fails "
            f"({type(error).__name__}: {one_line(error)}); install it again, or another version of it or of what it "
            "needs"
        ) from error
    return huggingface_hub


@dataclass(frozen=True)
class Resolved:
    """The commit of a revision, and whether access to the repo is restricted (gated or private)."""

    commit: str
    restricted: bool


class Hub:
    """One repo on the Hub, as `request` asks for it. Any thread may call its methods."""

    def __init__(
        self,
        request: RepoRequest,
        warn: Callable[[str], None] = lambda message: None,
        note: Callable[[str], None] = lambda message: None,
    ) -> None:
        """`warn` is called before each retry, `note` with what is slower than it could be.

        Raises UsageError if huggingface_hub cannot be imported.
        """
        self.request = request
        self.warn = warn
        self.note = note
        self.library = import_library()
        self.library_name = f"huggingface_hub {getattr(self.library, '__version__', '')}".rstrip()
        self.cancelled = threading.Event()
        """Set to stop all work: pauses before retries end at once."""
        constants = self.library.constants
        self.endpoint: str = (request.endpoint or constants.ENDPOINT).rstrip("/")
        self.timeout: float = request.etag_timeout or int(getattr(constants, "HF_HUB_ETAG_TIMEOUT", 10))
        """Seconds to wait for an answer about the repo."""
        self.identity: dict[str, Any] = {
            "token": request.token,
            "library_name": request.library_name or "metaflow-artifacts-hf",
            "library_version": request.library_version if request.library_name else __version__,
            "user_agent": dict(agent) if isinstance(agent := request.user_agent, Mapping) else agent,
        }
        """What the functions of huggingface_hub make the headers of a request of."""
        if request.headers:
            self.identity["headers"] = {name.lower(): value for name, value in request.headers.items()}

    @functools.cached_property
    def _api(self) -> Any:
        # Made when it is needed: its import takes a while.
        make_api = self.library.HfApi
        return make_api(endpoint=self.endpoint, **self.arguments_of(make_api, self.identity))

    @property
    def offline(self) -> bool:
        """Whether no request may be made: HF_HUB_OFFLINE is set, or local_files_only was passed."""
        return bool(self.library.constants.HF_HUB_OFFLINE) or self.request.local_files_only

    @property
    def where(self) -> str:
        """The Hub's address for messages, without a user name and password."""
        return re.sub(r"//[^/@]*@", "//", self.endpoint)

    def resolve(self, attempts: int = MAX_ATTEMPTS, max_retry_after: float = MAX_RETRY_AFTER_S) -> Resolved:
        """The commit of the revision that was asked for, with one small request.

        Raises HubDenied if there is none, or this token has no access, HubUnavailable if the Hub does not answer.
        """
        info = self.call(self._info, attempts, max_retry_after)
        if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
            raise HubError(f"{self.where} does not tell the commit of {self.request}: is it a Hugging Face Hub?")
        return Resolved(info.sha, bool(getattr(info, "gated", False)) or bool(getattr(info, "private", False)))

    def _info(self, whole: bool = False) -> Any:
        request = self.request
        # A space cannot be gated, and the Hub refuses to answer whether it is.
        expand = ["sha", "private"] if request.repo_type == "space" else ["sha", "private", "gated"]
        with _without_telemetry(self.library.constants):
            return self._api.repo_info(
                request.repo_id,
                repo_type=request.repo_type,
                revision=request.revision or "main",
                timeout=self.timeout,
                # Without it, as before 0.24, the answer is longer, and has the names of the files.
                **({} if whole or "expand" not in _parameters(self._api.repo_info) else {"expand": expand}),
            )

    def check_access(self) -> None:
        """Raise HubDenied unless the token gives access to the repo's content."""
        self.call(lambda: _within(self.timeout, self._ask_for_access))

    def _ask_for_access(self) -> None:
        request = self.request
        if hasattr(self._api, "auth_check"):
            with _without_telemetry(self.library.constants):
                self._api.auth_check(request.repo_id, repo_type=request.repo_type)
            return
        # Before 0.25: who may read one file may read all.
        info = self._info(whole=True)
        for file in (info.siblings or [])[:1]:
            self.library.get_hf_file_metadata(self.file_url(info.sha, file.rfilename), token=request.token)

    def headers(self) -> dict[str, str]:
        """The headers of a request to the Hub, including the token."""
        with _without_telemetry(self.library.constants):
            headers: dict[str, str] = self.library.utils.build_hf_headers(**self.identity)
        return headers

    def file_url(self, commit: str, path: str) -> str:
        """The address of a file's content."""
        request = self.request
        make_url = self.library.hf_hub_url
        where = self.arguments_of(make_url, {"endpoint": self.endpoint})
        url: str = make_url(request.repo_id, path, repo_type=request.repo_type, revision=commit, **where)
        if not url.startswith(f"{self.endpoint}/"):
            # The token must go to no other host.
            raise HubError(f"{path} of {request}: its address is not at {self.where}; set HF_ENDPOINT instead")
        return url

    def arguments_of(self, function: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Those of `arguments` that this version's `function` has. Raises UsageError if it lacks one that is needed."""
        known = _parameters(function)
        for name in arguments:
            is_default = name == "endpoint" and self.endpoint == self.library.constants.ENDPOINT.rstrip("/")
            if name not in known and not is_default:
                raise UsageError(
                    f"{self.request}: {self.library_name} does not know the argument {name}=; install a newer one"
                    + (", or set HF_ENDPOINT" if name == "endpoint" else "")
                )
        return {name: value for name, value in arguments.items() if name in known}

    def call(
        self, function: Callable[[], T], attempts: int = MAX_ATTEMPTS, max_retry_after: float = MAX_RETRY_AFTER_S
    ) -> T:
        """What a function returns that asks about the repo; it is called again after failures that may pass."""
        for attempt in range(1, attempts + 1):
            try:
                with self.asking(str(self.request)):
                    return function()
            except HubUnavailable as failure:
                if attempt == attempts:
                    raise
                self.pause(attempt, failure, max_retry_after)
        raise AssertionError("at least one attempt is made")

    def pause(self, attempt: int, failure: HubUnavailable, max_retry_after: float = MAX_RETRY_AFTER_S) -> None:
        """Wait before the next attempt, as long as the Hub asks for. Raises `failure` if there must be no other one."""
        if failure.final:
            raise failure from None
        seconds = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1))
        if failure.retry_after is not None:
            if failure.retry_after > max_retry_after:
                raise HubUnavailable(
                    f"{failure}; it asks to wait {failure.retry_after:.0f} s, which is too long"
                ) from None
            # Never sooner than without it: it may be 0, or a time that is over.
            seconds = max(seconds, failure.retry_after)
        self.warn(f"{failure}; trying again in {round(seconds, 1):g} s")
        pause(seconds, self.cancelled)

    @contextmanager
    def asking(self, what: str, misfit: type[Exception] = HubError) -> Iterator[None]:
        """Turn what huggingface_hub and its HTTP library raise into our errors; `what` is asked for.

        `misfit` is raised where this version of huggingface_hub does not know what it was asked, or answers it in
        another way than other versions. Raises HubUnavailable at once where no request may be made.
        """
        if self.offline:
            raise HubUnavailable(
                "no request to the Hub is allowed: HF_HUB_OFFLINE is set, or local_files_only was passed", final=True
            )
        try:
            yield
        except (ArtifactError, CannotStream, MemoryError):
            raise
        except Exception as error:
            # Not as the cause: its message may have an address with a signature.
            raise self._error_of(error, what, misfit) from None

    def _error_of(self, error: Exception, what: str, misfit: type[Exception]) -> Exception:
        for link in _chain(error):
            response: Any = getattr(link, "response", None)
            status = getattr(response, "status_code", None)
            if isinstance(status, int) and status >= 400:
                refusal = self._refusal(link, status, response.headers, what)
                refusal.status = status
                return refusal
        says = f"{type(error).__name__}: {one_line(error)}"
        if isinstance(error, self.library.utils.LocalTokenNotFoundError):
            return HubDenied(f"{what}: token=True, but there is no token; set HF_TOKEN, or log in with `hf auth login`")
        if isinstance(error, (LookupError, json.JSONDecodeError)):
            return HubError(f"{self.where} answers about {what} with something that cannot be read ({says})")
        if not isinstance(error, OSError):
            if isinstance(error, (AttributeError, ImportError, NotImplementedError, TypeError)):
                return misfit(f"{what}: {self.library_name} works in an unknown way ({says})")
            if isinstance(error, ValueError):
                return HubError(f"{what}: {self.library_name} fails ({says})")
        return HubUnavailable(f"{what}: {self.where} cannot be reached ({says})")

    def _refusal(self, error: BaseException, status: int, headers: Mapping[str, str], what: str) -> HubError:
        """The error for an answer that is none; huggingface_hub's class for it says more than the status."""
        utils, request = self.library.utils, self.request
        says = " ".join(headers.get("X-Error-Message", "").split())[:200]
        answer = f"the Hub answers {status}" + (f" ({says})" if says else "")
        if status in _TRANSIENT_STATUSES:
            hint = "; it limits the rate of requests: log in, or wait before the next run" if status == 429 else ""
            return HubUnavailable(f"{what}: {answer}{hint}", retry_after=_retry_after(headers))
        if isinstance(error, utils.GatedRepoError) or status == 403:
            folder = "" if request.repo_type == "model" else f"{request.repo_type}s/"
            return HubDenied(
                f"{what}: {answer}: access is restricted; ask for it at {self.where}/{folder}{request.repo_id}, then "
                "set HF_TOKEN to a token of that account, or pass token="
            )
        if isinstance(error, utils.RevisionNotFoundError):
            return HubDenied(f"{what}: the Hub has this repo, but not this revision; check the branch, tag or commit")
        if isinstance(error, utils.EntryNotFoundError):
            return HubDenied(f"{what}: {answer}: a file that it lists is not there")
        if status in (401, 404):
            return HubDenied(
                f"{what}: {answer}: there is no such {request.repo_type}, or it is private and the token is missing or "
                "of another account; check repo_id and repo_type, set HF_TOKEN or pass token="
            )
        return HubError(f"{what}: {answer}")


class _WithoutTelemetry:
    """Blocks in which huggingface_hub sends no telemetry; several threads may be in one.

    From 1.15 on, it would make a request of its own to find out what to write into the user agent.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._before: tuple[Any, bool] | None = None
        """The constants of huggingface_hub, and the setting outside of all blocks, while there is a block."""

    @contextmanager
    def __call__(self, constants: Any) -> Iterator[None]:
        with self._lock:
            if self._before is None:
                self._before = constants, constants.HF_HUB_DISABLE_TELEMETRY
            self._blocks += 1
            constants.HF_HUB_DISABLE_TELEMETRY = True
        try:
            yield
        finally:
            with self._lock:
                self._blocks -= 1
                if not self._blocks:
                    self._restore()

    def _restore(self) -> None:
        if self._before is not None:
            constants, setting = self._before
            constants.HF_HUB_DISABLE_TELEMETRY = setting
            self._before = None

    def renew(self) -> None:
        """Begin anew in a forked child: no other thread has come along, and none leaves its block here."""
        self._restore()
        self._lock = threading.Lock()
        self._blocks = 0


_without_telemetry = _WithoutTelemetry()
os.register_at_fork(after_in_child=_without_telemetry.renew)


def pause(seconds: float, cancelled: threading.Event) -> None:
    """Wait before a retry; the wait ends early when `cancelled` is set."""
    cancelled.wait(seconds)


def _within(seconds: float, function: Callable[[], None]) -> None:
    """Call a function of huggingface_hub that has no time limit. Raises TimeoutError after this time."""
    errors: list[BaseException | None] = []

    def run() -> None:
        try:
            function()
            errors.append(None)
        except BaseException as error:
            errors.append(error)

    # A daemon: a server that never answers does not hold up the end of the process.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not errors:
        raise TimeoutError(f"no answer within {seconds:g} s")
    if errors[0] is not None:
        raise errors[0]


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    seen: list[BaseException] = []
    while link is not None and link not in seen:
        yield link
        seen.append(link)
        link = link.__cause__ or link.__context__


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the Hub asks to wait, from Retry-After or from the reset of its rate limit."""
    value = (headers.get("Retry-After") or "").strip()
    if value.isdecimal():
        return float(value)
    if value:
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except (TypeError, ValueError):
            return None
    limit = re.search(r"\br=0\b.*\bt=(\d+)", headers.get("RateLimit", ""))
    return float(limit[1]) if limit else None
