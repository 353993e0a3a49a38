"""The umask and the user of this process, which decide the mode and the owner of the files that it makes."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress

__all__ = ["owner", "umask"]

_STATUS = "/proc/thread-self/status"


def owner() -> tuple[int, int, tuple[int, ...]]:
    """The user and the groups that new files belong to, and that files are opened as."""
    return os.geteuid(), os.getegid(), tuple(sorted(os.getgroups()))


def umask() -> int | None:
    """The umask, which `os.umask` tells only by setting another one. None where it cannot be found out."""
    with suppress(OSError, ValueError), open(_STATUS) as lines:
        for line in lines:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    # Systems without it: macOS, and Linux before 4.7.
    with suppress(OSError), tempfile.TemporaryDirectory() as directory:
        location = os.path.join(directory, "file")
        os.close(os.open(location, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o777))
        return ~stat.S_IMODE(os.stat(location).st_mode) & 0o777
    return None
