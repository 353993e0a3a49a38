"""The files of a commit as streams: the list, and the bytes of each file with one GET, resumed where it broke off.

These requests are made here, by the session of huggingface_hub, with its headers and addresses: its own functions write
files to disk. Its function for the list, `list_repo_tree`, is not used, because it waits without limit for an answer,
sends the token to any host that the list names for the next page, and up to 1.3 does not tell which files are in Xet
storage. Where streaming is not possible, CannotStream is raised, and `download.py` lets huggingface_hub download.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

from metaflow_artifacts.plugin import ArtifactError, StreamedFile

from .errors import CannotStream, HubError, HubMismatch, HubUnavailable
from .hub import MAX_ATTEMPTS, Hub
from .xet import XetStorage

__all__ = ["FileStream", "HubFile", "HubStreams"]

_BLOCK_SIZE = 1 << 20
_NO_SUCH_API = frozenset({404, 405, 501})
_IMPOSSIBLE_PATH = re.compile(r"[\0\ud800-\udfff]|(^|/)[.]{0,2}(/|\Z)")
"""What no path in a repo has: a part that is empty or leads up, or a character that no file name has."""
_NEEDED = {
    "constants": ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"),
    "utils": ("build_hf_headers", "filter_repo_objects", "get_session", "hf_raise_for_status"),
}
"""What streaming needs of huggingface_hub, besides what `hub.py` uses. 0.20 is the first version that has all."""


@dataclass(frozen=True)
class HubFile(StreamedFile):
    """A file of a commit. Its `id` is the SHA-256 of the content for a file in LFS, else git's id of the blob."""

    xet_hash: str | None = None


class HubStreams:
    """The files of one commit of a repo, for core to store."""

    def __init__(self, hub: Hub, commit: str) -> None:
        """Raises CannotStream if the installed huggingface_hub is too old."""
        missing = [
            name for part, names in _NEEDED.items() for name in names if not hasattr(getattr(hub.library, part), name)
        ]
        if missing:
            raise CannotStream(f"{hub.library_name} has no {', '.join(missing)}")
        self.hub = hub
        self.parallel = hub.request.max_workers
        self._commit = commit
        self._api = f"{hub.endpoint}/api/{hub.request.repo_type}s/{hub.request.repo_id}"
        token_url = f"{self._api}/xet-read-token/{commit}"
        self._xet = XetStorage(hub, token_url, lambda: self._json(token_url)[0])

    def files(self) -> list[HubFile]:
        """The files that match the patterns, sorted by path.

        Raises CannotStream if the server gives no list with the sizes and ids of files, as some mirrors do not.
        """
        hub, request = self.hub, self.hub.request
        files: dict[str, HubFile] = {}
        pages: set[str] = set()
        url: str | None = f"{self._api}/tree/{self._commit}?recursive=true&expand=false"
        while url is not None:
            if url in pages:
                raise HubError(f"{hub.where} gives a file list of {request} that has no end")
            pages.add(url)
            try:
                rows, url = self._json(url)
            except HubError as error:
                if error.status in _NO_SUCH_API:
                    raise CannotStream(f"{hub.where} gives no file list ({error})") from error
                raise
            row: Any
            for row in rows if isinstance(rows, list) else [None]:
                file = _file_of(row)
                if file is None:
                    raise CannotStream(f"{hub.where} gives a file list of {request} that cannot be read")
                if _IMPOSSIBLE_PATH.search(file.path):
                    raise HubError(f"{hub.where} lists a file {file.path!r} of {request}, which is not below it")
                if row["type"] == "file":
                    files[file.path] = file
        for path in files:
            above = path
            while above := above.rpartition("/")[0]:
                if above in files:
                    raise HubError(f"{hub.where} lists {above!r} of {request} as a file and as a directory")
        wanted = hub.library.utils.filter_repo_objects(files, **request.patterns)
        return [files[path] for path in sorted(wanted, key=str.encode)]

    def open(self, file: HubFile) -> FileStream:
        """The content of a file."""
        return FileStream(self, file, self._xet)

    def reopen(self, file: HubFile, error: ArtifactError) -> FileStream:
        """The content again, over plain HTTP, after other bytes came than the Hub lists. Else raises `error`."""
        if isinstance(error, HubMismatch):
            return FileStream(self, file, None)
        raise error

    def cancel(self) -> None:
        """End the waits of all streams."""
        self.hub.cancelled.set()

    def url(self, file: HubFile) -> str:
        """The address of a file's content."""
        return self.hub.file_url(self._commit, file.path)

    def _json(self, url: str) -> tuple[Any, str | None]:
        """A JSON answer, and the address of its next page if there is one."""

        def ask() -> tuple[Any, str | None]:
            with self.get(url, str(self.hub.request), self.hub.timeout) as response:
                return json.loads(b"".join(blocks_of(response))), self._next_page(response)

        return self.hub.call(ask)

    def _next_page(self, response: Any) -> str | None:
        link: str | None = response.links.get("next", {}).get("url")
        if link is None:
            return None
        hub = self.hub
        url = urljoin(str(response.url), link)
        if url.startswith(f"{hub.endpoint}/"):
            return url
        # A mirror may return the address of the Hub behind it. The token must go to no host but the endpoint.
        _, api, rest = url.partition(f"/api/{hub.request.repo_type}s/")
        if not api:
            raise HubError(f"{hub.where} gives a file list of {hub.request} whose next page is not at a Hub")
        return hub.endpoint + api + rest

    @contextmanager
    def get(self, url: str, what: str, timeout: float, start: int = 0) -> Iterator[Any]:
        """The one GET: an answer whose body has not been read, from byte `start` if the server can do that.

        `timeout` is the time in seconds for each part of the answer. Redirects are followed, without the token where
        they lead to another host. Raises HubError for an answer that is none, HubMismatch if there is no such byte,
        CannotStream if the session of huggingface_hub is of another kind.
        """
        utils = self.hub.library.utils
        with self.hub.asking(what, CannotStream):
            headers = {**self.hub.headers(), "accept-encoding": "identity"}
            if start:
                headers["range"] = f"bytes={start}-"
            session = utils.get_session()
            opened: AbstractContextManager[Any]
            if callable(getattr(session, "stream", None)):
                # A client that the user configured (set_client_factory) may not follow redirects unless it is told.
                opened = session.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True)
            else:
                opened = session.get(url, headers=headers, timeout=timeout, stream=True)
            with opened as response:
                if response.status_code == 416:
                    raise HubMismatch(f"{what}: the Hub has fewer bytes than it lists")
                utils.hf_raise_for_status(response)
                yield response


