"""What a task has loaded: the local paths, the references, and the keys for the lineage."""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import os
import re
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from multiprocessing.util import Finalize
from typing import Any

from metaflow_artifacts._transfer.removal import remove_tree
from metaflow_artifacts.errors import TargetError, UsageError

__all__ = ["Loaded", "TemporaryDirectories", "loaded_keys", "note_loaded"]

_keys: dict[str, None] = {}


def note_loaded(key: str) -> None:
    """Note that the task in this process has loaded the artifact at `key`. Any thread may call this."""
    # No lock: a child of fork could inherit it held. Both operations on the dict are atomic.
    _keys.setdefault(key)


def loaded_keys() -> list[str]:
    """The keys of all artifacts that the task in this process has loaded, with any decorator, in order."""
    return list(_keys)


class Loaded(Mapping[str, str]):
    """A mapping of names to the local paths of what was loaded; `info` has the reference of each name.

    A copy, or what comes out of a pickle, has the same names, paths and references, and owns none of the directories.
    """

    # Artifacts live longer than the arrangement of modules: pickles have the name in the seam.
    __module__ = "metaflow_artifacts.plugin"

    def __init__(self, temporary: TemporaryDirectories | None = None) -> None:
        """`temporary` has made the directories that `cleanup` may remove."""
        # No lock: a child of fork could inherit it held. Single operations on these dicts are atomic.
        self._paths: dict[str, str] = {}
        self._info: dict[str, dict[str, Any]] = {}
        self._temporary = temporary

    @property
    def info(self) -> dict[str, dict[str, Any]]:
        """A dict of the same names to the references (`ModelArtifact` dicts). Each call makes a new one."""
        return {name: dict(reference) for name, reference in self._info.copy().items()}

    def add(self, name: str, path: str, info: Mapping[str, Any]) -> None:
        """Add an entry, or replace the one of this name, and note its key for the lineage."""
        self._info[name] = dict(info)
        self._paths[name] = path
        note_loaded(str(info["key"]))

    def cleanup(self, artifact_name: str | None = None) -> None:
        """Remove the temporary directory of one name, or those of all names, before the task ends.

        The name is removed from the mapping. A directory that the user has chosen stays: it may hold other files.

        Parameters
        ----------
        artifact_name : str, default None
            The name; by default all.

        Raises
        ------
        KeyError
            If nothing of this name was loaded.
        """
        for name in [*self] if artifact_name is None else [artifact_name]:
            path = self[name]
            if self._temporary is not None:
                self._temporary.remove(path)
            self._paths.pop(name, None)
            self._info.pop(name, None)

    def __getitem__(self, name: str) -> str:
        try:
            return self._paths[name]
        except KeyError:
            known = ", ".join(self) or "nothing"
            raise KeyError(f"{name!r} was not loaded here; loaded: {known}") from None

    def __iter__(self) -> Iterator[str]:
        # Another thread may add an entry meanwhile.
        return iter(list(self._paths))

    def __len__(self) -> int:
        return len(self._paths)

    def __repr__(self) -> str:
        return f"Loaded({self._paths!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"_paths": self._paths.copy(), "_info": self._info.copy(), "_temporary": None}


class TemporaryDirectories:
    """Makes directories below `root`, and removes them at `close`, or at the end of the process.

    If `root` is None, they are in the system's directory for temporary files. A copy, what comes out of a pickle, and a
    forked child own only the directories that they make themselves.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None, *, until_exit: bool = False) -> None:
        """With `until_exit`, the directories outlive this object. Raises UsageError for a `root` that is no path."""
        if root is not None and not isinstance(root, (str, os.PathLike)):
            raise UsageError(
                f"temp_dir_root: expected a path (str or os.PathLike), found {root!r:.80} ({type(root).__name__})"
            )
        self._root = os.path.abspath(os.fspath(root)) if root is not None else None
        self._until_exit = until_exit
        self._made: list[tuple[str, os.stat_result]] = []
        self._process = 0
        # Copies are made for each call of a worker, and few of them make a directory.
        if not until_exit:
            self._begin()

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker may return the path of a directory, and have no other use for the copy that made it.
        return functools.partial(type(self), until_exit=True), (self._root,)

    def _begin(self) -> None:
        """Own nothing yet, in this process, and see to it that what is made here is removed."""
        self._made, self._process = [], os.getpid()
        if not self._until_exit:
            weakref.finalize(self, _remove, self._made, self._process)
            return
        atexit.register(_remove, self._made, self._process)
        if multiprocessing.parent_process() is not None:
            # Workers that were forked end without Python's own clean-up.
            Finalize(None, _remove, args=(self._made, self._process), exitpriority=0)

    def new(self, prefix: str) -> str:
        """Make an empty directory whose name starts with `prefix`, and return its path.

        Characters of `prefix` that are unusual in file names are replaced. Raises TargetError if the directory cannot
        be made.
        """
        if self._process != os.getpid():
            self._until_exit = self._until_exit or self._process != 0
            self._begin()
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

    def remove(self, path: str) -> None:
        """Remove one directory with its content, if it was made here; as `close` does."""
        for made in [one for one in self._made if one[0] == path]:
            # Another thread may remove it too.
            with contextlib.suppress(ValueError):
                self._made.remove(made)
                _remove([made], self._process)

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
