"""The Hub's side: which commit a revision is, what is in it, and the bytes of a file.

Requests go through huggingface_hub's own session, so that its settings hold: endpoint, proxies, certificates,
offline mode, tokens. Its higher functions are not used: they write files, and some ask the Hub for more than this
needs. huggingface_hub is imported when the first request is due, not before.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

from metaflow_artifacts.plugin import UsageError

from .arguments import RepoRequest
from .errors import HubDenied, HubError, HubMismatch, HubUnavailable
from .xet import XetSource, xet_is_available

__all__ = ["Check", "Hub", "HubFile", "Resolved"]

ATTEMPTS = 5
"""Tries of a request, and of a file after its last new byte, before the Hub counts as failing."""
FIRST_PAUSE = 0.5
"""Seconds before the second try; each further pause is twice as long."""
LONGEST_PAUSE = 8.0
PATIENCE = 300.0
"""Seconds that the Hub may ask to wait (Retry-After); with more, the request fails at once."""

_BLOCK = 1 << 20
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_USER_AGENT = "metaflow-artifacts-hf/0.1.0"


@dataclass(frozen=True)
class Resolved:
    """What a revision is: a commit, and whether the repo is open to everybody."""

    commit: str
    restricted: bool


@dataclass(frozen=True)
class HubFile:
    """A file of a commit, as the Hub lists it."""

    path: str
    size: int
    oid: str
    """SHA-256 (64 hex) of the content for a file kept with LFS, git's id of the blob (40 hex) for others."""
    xet_hash: str | None = None

    @property
    def sha256(self) -> str | None:
        """SHA-256 of the content, where the Hub tells it."""
        return self.oid if len(self.oid) == 64 else None


