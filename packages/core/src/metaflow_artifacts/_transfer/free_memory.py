"""How much memory this process can still use: of the machine, and within the limits of its groups (cgroups)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress

__all__ = ["free_memory"]

# The limit, what is used of it, and how much of that are files that can be dropped: of version 2 and of version 1.
_NAMES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.high", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_memory(proc: str = "/proc") -> int | None:
    """Bytes; None where that is not known. `proc` is the directory where the system describes its processes."""
    found = [*_of_machine(proc)]
    for directory in _groups(proc):
        found += _of_group(directory)
    return min(found, default=None)


def _of_machine(proc: str) -> list[int]:
    with suppress(OSError, ValueError, IndexError), open(f"{proc}/meminfo") as lines:
        return [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    return []


def _groups(proc: str) -> Iterator[str]:
    """The directories of this process's own groups and of those around them: each one's limit holds for it.

    A container may see its own group as the root. Slurm and systemd set limits to groups below it.
    """
    with suppress(OSError, ValueError, IndexError):
        own = {}
        with open(f"{proc}/self/cgroup") as lines:
            for line in lines:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                own.update(dict.fromkeys(controllers.split(","), path))
        with open(f"{proc}/self/mountinfo") as lines:
            mounts = [line.split() for line in lines if " cgroup" in line]
        for fields in mounts:
            kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
            # Version 2 has no names of controllers.
            name = "" if kind == "cgroup2" else "memory" if kind == "cgroup" and "memory" in options else None
            if name in own:
                root, point = (re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), field) for field in fields[3:5])
                yield from _upwards(point, os.path.relpath(own[name], root))


def _upwards(point: str, path: str) -> Iterator[str]:
    """From the directory `path` below `point` to `point`."""
    # What is not below the directory that is mounted cannot be seen.
    while path and path != "." and not path.startswith(".."):
        yield os.path.join(point, path)
        path = os.path.dirname(path)
    yield point


def _of_group(directory: str) -> Iterator[int]:
    for limit, used, files in _NAMES:
        # There is "max" where there is no limit.
        with suppress(OSError, ValueError):
            yield int(_read(directory, limit)) - int(_read(directory, used)) + _droppable(directory, files)


def _droppable(directory: str, name: str) -> int:
    """Bytes of files in memory that were not used lately: they make room for what is needed."""
    with suppress(OSError, ValueError, KeyError):
        return int(dict(line.split() for line in _read(directory, "memory.stat").splitlines())[name])
    return 0


def _read(directory: str, name: str) -> str:
    with open(os.path.join(directory, name)) as file:
        return file.read()
