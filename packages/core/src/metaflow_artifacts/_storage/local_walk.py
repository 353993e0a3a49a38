"""Listing the files below a directory: symbolic links are followed, and each real directory is read once."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from metaflow_artifacts._storage.base import ObjectInfo
from metaflow_artifacts._storage.local_errors import MISSING, raise_error
from metaflow_artifacts._storage.names import is_key
from metaflow_artifacts.errors import StorageError

__all__ = ["refuse_broken_links", "walk"]


def walk(directory: str, prefix: str, start: str, hidden: str) -> Iterator[ObjectInfo]:
    """The files below `directory` whose names there begin with `start`; `prefix` begins their keys.

    What is yielded need not be a key: see `is_key`.

    `hidden` is a directory that is left out. Links are followed, so that a listing shows every key that can be read.
    Real directories are read before links, so that an object is listed under its real path rather than under a link.
    Directories are identified by their real paths, since some file systems give several of them one inode number.
    Raises StorageError for a dangling link: its target may be on a disk that is not mounted.
    """
    seen = {os.path.realpath(hidden)}
    # Directories yet to be read, as (path, real path, prefix, start of names); those behind links in a second list.
    pending = [(directory, os.path.realpath(directory), prefix, start)]
    linked: list[tuple[str, str]] = []
    while pending or linked:
        if not pending:
            # In the order of names, which does not depend on the file system.
            linked.sort(reverse=True)
            path, above = linked.pop()
            pending.append((path, os.path.realpath(path), above, ""))
        path, real, above, begin = pending.pop()
        if real in seen:
            continue
        seen.add(real)
        directories: list[str] = []
        links: list[str] = []
        yield from _read(path, above, begin, directories, links)
        pending.extend((f"{path}/{name}", f"{real}/{name}", f"{above}{name}/", "") for name in directories)
        linked.extend((f"{path}/{name}", f"{above}{name}/") for name in links)


def _read(path: str, prefix: str, start: str, directories: list[str], links: list[str]) -> Iterator[ObjectInfo]:
    """The files in one directory; the names of its directories, and of links to directories, go to the lists."""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if not entry.name.startswith(start):
                    continue
                key = prefix + entry.name
                is_link = False
                try:
                    is_link = entry.is_symlink()
                    if not is_link and entry.is_dir(follow_symlinks=False):
                        directories.append(entry.name)
                        continue
                    status = entry.stat()
                except OSError as error:
                    # The file may have been removed since.
                    if is_link and is_key(key):
                        refuse_broken_links(f"{path}/{entry.name}")
                    if error.errno in MISSING or (is_link and error.errno == errno.ELOOP):
                        continue
                    raise
                if stat.S_ISDIR(status.st_mode):
                    links.append(entry.name)
                elif stat.S_ISREG(status.st_mode):
                    yield ObjectInfo(key, status.st_size, status.st_mtime)
    except OSError as error:
        if error.errno not in MISSING:
            raise_error(error, "list", path)
        refuse_broken_links(path)


def refuse_broken_links(path: str) -> None:
    """Raise StorageError where `path`, which was not found, is a dangling symbolic link or lies behind one."""
    while not os.path.lexists(path):
        above = os.path.dirname(path)
        if above == path:
            return
        path = above
    if os.path.islink(path) and not os.path.exists(path):
        raise StorageError(
            f"cannot read {path}: it is a symbolic link, and there is nothing at {os.path.realpath(path)}; mount the"
            " disk that holds it, or remove the link"
        )