class Hub:
    """One repo on the Hub, as `request` asks for it."""

    def __init__(self, request: RepoRequest, warn: Callable[[str], None] = lambda message: None) -> None:
        """`warn` is told of each failure that is tried again. Raises UsageError without huggingface_hub."""
        try:
            import huggingface_hub
            from huggingface_hub import constants, errors, utils
        except ImportError as error:
            raise UsageError(
                "@huggingface_hub needs the Python package huggingface_hub, which is not installed here; install it, "
                'for a remote step for example with @pypi(packages={"huggingface_hub": "..."})'
            ) from error
        self.request = request
        self._warn = warn
        self._library = huggingface_hub
        self._constants = constants
        self._utils: Any = utils
        self.cancelled = threading.Event()
        """Set when nothing more is wanted of the Hub: waits end at once."""
        self._xet: XetSource | None = None
        self._xet_works = True
        self._xet_lock = threading.Lock()
        self._timeout = request.etag_timeout or constants.HF_HUB_ETAG_TIMEOUT
        self._endpoint = (request.endpoint or constants.ENDPOINT).rstrip("/")
        # Among its bases is the root of the HTTP library's errors, whichever that is: requests, httpx or httpx2.
        roots = [base for base in errors.HfHubHTTPError.__mro__ if base.__name__ in ("HTTPError", "RequestException")]
        self._failures: tuple[type[Exception], ...] = (*roots, HubUnavailable)

    @property
    def offline(self) -> bool:
        """Whether the Hub must not be asked: HF_HUB_OFFLINE, or local_files_only."""
        return bool(self._constants.HF_HUB_OFFLINE) or self.request.local_files_only

    @property
    def where(self) -> str:
        """The Hub's address, for messages: without what may be secret in it."""
        return re.sub(r"//[^/@]*@", "//", self._endpoint)

    def resolve(self, attempts: int = ATTEMPTS, patience: float = PATIENCE) -> Resolved:
        """The commit of the revision asked for: one small request.

        Raises HubDenied where there is none for this token, HubUnavailable where the Hub does not answer.
        """
        revision = quote(self.request.revision or "main", safe="")
        # A space cannot be gated, and the Hub refuses the question.
        query = "expand=sha&expand=private" + ("" if self.request.repo_type == "space" else "&expand=gated")
        info = self._json(f"{self._api}/revision/{revision}?{query}", attempts, patience)[0]
        commit = info.get("sha") if isinstance(info, dict) else None
        if not isinstance(commit, str) or not re.fullmatch("[0-9a-f]{40}", commit):
            raise HubError(f"{self.where} does not tell the commit of {self.request}: is it a Hugging Face Hub?")
        return Resolved(commit, bool(info.get("gated")) or bool(info.get("private")))

    def check_access(self) -> None:
        """Make sure that the token opens the repo's content. Raises HubDenied where it does not."""
        self._json(f"{self._api}/auth-check", ATTEMPTS, PATIENCE)

    def tree(self, commit: str) -> list[HubFile]:
        """All files of a commit that the patterns let through, in the order of their paths."""
        files: dict[str, HubFile] = {}
        url: str | None = f"{self._api}/tree/{commit}?recursive=true&expand=false"
        while url is not None:
            rows, url = self._json(url, ATTEMPTS, PATIENCE)
            for row in rows if isinstance(rows, list) else [{}]:
                file = _file_of(row)
                if file is None:
                    raise HubError(f"{self.where} gives a file list of {self.request} that cannot be read")
                if row["type"] == "file":
                    files[file.path] = file
        allow, ignore = _listed(self.request.allow_patterns), _listed(self.request.ignore_patterns)
        wanted = self._utils.filter_repo_objects(files, allow_patterns=allow, ignore_patterns=ignore)
        return [files[path] for path in sorted(wanted, key=lambda path: path.encode("utf-8", "surrogatepass"))]

    def stream(self, commit: str, file: HubFile, check: Check | None = None) -> Iterator[bytes]:
        """The content of a file in blocks, verified when the last one was taken; `check` then tells how.

        A connection that breaks is taken up where it broke. Raises HubError where what came is not the file.
        """
        check = check or Check(file)
        check.what = self._named(file)
        yield from self._xet_blocks(commit, file, check)
        url = f"{self._endpoint}/{self._folder}{self.request.repo_id}/resolve/{commit}/{quote(file.path)}"
        failures = 0
        while check.size < file.size:
            before = check.size
            try:
                with self._open(url, check.size, self._named(file)) as response:
                    check.seen(response)
                    for block in self._blocks(response, check.size):
                        check.add(block)
                        yield block
                    if check.size < file.size:
                        raise HubUnavailable(f"{self._named(file)}: {check.size} bytes came instead of {file.size}")
            except self._failures as error:
                failures = 1 if check.size > before else failures + 1
                failure = self._failure(error, self._named(file))
                if failures >= ATTEMPTS:
                    raise failure from None
                self._pause(failures, failure, PATIENCE)
        check.finish()

    def _xet_blocks(self, commit: str, file: HubFile, check: Check) -> Iterator[bytes]:
        """As much of a file as its Xet storage gives."""
        if file.xet_hash is None or not file.size or not xet_is_available():
            return
        try:
            source = self._xet_source(commit)
            if source is not None:
                for block in source.blocks(file.xet_hash, file.size, check.size):
                    check.add(block)
                    yield block
        except ConnectionError as error:
            self._warn(f"{self._named(file)}: its Xet storage fails ({_words(error)}); going on over HTTP")

    def _xet_source(self, commit: str) -> XetSource | None:
        """The repo's Xet storage; None where it gives no access, which is asked for once."""
        with self._xet_lock:
            if self._xet is None and self._xet_works:
                self._xet_works = False
                url = f"{self._api}/xet-read-token/{commit}"
                try:
                    self._xet = XetSource(url, self.headers, self._json(url, ATTEMPTS, PATIENCE)[0])
                except (HubError, KeyError, TypeError, RuntimeError, OSError) as error:
                    self._warn(f"{self.request}: no access to its Xet storage ({_words(error)}); going on over HTTP")
            return self._xet

    def _named(self, file: HubFile) -> str:
        return f"{file.path} of {self.request}"

    @property
    def _api(self) -> str:
        return f"{self._endpoint}/api/{self.request.repo_type}s/{self.request.repo_id}"

    @property
    def _folder(self) -> str:
        return "" if self.request.repo_type == "model" else f"{self.request.repo_type}s/"

    def headers(self) -> dict[str, str]:
        """What goes with each request to the Hub; the token is in it."""
        headers = {"user-agent": _USER_AGENT, "accept-encoding": "identity"}
        token = self._token()
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        return {**headers, **{name.lower(): value for name, value in (self.request.headers or {}).items()}}

    def _token(self) -> str | None:
        token = self.request.token
        if isinstance(token, str):
            return token
        if token is False or (token is None and self._constants.HF_HUB_DISABLE_IMPLICIT_TOKEN):
            return None
        found: str | None = self._library.get_token()
        if found is None and token is True:
            raise HubDenied(
                f"{self.request}: token=True, but there is no token; set HF_TOKEN, or log in with `hf auth login`"
            )
        return found

    def _json(self, url: str, attempts: int, patience: float) -> tuple[Any, str | None]:
        """A JSON answer and the address of its next page, if any."""
        what = str(self.request)
        for attempt in range(1, attempts + 1):
            try:
                session = self._session()
                # A client that the user made (set_client_factory) may not follow redirects by itself.
                follow = {"follow_redirects": True} if _is_httpx(session) else {}
                response = session.get(url, headers=self.headers(), timeout=self._timeout, **follow)
                self._raise_for_status(response, what)
                return response.json(), self._next_page(response)
            except self._failures as error:
                failure = self._failure(error, what)
                if attempt == attempts:
                    raise failure from None
                self._pause(attempt, failure, patience)
            except ValueError as error:
                raise HubError(f"{self.where} answers about {what} with something that is not JSON") from error
        raise AssertionError("at least one attempt is made")

    def _next_page(self, response: Any) -> str | None:
        # A mirror may pass on the address of the Hub behind it; the token goes to no other host than the endpoint.
        url = response.links.get("next", {}).get("url")
        return self._endpoint + url[url.index("/api/") :] if url is not None and "/api/" in url else None

    def _session(self) -> Any:
        if self.offline:
            raise _offline()
        return self._utils.get_session()

    @contextmanager
    def _open(self, url: str, start: int, what: str) -> Iterator[Any]:
        headers = self.headers()
        if start:
            headers["range"] = f"bytes={start}-"
        timeout = self._constants.HF_HUB_DOWNLOAD_TIMEOUT
        session = self._session()
        opened: AbstractContextManager[Any]
        if _is_httpx(session):
            opened = session.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True)
        else:
            opened = session.get(url, headers=headers, timeout=timeout, stream=True)
        with opened as response:
            if response.status_code == 416:
                raise HubMismatch(f"{what}: the Hub has fewer bytes than it lists")
            self._raise_for_status(response, what)
            yield response

    def _blocks(self, response: Any, start: int) -> Iterator[bytes]:
        """The body from byte `start` of the file on, also where the server began at the front."""
        skip = start if start and response.status_code != 206 else 0
        blocks = response.iter_bytes(_BLOCK) if hasattr(response, "iter_bytes") else response.iter_content(_BLOCK)
        for block in blocks:
            if skip:
                skip, block = max(0, skip - len(block)), block[skip:]
            if block:
                yield block

    def _raise_for_status(self, response: Any, what: str) -> None:
        status = response.status_code
        if status < 400:
            return
        code = response.headers.get("X-Error-Code", "")
        says = " ".join(response.headers.get("X-Error-Message", "").split())[:200]
        answer = f"the Hub answers {status}" + (f" ({says})" if says else "")
        if status in _PASSING:
            hint = "; it limits the rate of requests: log in, or wait before the next run" if status == 429 else ""
            raise HubUnavailable(f"{what}: {answer}{hint}", retry_after=_retry_after(response.headers))
        if code == "GatedRepo" or status == 403:
            raise HubDenied(
                f"{what}: {answer}: access is restricted; ask for it at {self.where}/{self._folder}"
                f"{self.request.repo_id}, then set HF_TOKEN to a token of that account, or pass token="
            )
        if code == "RevisionNotFound":
            raise HubDenied(f"{what}: the Hub has this repo, but not this revision; check the branch, tag or commit")
        if code == "EntryNotFound":
            raise HubDenied(f"{what}: {answer}: a file that it lists is not there")
        if status in (401, 404):
            raise HubDenied(
                f"{what}: {answer}: there is no such {self.request.repo_type}, or it is private and the token is "
                "missing or of another account; check repo_id and repo_type, set HF_TOKEN or pass token="
            )
        raise HubError(f"{what}: {answer}")

    def _failure(self, error: BaseException, what: str) -> HubUnavailable:
        if isinstance(error, HubUnavailable):
            return error
        return HubUnavailable(f"{what}: {self.where} cannot be reached ({type(error).__name__}: {_words(error)})")

    def _pause(self, attempt: int, failure: HubUnavailable, patience: float) -> None:
        if failure.final:
            raise failure from None
        seconds = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1))
        if failure.retry_after is not None:
            if failure.retry_after > patience:
                raise HubUnavailable(
                    f"{failure}; it asks to wait {failure.retry_after:.0f} s, which is too long"
                ) from None
            seconds = failure.retry_after
        self._warn(f"{failure}; trying again in {seconds:.0f} s")
        pause(seconds, self.cancelled)


