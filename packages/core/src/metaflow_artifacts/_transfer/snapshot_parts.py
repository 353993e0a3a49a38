"""What a snapshot is made of, however it is made: files that are held open, and what was moved."""

from __future__ import annotations

import contextlib
import os
import resource
import weakref
from collections.abc import Iterable
from io import FileIO

from metaflow_artifacts._transfer.hidden_files import HiddenDirectory
from metaflow_artifacts._transfer.scan import Source, SourceFile

__all__ = ["NoSnapshot", "Snapshot", "largest"]

_DESCRIPTORS = 256
"""How many files of a snapshot are held open at most; fewer where the process may open few."""


class NoSnapshot(Exception):
    """There can be no snapshot, for the reason in the message: store the source itself. Nothing was changed."""


class Snapshot:
    """What is to be stored, with its open files and the hidden directory of what was moved."""

    def __init__(
        self,
        source: Source,
        directory: HiddenDirectory | None = None,
        moved: list[tuple[str, str]] | None = None,
        opened: Iterable[FileIO] = (),
    ):
        self.source = source
        self._directory = directory
        self._moved = moved or []
        self._opened = list(opened)
        if self._opened or directory is not None:
            _snapshots.add(self)

    def close(self) -> None:
        """Close the files, and remove the directory. Nothing is raised."""
        self._close_files()
        if self._directory is not None:
            self._directory.close()

    def _close_files(self) -> None:
        for file in self._opened:
            with contextlib.suppress(OSError):
                file.close()

    def give_back(self) -> None:
        """Move what was consumed back to where it was, unless something else is there; then `close`."""
        # The last one first: one may come from a directory that was moved after it.
        for path, location in reversed(self._moved):
            with contextlib.suppress(OSError):
                if not os.path.lexists(path) or (os.path.isdir(path) and not os.listdir(path)):
                    os.rename(location, path)
        self.close()

    def forget(self) -> None:
        """In a forked child: close its copies of the descriptors, which would outlive the parent with it."""
        self._close_files()
        if self._directory is not None:
            self._directory.unlock()


_snapshots: weakref.WeakSet[Snapshot] = weakref.WeakSet()


def _forget() -> None:
    for snapshot in list(_snapshots):
        snapshot.forget()


os.register_at_fork(after_in_child=_forget)


def _descriptors() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Three snapshots may be there at a time.
    return _DESCRIPTORS if soft == resource.RLIM_INFINITY else min(_DESCRIPTORS, soft // 8)


def largest(files: Iterable[tuple[int, SourceFile]]) -> set[int]:
    """The numbers of the files that get a descriptor each."""
    by_size = sorted(((file.size, number) for number, file in files if file.content is None), reverse=True)
    return {number for _, number in by_size[: _descriptors()]}
