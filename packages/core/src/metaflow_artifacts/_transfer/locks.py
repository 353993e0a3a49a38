"""Locks on files, which tell whether the process that has made something is still there.

The kernel releases a lock (flock) when the process that holds it ends, however it ends. Some network file systems keep
locks on each machine alone: outside of local file systems, the name of the file says which kernel keeps the lock, and
what others have made is left alone.
"""

from __future__ import annotations

import functools
import os
import platform
import re

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["NoLocks", "lock_name", "take_lock"]

_LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "f2fs", "zfs", "tmpfs", "overlay"})
"""File systems that one kernel alone has mounted."""
_OPEN = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)


class NoLocks(OSError):
    """The system, or the file system, has no flock."""


def take_lock(location: str, flags: int) -> int | None:
    """A descriptor of the file at `location` that holds its lock; None where another process holds it.

    Raises FileNotFoundError where there is no such file, NoLocks, or OSError.
    """
    if fcntl is None:
        raise NoLocks
    lock = os.open(location, _OPEN | flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError as error:
        os.close(lock)
        raise NoLocks from error
    try:
        same = os.path.samestat(os.fstat(lock), os.stat(location, follow_symlinks=False))
    except OSError:
        os.close(lock)
        raise
    if not same:
        # It was removed, and made again, between the two calls above.
        os.close(lock)
        return None
    return lock


def lock_name(target: str) -> str:
    """The name of a lock in a private directory in `target`. Raises OSError."""
    # Two mounts of one network file system do not share their locks on every system.
    return "lock-local" if _is_local(target) else f"lock-{_kernel()}-{os.stat(target).st_dev}"


def _is_local(path: str) -> bool:
    """Whether no other machine can have mounted the file system of `path`; False where that is not known."""
    try:
        device = os.stat(path).st_dev
        with open("/proc/self/mountinfo") as mounts:
            for mount in mounts:
                place, _, kind = mount.partition(" - ")
                if place.split()[2] == f"{os.major(device)}:{os.minor(device)}":
                    return kind.split()[0] in _LOCAL
    except (OSError, ValueError, IndexError):
        pass
    return False


@functools.cache
def _kernel() -> str:
    """What tells this running kernel from others: on Linux an id that it draws when it starts."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            text = file.read()
    except OSError:
        text = platform.node()
    return re.sub(r"[^A-Za-z0-9-]", "", text)[:64]
