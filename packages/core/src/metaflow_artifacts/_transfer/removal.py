"""Removing directories that this project has made, and nothing outside of them.

Modes are changed and names removed through descriptors of the directories. So no link is followed, and nothing else
is removed if another process moves a directory at the same time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid

__all__ = ["allow_owner", "remove_tree"]


def remove_tree(path: str) -> None:
    """Remove the directory `path` with all that is in it, read-only directories too.

    Nothing is done where `path` is missing, a link or a file. Links in it are removed, and their targets do not change.
    The mode of the parent of `path` does not change. File systems that are mounted in it are left alone. What cannot
    be removed stays, and nothing is raised.
    """
    path = path.rstrip(os.sep) or path
    if os.open not in os.supports_dir_fd or os.scandir not in os.supports_fd:
        if not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        return
    try:
        top = _open(path)
    except OSError:
        return
    try:
        _empty(top)
    finally:
        os.close(top)
    with contextlib.suppress(OSError):
        os.rmdir(path)


def allow_owner(path: str) -> None:
    """Let the owner of the directory `path` read and change it. Raises OSError where it is a link or a file."""
    os.close(_open(path))


def _open(name: str, parent: int | None = None, device: int | None = None) -> int:
    """A descriptor of the directory `name` in `parent`. Its mode is changed so that its owner may change it.

    Raises OSError where it is a link or a file, or lies on another device than `device`.
    """
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(name, os.O_RDONLY | flags, dir_fd=parent)
    except PermissionError:
        if hasattr(os, "O_PATH"):
            # Linux has no chmod that does not follow links, but opening with O_PATH needs no permission.
            handle = os.open(name, os.O_PATH | flags, dir_fd=parent)
            try:
                os.chmod(f"/proc/self/fd/{handle}", 0o700)
            finally:
                os.close(handle)
        else:
            os.chmod(name, 0o700, dir_fd=parent, follow_symlinks=False)
        fd = os.open(name, os.O_RDONLY | flags, dir_fd=parent)
    status = os.fstat(fd)
    if device is not None and status.st_dev != device:
        os.close(fd)
        raise OSError(f"{name} is on another file system")
    if status.st_mode & 0o700 != 0o700:
        with contextlib.suppress(OSError):
            os.fchmod(fd, status.st_mode & 0o777 | 0o700)
    return fd


def _empty(top: int) -> None:
    device = os.fstat(top).st_dev
    waiting = _remove_files(top)
    while waiting:
        name = waiting.pop()
        try:
            fd = _open(name, top, device)
        except OSError:
            continue
        try:
            # The directories in it are moved up to `top`, so a tree of any depth needs two descriptors.
            waiting += [moved for inner in _remove_files(fd) if (moved := _move_up(inner, fd, top))]
        finally:
            os.close(fd)
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=top)


def _remove_files(directory: int) -> list[str]:
    """Remove all but directories. Returns the names of the directories."""
    try:
        with os.scandir(directory) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except OSError:
        return []
    for name, is_directory in found:
        if not is_directory:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=directory)
    return [name for name, is_directory in found if is_directory]


def _move_up(name: str, directory: int, top: int) -> str | None:
    """Move a directory into `top`. Returns its new name, None where it cannot be moved."""
    moved = uuid.uuid4().hex
    try:
        try:
            os.rename(name, moved, src_dir_fd=directory, dst_dir_fd=top)
        except PermissionError:
            # A directory can be moved only if its own mode allows changes.
            os.close(_open(name, directory))
            os.rename(name, moved, src_dir_fd=directory, dst_dir_fd=top)
    except OSError:
        return None
    return moved
