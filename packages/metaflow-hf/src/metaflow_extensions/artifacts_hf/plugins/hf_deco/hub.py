"""Streams from the Hub: the commit of a revision, the files of a commit, and the bytes of a file.

Requests use the session of huggingface_hub, so that its settings apply: endpoint, proxies, certificates, offline mode
and tokens. Its functions for downloads are not used, because they write files, and some make more requests than are
needed here. Where that is not possible, CannotStream is raised, and library_hub.py downloads with those functions.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from metaflow_artifacts.plugin import ArtifactError

from ...toplevel.hf_toplevel import __version__
from .arguments import RepoRequest
from .client import MAX_ATTEMPTS, MAX_RETRY_AFTER_S, HubClient, is_commit
from .errors import CannotStream, HubDenied, HubError, HubMismatch, HubUnavailable
from .text import one_line
from .xet import XetSource, XetUnusable, xet_is_wanted

__all__ = ["ContentVerifier", "Hub", "HubFile", "Resolved"]

_BLOCK_SIZE = 1 << 20
_NO_SUCH_API = frozenset({404, 405, 501})
_USER_AGENT = f"metaflow-artifacts-hf/{__version__}"


@dataclass(frozen=True)
class Resolved:
    """The commit of a revision, and whether access to the repo is restricted (gated or private)."""

    commit: str
    restricted: bool


@dataclass(frozen=True)
class HubFile:
    """A file of a commit, as the Hub lists it."""

    path: str
    size: int
    oid: str
    """For a file in LFS the SHA-256 of the content (64 hex digits), for others git's id of the blob (40)."""
    xet_hash: str | None = None

    @property
    def sha256(self) -> str | None:
        """SHA-256 of the content; None if the Hub does not list it."""
        return self.oid if len(self.oid) == 64 else None


