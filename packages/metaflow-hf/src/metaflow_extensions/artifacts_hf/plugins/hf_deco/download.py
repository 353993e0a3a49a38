"""Repos downloaded by huggingface_hub itself, where streaming is not possible: slower, and twice on this disk."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from metaflow_artifacts.plugin import TargetError

from .errors import HubMismatch
from .hub import Hub

__all__ = ["DownloadedFile", "download"]

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
    id: str | None
    """The Hub's id of the content (SHA-256 for LFS, else git's) where the content has it, else None."""


def download(hub: Hub, commit: str, directory: str) -> list[DownloadedFile]:
    """Download the files of a commit that match the patterns into the empty `directory`, sorted by path.

    Raises HubError, TargetError if `directory` cannot be written, UsageError for an argument that this version of
    huggingface_hub does not have.
    """
    request = hub.request
    wanted = {"endpoint": hub.endpoint, **hub.identity}
    function = hub.library.snapshot_download
    cache = os.path.join(directory, "cache")
    arguments: dict[str, Any] = {
        "repo_id": request.repo_id,
        "repo_type": request.repo_type,
        "revision": commit,
        "cache_dir": cache,
        "max_workers": request.max_workers,
        "etag_timeout": hub.timeout,
        **request.patterns,
        **hub.arguments_of(function, wanted),
    }

    def run() -> str:
        try:
            _remove_snapshots(cache)
            folder: str = function(**arguments)
        except OSError as error:
            if error.errno not in _DISK_ERRORS:
                raise
            raise TargetError(
                f"{request}: cannot be downloaded to disk ({error.strerror or error}); set temp_dir_root to a "
                "directory that can be written and has room"
            ) from error
        return folder

    with _without_bars(hub.library.utils):
        folder = hub.call(run, _DOWNLOADS)
    files = [_checked(hub, path, location) for path, location in _files_below(folder)]
    return sorted(files, key=lambda file: file.path.encode("utf-8", "surrogatepass"))


def _remove_snapshots(cache: str) -> None:
    """Remove the links of an attempt that failed. The contents stay.

    Where the Hub does not answer the next attempt, older versions of huggingface_hub return the links that there are:
    a part of the repo.
    """
    for path in glob.glob(os.path.join(glob.escape(cache), "*", "snapshots")):
        shutil.rmtree(path)


@contextmanager
def _without_bars(utils: Any) -> Iterator[None]:
    """No progress bars, which fill a log with lines, and which name parts of signed addresses."""
    shows_bars = not utils.are_progress_bars_disabled()
    if shows_bars:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if shows_bars:
            utils.enable_progress_bars()


def _checked(hub: Hub, path: str, location: str) -> DownloadedFile:
    """A file, compared with its id. The cache of huggingface_hub has each file under the ETag that the Hub gave."""
    size = os.stat(location).st_size
    # As every snapshot has it: the library's files may be private.
    os.chmod(location, _FILE_MODE)
    id = os.path.basename(location)
    lfs = len(id) == 64
    digest = hashlib.sha256() if lfs else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with open(location, "rb") as file:
        while block := file.read(_READ_SIZE):
            digest.update(block)
    found = digest.hexdigest()
    if lfs and found != id:
        raise HubMismatch(
            f"{path} of {hub.request}: the content is not what the Hub lists (digest {found} instead of {id})"
        )
    return DownloadedFile(path, location, size, id if found == id else None)


def _files_below(folder: str) -> Iterator[tuple[str, str]]:
    """The path of each file below a folder, and where its content is: the library may have made links to it."""
    for parent, _, names in os.walk(folder):
        for name in names:
            full = os.path.join(parent, name)
            yield os.path.relpath(full, folder).replace(os.sep, "/"), os.path.realpath(full)
