"""Which paths the files of an artifact may have."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import accumulate, pairwise

__all__ = ["path_problem", "tree_problem"]

_MAX_PATH = 4096
_WINDOWS_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")


def path_problem(path: str) -> str | None:
    """Why `path` cannot be the path of a file or directory within an artifact; None if it can."""
    if len(path) > _MAX_PATH:
        return f"a path of {len(path)} characters, at most {_MAX_PATH} are allowed"
    parts = path.split("/")
    if "" in parts or "." in parts or ".." in parts or "\0" in path:
        return f"{path!r} is not a relative, normalised path"
    try:
        same = path.isascii() or os.fsdecode(os.fsencode(path)) == path
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
    ordered = [os.fsencode(path) for path in files]
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
        return "files: one is a directory of another, or an empty directory is not empty"
    return None
