"""Files that the caller gives away: moved into a hidden directory, the largest of them held open."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from io import FileIO

from metaflow_artifacts._format.paths import path_bytes, stored_path
from metaflow_artifacts._transfer.content import Content
from metaflow_artifacts._transfer.hidden_files import HiddenDirectory
from metaflow_artifacts._transfer.scan import Source, SourceFile, scan
from metaflow_artifacts._transfer.snapshot_parts import NoSnapshot, Snapshot, largest
from metaflow_artifacts._transfer.source import Changed, open_for_reading
from metaflow_artifacts.errors import SourceError

__all__ = ["move_away"]


def move_away(content: Content, source: Source) -> Snapshot:
    """Move what the caller named into a hidden directory beside it. Raises NoSnapshot where that cannot be."""
    named: list[tuple[str, str | os.PathLike[str]]]
    if isinstance(content, Mapping):
        named = [(stored_path(path), value) for path, value in content.items() if isinstance(value, (str, os.PathLike))]
    else:
        assert isinstance(content, (str, os.PathLike))
        named = [("", content)]
    paths = [os.path.abspath(value) for _, value in named]
    try:
        directory = HiddenDirectory(os.path.dirname(paths[0]))
    except OSError as error:
        raise NoSnapshot(f"no directory can be made beside {paths[0]!r}: {error}") from error
    moved: list[tuple[str, str]] = []
    try:
        for number, path in enumerate(paths):
            if os.path.islink(path):
                raise NoSnapshot(f"{path!r} is a link")
            location = os.path.join(directory.path, str(number))
            os.rename(path, location)
            moved.append((path, location))
        files = [file for file in source.files if file.content is not None]
        for (name, _), (path, location) in zip(named, moved, strict=True):
            there = scan(location, warns=False)
            if _leads_out(location, there):
                raise NoSnapshot(f"{path!r} holds links that lead out of it")
            files += _found_again(name, path, there, source)
        if len(files) < len(source.files):
            raise NoSnapshot(f"{paths[0]!r} holds links that lead out of it")
    except BaseException as error:
        Snapshot(source, directory, moved).give_back()
        if isinstance(error, OSError):
            raise NoSnapshot(f"{paths[0]!r} cannot be moved: {error}") from error
        raise
    files.sort(key=lambda file: path_bytes(file.path))
    opened = _hold(files)
    return Snapshot(Source(files, source.dirs), directory, moved, opened)


def _hold(files: list[SourceFile]) -> list[FileIO]:
    """Open the largest of `files`, and replace their entries: the caller may remove the directory they are in."""
    opened = []
    for number in largest(enumerate(files)):
        with contextlib.suppress(OSError, Changed, SourceError):
            fd = open_for_reading(files[number], number)
            opened.append(FileIO(fd))
            files[number] = files[number]._replace(fd=fd)
    return opened


def _leads_out(location: str, there: Source) -> bool:
    """Whether a link leads to what was not moved, and may be written to."""
    above = os.path.join(os.path.realpath(location), "")
    real: dict[str, str] = {}
    for file in there.files:
        if file.named:
            continue
        directory, name = os.path.split(file.location)
        if directory not in real:
            real[directory] = os.path.join(os.path.realpath(directory), "")
        path = os.path.realpath(file.location) if os.path.islink(file.location) else real[directory] + name
        if not path.startswith(above):
            return True
    return False


def _found_again(name: str, original: str, there: Source, source: Source) -> list[SourceFile]:
    """The files of `source` that are in `there` since `original` was moved, at their new locations."""
    known = {(file.path, file.inode, file.size) for file in source.files}
    found = []
    for file in there.files:
        below = f"{name}/{file.path}" if name else file.path
        path = (name or stored_path(os.path.basename(original))) if file.named else below
        if (path, file.inode, file.size) in known:
            found.append(file._replace(path=path, named=True))
    return found