class Hub(HubClient):
    """One repo on the Hub, as `request` asks for it."""

    def __init__(
        self,
        request: RepoRequest,
        warn: Callable[[str], None] = lambda message: None,
        note: Callable[[str], None] = lambda message: None,
    ) -> None:
        """`warn` is called before each retry, `note` with what is slower than it could be.

        Raises UsageError if huggingface_hub cannot be imported, CannotStream if it is too old.
        """
        super().__init__(request, warn)
        self._library.require_streams()
        self._note = note
        self._xet: XetSource | None = None
        self._xet_works = True
        self._xet_lock = threading.Lock()
        self._timeout = request.etag_timeout or self._constants.HF_HUB_ETAG_TIMEOUT

    def resolve(self, attempts: int = MAX_ATTEMPTS, max_retry_after: float = MAX_RETRY_AFTER_S) -> Resolved:
        """The commit of the revision that was asked for, with one small request.

        Raises HubDenied if there is none, or this token has no access, HubUnavailable if the Hub does not answer.
        """
        revision = quote(self.request.revision or "main", safe="")
        # A space cannot be gated, and the Hub refuses to answer whether it is.
        query = "expand=sha&expand=private" + ("" if self.request.repo_type == "space" else "&expand=gated")
        info = self._json(f"{self._api}/revision/{revision}?{query}", attempts, max_retry_after)[0]
        commit = info.get("sha") if isinstance(info, dict) else None
        if not is_commit(commit):
            raise HubError(f"{self.where} does not tell the commit of {self.request}: is it a Hugging Face Hub?")
        return Resolved(str(commit), bool(info.get("gated")) or bool(info.get("private")))

    def check_access(self) -> None:
        """Raise HubDenied unless the token gives access to the repo's content."""
        self._json(f"{self._api}/auth-check", MAX_ATTEMPTS, MAX_RETRY_AFTER_S)

    def tree(self, commit: str) -> list[HubFile]:
        """The files of a commit that match the patterns, sorted by path.

        Raises CannotStream if the server gives no list with the sizes and ids of files, as some mirrors do not.
        """
        files: dict[str, HubFile] = {}
        url: str | None = f"{self._api}/tree/{commit}?recursive=true&expand=false"
        while url is not None:
            rows, url = self._rows(url)
            for row in rows:
                file = _file_of(row)
                if file is None:
                    raise CannotStream(f"{self.where} gives a file list of {self.request} that cannot be read")
                if _leads_out(file.path):
                    raise HubError(f"{self.where} lists a file {file.path!r} of {self.request}, which is not below it")
                if row["type"] == "file":
                    files[file.path] = file
        allow, ignore = _as_list(self.request.allow_patterns), _as_list(self.request.ignore_patterns)
        wanted = self._library.utils.filter_repo_objects(files, allow_patterns=allow, ignore_patterns=ignore)
        return [files[path] for path in sorted(wanted, key=lambda path: path.encode("utf-8", "surrogatepass"))]

    def _rows(self, url: str) -> tuple[list[Any], str | None]:
        """A page of the file list, and the address of the next one."""
        try:
            rows, following = self._json(url, MAX_ATTEMPTS, MAX_RETRY_AFTER_S)
        except HubError as error:
            if error.status in _NO_SUCH_API:
                raise CannotStream(f"{self.where} gives no file list ({error})") from error
            raise
        return rows if isinstance(rows, list) else [None], following

    def stream(self, commit: str, file: HubFile, verifier: ContentVerifier | None = None) -> Iterator[bytes]:
        """The content of a file in blocks. It is verified only when the iterator is exhausted.

        A download whose connection breaks resumes at the byte where it broke. Raises HubError if the content is not
        what the Hub lists.
        """
        verifier = verifier or ContentVerifier(file)
        verifier.shown_name = self._named(file)
        yield from self._xet_blocks(commit, file, verifier)
        url = self._file_url(commit, file.path)
        failures = 0
        while verifier.size < file.size:
            before = verifier.size
            try:
                name = self._named(file)
                with self._requesting(name), self._open(url, verifier.size, name) as response:
                    verifier.note_etag(response)
                    for block in self._blocks(response, verifier.size):
                        verifier.add(block)
                        yield block
                    if verifier.size < file.size:
                        raise HubUnavailable(f"{name}: received {verifier.size} bytes instead of {file.size}")
            except HubUnavailable as failure:
                failures = 1 if verifier.size > before else failures + 1
                if failures >= MAX_ATTEMPTS:
                    raise
                self._pause(failures, failure, MAX_RETRY_AFTER_S)
        verifier.finish()

    def _xet_blocks(self, commit: str, file: HubFile, verifier: ContentVerifier) -> Iterator[bytes]:
        """The content of a file from its Xet storage; it ends early if that storage fails."""
        if file.xet_hash is None or not file.size or not self._xet_works or not xet_is_wanted():
            return
        try:
            source = self._xet_source(commit)
            if source is not None:
                for block in source.blocks(file.xet_hash, file.size, verifier.size):
                    verifier.add(block)
                    yield block
        except ConnectionError as error:
            self._warn(f"{self._named(file)}: its Xet storage fails ({one_line(error)}); continuing over HTTP")
        except XetUnusable as error:
            self._xet_works = False
            self._note(f"{error}; files in Xet storage come over HTTP, one connection for each file")

    def _xet_source(self, commit: str) -> XetSource | None:
        """The repo's Xet storage; None if it gives no access. Access is requested once."""
        with self._xet_lock:
            if self._xet is None and self._xet_works:
                url = f"{self._api}/xet-read-token/{commit}"
                try:
                    self._xet = XetSource.open(lambda: self._xet_access(url), url, self.headers)
                except (HubError, ConnectionError) as error:
                    self._xet_works = False
                    self._warn(
                        f"{self.request}: no access to its Xet storage ({one_line(error)}); continuing over HTTP"
                    )
            return self._xet

    def _xet_access(self, url: str) -> Any:
        return self._json(url, MAX_ATTEMPTS, MAX_RETRY_AFTER_S)[0]

    def _named(self, file: HubFile) -> str:
        return f"{file.path} of {self.request}"

    @property
    def _api(self) -> str:
        return f"{self._endpoint}/api/{self.request.repo_type}s/{self.request.repo_id}"

    def headers(self) -> dict[str, str]:
        """The headers of each request to the Hub, including the token."""
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
        found: str | None = self._library.package.get_token()
        if found is None and token is True:
            raise HubDenied(
                f"{self.request}: token=True, but there is no token; set HF_TOKEN, or log in with `hf auth login`"
            )
        return found

    def _json(self, url: str, attempts: int, max_retry_after: float) -> tuple[Any, str | None]:
        """A JSON answer, and the address of its next page if there is one."""
        what = str(self.request)
        for attempt in range(1, attempts + 1):
            try:
                with self._requesting(what):
                    session = self._session()
                    # A client that the user configured (set_client_factory) may not follow redirects unless it is told.
                    follow = {"follow_redirects": True} if _is_httpx(session) else {}
                    response = session.get(url, headers=self.headers(), timeout=self._timeout, **follow)
                    self._raise_for_status(response.status_code, response.headers, what)
                    following = self._next_page(response)
                return response.json(), following
            except HubUnavailable as failure:
                if attempt == attempts:
                    raise
                self._pause(attempt, failure, max_retry_after)
            except ValueError as error:
                raise HubError(f"{self.where} answers about {what} with something that is not JSON") from error
        raise AssertionError("at least one attempt is made")

    @contextmanager
    def _requesting(self, what: str) -> Iterator[None]:
        """Turn what the session raises into our errors, whichever HTTP library it is of."""
        try:
            yield
        except (ArtifactError, MemoryError):
            raise
        except (AttributeError, ImportError, NotImplementedError, TypeError) as error:
            # Not what a server does: this version has sessions of another kind.
            raise CannotStream(
                f"the sessions of {self._library.name} are not of a known kind ({type(error).__name__}: "
                f"{one_line(error)})"
            ) from error
        except Exception as error:
            raise self._unreachable(error, what) from None

    def _next_page(self, response: Any) -> str | None:
        # A mirror may return the address of the Hub behind it. The token must go to no host but the endpoint.
        url = response.links.get("next", {}).get("url")
        return self._endpoint + url[url.index("/api/") :] if url is not None and "/api/" in url else None

    def _session(self) -> Any:
        self._require_online()
        return self._library.utils.get_session()

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
            self._raise_for_status(response.status_code, response.headers, what)
            yield response

    def _blocks(self, response: Any, start: int) -> Iterator[bytes]:
        """The content from byte `start` of the file, even if the server ignored the range and sent the whole file."""
        skip = start if start and response.status_code != 206 else 0
        blocks = (
            response.iter_bytes(_BLOCK_SIZE) if hasattr(response, "iter_bytes") else response.iter_content(_BLOCK_SIZE)
        )
        for block in blocks:
            if skip:
                skip, block = max(0, skip - len(block)), block[skip:]
            if block:
                yield block


