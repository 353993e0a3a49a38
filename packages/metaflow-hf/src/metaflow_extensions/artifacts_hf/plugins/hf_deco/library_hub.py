"""Repos downloaded by huggingface_hub itself, where streaming is not possible: slower, and twice on this disk.

Only public functions are called, with arguments that they have had since 0.16.
"""

from __future__ import annotations

import errno
import hashlib
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from metaflow_artifacts.plugin import ArtifactError, TargetError, UsageError

from .client import MAX_ATTEMPTS, MAX_RETRY_AFTER_S, HubClient, is_commit
from .errors import HubError, HubMismatch, HubUnavailable
from .hub import Resolved
from .text import one_line

__all__ = ["DownloadedFile", "LibraryHub"]

T = TypeVar("T")

_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG})
_DOWNLOADS = 3
"""Attempts of a download. The library makes attempts of its own, and keeps the files that are complete."""
_READ_SIZE = 1 << 20
_FILE_MODE = 0o644


@dataclass(frozen=True)
class DownloadedFile:
    """A file of a repo on this disk."""

    path: str
    """The path in the repo, with `/`."""
    location: str
    size: int
    oid: str | None
    """The Hub's id of the content (SHA-256 for LFS, else git's) where the content has it, else None."""


class LibraryHub(HubClient):
    """One repo on the Hub, as `request` asks for it."""

    def resolve(self, attempts: int = MAX_ATTEMPTS, max_retry_after: float = MAX_RETRY_AFTER_S) -> Resolved:
        """The commit of the revision that was asked for. Raises as `Hub.resolve`."""
        info = self._call(lambda: self._info(self.request.revision), attempts, max_retry_after)
        commit = getattr(info, "sha", None)
        if not is_commit(commit):
            raise HubError(f"{self.where} does not tell the commit of {self.request}: is it a Hugging Face Hub?")
        return Resolved(str(commit), bool(getattr(info, "gated", False)) or bool(getattr(info, "private", False)))

    def check_access(self) -> None:
        """Raise HubDenied unless the token gives access to the repo's content."""

        def ask_for_one_file() -> None:
            info = self._info(self.request.revision)
            for file in (info.siblings or [])[:1]:
                url = self._file_url(info.sha, file.rfilename)
                self._library.package.get_hf_file_metadata(url, token=self.request.token)

        self._call(ask_for_one_file)

    def download(self, commit: str, directory: str) -> list[DownloadedFile]:
        """Download the files of a commit that match the patterns into the empty `directory`, sorted by path.

        Raises HubError, TargetError if `directory` cannot be written, UsageError for an argument that this version of
        huggingface_hub does not have.
        """
        request = self.request
        arguments: dict[str, Any] = {
            "repo_id": request.repo_id,
            "repo_type": request.repo_type,
            "revision": commit,
            "cache_dir": os.path.join(directory, "cache"),
            "allow_patterns": _as_list(request.allow_patterns),
            "ignore_patterns": _as_list(request.ignore_patterns),
            "max_workers": request.max_workers,
            "token": request.token,
            **self._newer_arguments(),
        }
        if request.etag_timeout is not None:
            arguments["etag_timeout"] = request.etag_timeout
        with self._without_bars():
            folder = self._call(lambda: self._library.package.snapshot_download(**arguments), _DOWNLOADS)
        files = [self._checked(path, location) for path, location in _files_below(folder)]
        return sorted(files, key=lambda file: file.path.encode("utf-8", "surrogatepass"))

    @contextmanager
    def _without_bars(self) -> Iterator[None]:
        """No progress bars, which fill a log with lines, and which name parts of signed addresses."""
        utils = self._library.utils
        shows_bars = not utils.are_progress_bars_disabled()
        if shows_bars:
            utils.disable_progress_bars()
        try:
            yield
        finally:
            if shows_bars:
                utils.enable_progress_bars()

    def _newer_arguments(self) -> dict[str, Any]:
        """Arguments that versions of huggingface_hub do not have: given where they are known, or needed."""
        headers = dict(self.request.headers) if self.request.headers else None
        is_needed = {
            "endpoint": self._endpoint != self._constants.ENDPOINT.rstrip("/"),
            "headers": headers is not None,
        }
        known = inspect.signature(self._library.package.snapshot_download).parameters
        for name in is_needed:
            if is_needed[name] and name not in known:
                raise UsageError(
                    f"{self.request}: {self._library.name} does not know the argument {name}=; install a newer one"
                    + (", or set HF_ENDPOINT" if name == "endpoint" else "")
                )
        given = {"endpoint": self._endpoint, "headers": headers}
        return {name: value for name, value in given.items() if name in known}

    def _info(self, revision: str | None) -> Any:
        api = self._library.package.HfApi(endpoint=self._endpoint)
        return api.repo_info(
            self.request.repo_id,
            repo_type=self.request.repo_type,
            revision=revision,
            timeout=self.request.etag_timeout,
            token=self.request.token,
        )

    def _call(
        self, function: Callable[[], T], attempts: int = MAX_ATTEMPTS, max_retry_after: float = MAX_RETRY_AFTER_S
    ) -> T:
        """What a function that calls huggingface_hub returns; it is called again after failures that may pass."""
        for attempt in range(1, attempts + 1):
            self._require_online()
            try:
                return function()
            except (ArtifactError, MemoryError):
                raise
            except Exception as error:
                try:
                    self._raise(error)
                except HubUnavailable as failure:
                    if attempt == attempts:
                        raise
                    self._pause(attempt, failure, max_retry_after)
        raise AssertionError("at least one attempt is made")

    def _raise(self, error: Exception) -> None:
        """Raise what an error of huggingface_hub means."""
        what = str(self.request)
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise TargetError(
                f"{what}: cannot be downloaded to disk ({error.strerror or error}); set temp_dir_root to a directory "
                "that can be written and has room"
            ) from error
        for link in _chain(error):
            response: Any = getattr(link, "response", None)
            if isinstance(getattr(response, "status_code", None), int):
                self._raise_for_status(response.status_code, response.headers, what)
        is_connection = isinstance(error, OSError)
        if not is_connection and isinstance(error, (AttributeError, ImportError, LookupError, TypeError, ValueError)):
            # Not what a server or a connection does: another attempt ends like this one.
            raise HubError(f"{what}: {self._library.name} fails ({type(error).__name__}: {one_line(error)})") from error
        raise self._unreachable(error, what) from error

    def _checked(self, path: str, location: str) -> DownloadedFile:
        """A file, compared with its id. The cache of huggingface_hub has each file under the ETag that the Hub gave."""
        size = os.stat(location).st_size
        # As every snapshot has it: the library's files may be private.
        os.chmod(location, _FILE_MODE)
        oid = os.path.basename(location)
        lfs = len(oid) == 64
        digest = hashlib.sha256() if lfs else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        with open(location, "rb") as file:
            while block := file.read(_READ_SIZE):
                digest.update(block)
        matches = digest.hexdigest() == oid
        if lfs and not matches:
            raise HubMismatch(
                f"{path} of {self.request}: the content is not what the Hub lists (digest {digest.hexdigest()} "
                f"instead of {oid})"
            )
        return DownloadedFile(path, location, size, oid if matches else None)


def _files_below(folder: str) -> Iterator[tuple[str, str]]:
    """The path of each file below a folder, and where its content is: the library may have made links to it."""
    for parent, _, names in os.walk(folder):
        for name in names:
            full = os.path.join(parent, name)
            yield os.path.relpath(full, folder).replace(os.sep, "/"), os.path.realpath(full)


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    seen: list[BaseException] = []
    while link is not None and link not in seen:
        yield link
        seen.append(link)
        link = link.__cause__ or link.__context__


def _as_list(patterns: tuple[str, ...] | None) -> list[str] | None:
    return None if patterns is None else list(patterns)
