"""Which paths the files of an artifact may have, and what a process calls them.

In an artifact, the bytes of a path are UTF-8, whatever encoding the process has for names of files.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from itertools import accumulate, pairwise

__all__ = ["NAMES_ARE_UTF8", "local_path", "path_bytes", "path_problem", "stored_path", "tree_problem"]

_MAX_PATH = 4096
_WINDOWS_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")


NAMES_ARE_UTF8 = sys.getfilesystemencoding() == "utf-8"
"""Whether this process reads names of files as an artifact has them."""


def path_bytes(path: str) -> bytes:
    """The bytes of a path within an artifact, by which paths are ordered. Raises UnicodeEncodeError."""
    return path.encode("utf-8", "surrogateescape")


def stored_path(name: str) -> str:
    """The path within an artifact of what this process calls `name`: the same bytes, read as UTF-8."""
    if NAMES_ARE_UTF8 or name.isascii():
        return name
    try:
        return os.fsencode(name).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return name  # no file can have this name here


def local_path(path: str) -> str:
    """What this process calls a file that has the bytes of `path`, a path within an artifact."""
    return path if NAMES_ARE_UTF8 or path.isascii() else os.fsdecode(path_bytes(path))


def path_problem(path: str) -> str | None:
    """Why `path` cannot be the path of a file or directory within an artifact; None if it can."""
    if len(path) > _MAX_PATH:
        return f"a path of {len(path)} characters, at most {_MAX_PATH} are allowed"
    parts = path.split("/")
    if "" in parts or "." in parts or ".." in parts or "\0" in path:
        return f"{path!r} is not a relative, normalised path"
    try:
        same = path.isascii() or path_bytes(path).decode("utf-8", "surrogateescape") == path
    except UnicodeEncodeError:
        same = False
    if not same:
        return f"{path!r} is not encoded as the format demands"
    if os.name == "nt" and any(
        _WINDOWS_DEVICES.fullmatch(part) or set(part) & set('\\:*?"<>|') or part[-1] in " ." for part in parts
    ):
        return f"{path!r} cannot be a name on this system"
    return None


def tree_problem(files: Sequence[str], dirs: Sequence[str]) -> str | None:
    """Why `files` and the empty directories `dirs` are no tree, in order; None if they are."""
    ordered = [path_bytes(path) for path in files]
    if any(a >= b for a, b in pairwise(ordered)):
        return "files: not in the order of their paths, or twice the same"
    names = set(files)
    if len(set(dirs)) != len(dirs) or not names.isdisjoint(dirs):
        return "dirs: one twice, or one that is a file too"
    parents: set[str] = set()
    for path in [*files, *dirs]:
        for parent in accumulate(path.split("/")[:-1], "{}/{}".format):
            parents.add(parent)
    if not parents.isdisjoint(names) or not parents.isdisjoint(dirs):
        clash = next(path for path in [*files, *dirs] if path in parents)
        return f"{clash!r} is a file or an empty directory, and other paths lie in it"
    return None