class ContentVerifier:
    """Counts and hashes the bytes of a file as they arrive, and compares them with what the Hub lists."""

    def __init__(self, file: HubFile) -> None:
        self.file = file
        self.shown_name = file.path
        """The name of the file in errors."""
        self.size = 0
        """Bytes received so far."""
        self.verified = False
        """Whether the whole content was received, and has the digest that the Hub lists."""
        self._etag = ""
        if file.sha256 is not None:
            self._digest = hashlib.sha256()
        else:
            self._digest = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)

    def note_etag(self, response: Any) -> None:
        """Note the ETag with which the server names the content."""
        self._etag = response.headers.get("ETag", "").removeprefix("W/").strip('"')

    def add(self, block: bytes) -> None:
        """Add the next block. Raises HubMismatch if the file is longer than the Hub lists."""
        self.size += len(block)
        if self.size > self.file.size:
            raise HubMismatch(f"{self.shown_name}: the Hub sends more than the {self.file.size} bytes that it lists")
        self._digest.update(block)

    def finish(self) -> None:
        """Raise HubMismatch if the content is not what the Hub lists."""
        found = self._digest.hexdigest()
        self.verified = found == self.file.oid
        # Other servers with the same API may list ids for small files that are not git's ids. The ETag
        # shows that: it is then not the listed id either.
        if not self.verified and (self.file.sha256 is not None or self._etag == self.file.oid):
            raise HubMismatch(
                f"{self.shown_name}: the content is not what the Hub lists (digest {found} instead of {self.file.oid})"
            )


def _file_of(row: Any) -> HubFile | None:
    """A row of the Hub's file list; None if it is malformed."""
    if not isinstance(row, dict) or not isinstance(row.get("path"), str) or not isinstance(row.get("type"), str):
        return None
    path, size, oid, lfs = row["path"], row.get("size", 0), row.get("oid", ""), row.get("lfs")
    if not isinstance(size, int) or size < 0:
        return None
    if isinstance(lfs, Mapping):
        size, oid = lfs.get("size", size), lfs.get("oid") or lfs.get("sha256")
    if row["type"] == "file" and not (isinstance(oid, str) and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", oid)):
        return None
    xet = row.get("xetHash")
    return HubFile(path, size, str(oid), xet if isinstance(xet, str) else None)


def _leads_out(path: str) -> bool:
    return "\0" in path or not {"", ".", ".."}.isdisjoint(path.split("/"))


def _is_httpx(session: Any) -> bool:
    return callable(getattr(session, "stream", None))


def _as_list(patterns: tuple[str, ...] | None) -> list[str] | None:
    return None if patterns is None else list(patterns)