class FileStream:
    """The content of a file. It is verified when the iterator is exhausted."""

    def __init__(self, streams: HubStreams, file: HubFile, xet: XetStorage | None) -> None:
        self.verified = False
        self._streams = streams
        self._file = file
        self._xet = xet
        self._what = f"{file.path} of {streams.hub.request}"
        self._received = 0
        self._etags: set[str] = set()

    def __iter__(self) -> Iterator[bytes]:
        """Raises HubMismatch if the content is not what the Hub lists, HubError if it does not come."""
        size = self._file.size
        if self._file.sha256 is not None:
            digest = hashlib.sha256()
        else:
            digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        for block in self._blocks():
            self._received += len(block)
            if self._received > size:
                raise HubMismatch(f"{self._what}: the Hub sends more than the {size} bytes that it lists")
            digest.update(block)
            yield block
        self._verify(digest.hexdigest())

    def _blocks(self) -> Iterator[bytes]:
        if self._xet is not None:
            yield from self._xet.blocks(self._file.xet_hash, self._file.size, self._what)
        failures = 0
        while self._received < self._file.size:
            before = self._received
            try:
                yield from self._blocks_of_one_answer()
            except HubUnavailable as failure:
                failures = 1 if self._received > before else failures + 1
                if failures >= MAX_ATTEMPTS:
                    raise
                self._streams.hub.pause(failures, failure)

    def _blocks_of_one_answer(self) -> Iterator[bytes]:
        streams, start = self._streams, self._received
        timeout = streams.hub.library.constants.HF_HUB_DOWNLOAD_TIMEOUT
        with streams.get(streams.url(self._file), self._what, timeout, start) as response:
            self._etags.add(response.headers.get("ETag", "").removeprefix("W/").strip('"'))
            part = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            if response.status_code == 206 and part is not None and int(part[1]) != start:
                raise HubMismatch(f"{self._what}: the Hub sends the bytes from {part[1]} on instead of from {start} on")
            # A server may ignore the range, and send the whole file.
            skip = start if start and response.status_code != 206 else 0
            for block in blocks_of(response):
                if skip:
                    skip, block = max(0, skip - len(block)), block[skip:]
                if block:
                    yield block
        if self._received < self._file.size:
            raise HubUnavailable(f"{self._what}: received {self._received} bytes instead of {self._file.size}")

    def _verify(self, found: str) -> None:
        file = self._file
        self.verified = found == file.id
        if self.verified:
            return
        # Other servers with the same API may list ids for small files that are not git's ids. The ETag
        # shows that: it is then not the listed id either.
        if file.sha256 is not None or file.id in self._etags:
            raise HubMismatch(
                f"{self._what}: the content is not what the Hub lists (digest {found} instead of {file.id})"
            )
        if len(self._etags) > 1:
            raise HubMismatch(f"{self._what}: the content has changed while it was downloaded")


def blocks_of(response: Any) -> Iterator[bytes]:
    """The body of an answer in blocks, whichever HTTP library it is of."""
    read = response.iter_bytes if hasattr(response, "iter_bytes") else response.iter_content
    blocks: Iterator[bytes] = read(_BLOCK_SIZE)
    return blocks


def _file_of(row: Any) -> HubFile | None:
    """A row of the Hub's file list; None if it is malformed."""
    if not isinstance(row, dict) or not isinstance(row.get("path"), str) or not isinstance(row.get("type"), str):
        return None
    path, size, id, lfs = row["path"], row.get("size", 0), row.get("oid", ""), row.get("lfs")
    if isinstance(lfs, Mapping):
        size, id = lfs.get("size", size), lfs.get("oid") or lfs.get("sha256")
    if type(size) is not int or size < 0:
        return None
    if row["type"] == "file" and not (isinstance(id, str) and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", id)):
        return None
    xet = row.get("xetHash")
    return HubFile(path, size, str(id), xet if isinstance(xet, str) else None)