def pause(seconds: float, cancelled: threading.Event) -> None:
    """Wait before a request is made again, but no longer than until `cancelled`."""
    cancelled.wait(seconds)


class Check:
    """Size and digest of a file while it comes in."""

    def __init__(self, file: HubFile) -> None:
        self.file = file
        self.what = file.path
        """How the file is called in errors."""
        self.size = 0
        """Bytes so far."""
        self.verified = False
        """Whether all has come, and its digest is what the Hub lists."""
        self._etag = ""
        if file.sha256 is not None:
            self._digest = hashlib.sha256()
        else:
            self._digest = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)

    def seen(self, response: Any) -> None:
        """Note what the server calls the content."""
        self._etag = response.headers.get("ETag", "").removeprefix("W/").strip('"')

    def add(self, block: bytes) -> None:
        self.size += len(block)
        if self.size > self.file.size:
            raise HubMismatch(f"{self.what}: the Hub gives more than the {self.file.size} bytes that it lists")
        self._digest.update(block)

    def finish(self) -> None:
        """Raise HubError where the content is not what the Hub lists."""
        found = self._digest.hexdigest()
        self.verified = found == self.file.oid
        # Other servers of the same interface may use ids of their own for small files, here and there.
        if not self.verified and (self.file.sha256 is not None or self._etag == self.file.oid):
            raise HubMismatch(
                f"{self.what}: what came is not what the Hub lists (digest {found} instead of {self.file.oid})"
            )


