"""What a task has loaded: the local paths, the references, and the keys for the lineage."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from metaflow_artifacts._transfer.removal import remove_tree
from metaflow_artifacts.errors import TargetError

__all__ = ["Loaded", "TemporaryDirectories", "loaded_keys", "note_loaded"]

_keys: dict[str, None] = {}
_keys_lock = threading.Lock()


def note_loaded(key: str) -> None:
    """Note that the task in this process has loaded the artifact at `key`. Any thread may call this."""
    with _keys_lock:
        _keys.setdefault(key)


def loaded_keys() -> list[str]:
    """The keys of all artifacts that the task in this process has loaded, with any decorator, in order."""
    with _keys_lock:
        return list(_keys)


class Loaded(Mapping[str, str]):
    """A mapping of names to the local paths of what was loaded; `info` has the reference of each name."""

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}
        self._info: dict[str, Mapping[str, Any]] = {}
        self._lock = threading.Lock()

    @property
    def info(self) -> Mapping[str, Mapping[str, Any]]:
        """A mapping of the same names to the references (`ModelArtifact` dicts)."""
        return MappingProxyType(self._info)

    def add(self, name: str, path: str, info: Mapping[str, Any]) -> None:
        """Add an entry, or replace the one of this name, and note its key for the lineage."""
        with self._lock:
            self._paths = {**self._paths, name: path}
            self._info = {**self._info, name: dict(info)}
        note_loaded(str(info["key"]))

    def __getitem__(self, name: str) -> str:
        try:
            return self._paths[name]
        except KeyError:
            known = ", ".join(self._paths) or "nothing"
            raise KeyError(f"{name!r} was not loaded here; loaded: {known}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __repr__(self) -> str:
        return f"Loaded({self._paths!r})"


class TemporaryDirectories:
    """Makes directories below `root`, and removes them at `close`, or at the end of the process.

    If `root` is None, they are in the system's directory for temporary files.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self._root = os.path.abspath(os.fspath(root)) if root is not None else None
        self._made: list[tuple[str, os.stat_result]] = []
        self._process = os.getpid()
        self._finalizer = weakref.finalize(self, _remove, self._made, self._process)

    def new(self, prefix: str) -> str:
        """Make an empty directory whose name starts with `prefix`, and return its path.

        Characters of `prefix` that are unusual in file names are replaced. Raises TargetError if the directory cannot
        be made.
        """
        safe = re.sub(r"[^A-Za-z0-9_.-]+", "_", prefix)[:100]
        try:
            if self._root is not None:
                os.makedirs(self._root, exist_ok=True)
            path = tempfile.mkdtemp(prefix=safe, dir=self._root)
            self._made.append((path, os.lstat(path)))
        except OSError as error:
            where = self._root or tempfile.gettempdir()
            raise TargetError(
                f"cannot make a temporary directory in {where}: {error.strerror or error}; "
                "set temp_dir_root to a directory that can be written"
            ) from error
        return path

    def close(self) -> None:
        """Remove the directories with their content, unless this process is a fork of the one that made them.

        Nothing outside of them is changed. A directory that was removed or moved away is not an error, and what cannot
        be removed is left.
        """
        _remove(self._made, self._process)


def _remove(made: list[tuple[str, os.stat_result]], process: int) -> None:
    if os.getpid() != process:
        return
    while made:
        path, status = made.pop()
        with contextlib.suppress(OSError):
            found = os.lstat(path)
            # The task may have moved the directory away. What the same user then put at this path is temporary too.
            if os.path.samestat(found, status) or found.st_uid == status.st_uid:
                remove_tree(path)