def _file_of(row: Any) -> HubFile | None:
    """A row of the Hub's file list; None where it is none. Names that lead elsewhere are none."""
    if not isinstance(row, dict) or not isinstance(row.get("path"), str) or not isinstance(row.get("type"), str):
        return None
    path, size, oid, lfs = row["path"], row.get("size", 0), row.get("oid", ""), row.get("lfs")
    parts = path.split("/")
    if "" in parts or "." in parts or ".." in parts or "\0" in path or not isinstance(size, int) or size < 0:
        return None
    if isinstance(lfs, Mapping):
        size, oid = lfs.get("size", size), lfs.get("oid") or lfs.get("sha256")
    if row["type"] == "file" and not (isinstance(oid, str) and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", oid)):
        return None
    xet = row.get("xetHash")
    return HubFile(path, size, str(oid), xet if isinstance(xet, str) else None)


def _words(error: BaseException) -> str:
    """What a library says, in one line, and without addresses: they can have a signature in them."""
    return re.sub(r"https?://\S+", "…", " ".join(str(error).split()))[:200]


def _is_httpx(session: Any) -> bool:
    return callable(getattr(session, "stream", None))


def _listed(patterns: tuple[str, ...] | None) -> list[str] | None:
    return None if patterns is None else list(patterns)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the Hub asks to wait: Retry-After, or the reset of its rate limit."""
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


def _offline() -> HubUnavailable:
    return HubUnavailable(
        "the Hub must not be asked: HF_HUB_OFFLINE is set, or local_files_only was passed", final=True
    )
