"""What is to be saved: a walk over a file or directory, before a byte of content is read."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field

from metaflow_artifacts.errors import InvalidReference, SourceError

__all__ = ["Source", "SourceFile", "scan"]


@dataclass(frozen=True)
class SourceFile:
    """One file to be saved."""

    path: str
    """Its name within the artifact, `/`-separated."""
    location: str
    """Where it is on this machine."""
    size: int
    """Bytes."""
    mode: int
    """Permission bits."""
    mtime_ns: int
    """When it was last changed, as found by the walk."""


@dataclass
class Source:
    """Files and empty directories to be saved, each in the order of their paths' bytes."""

    files: list[SourceFile] = field(default_factory=list)
    dirs: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of content."""
        return sum(file.size for file in self.files)


def scan(path: str | os.PathLike[str]) -> Source:
    """Find everything below `path`; links are followed, a file becomes a directory holding it under its name.

    Raises SourceError for a path that does not exist or cannot be read, for a link that dangles or loops, and
    for what is neither file nor directory.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidReference(f"path to save: expected str or PathLike, found {type(path).__name__}")
    location = os.fspath(path)
    if not isinstance(location, str) or not location or "\0" in location:
        raise InvalidReference(f"path to save: expected a path, found {location!r}")
    source = Source()
    info = _stat(location)
    if stat.S_ISDIR(info.st_mode):
        _walk(location, "", [(info.st_dev, info.st_ino)], source)
        # A directory that is saved empty has no entry: an artifact without files is that directory.
        source.dirs = [name for name in source.dirs if name]
    else:
        source.files.append(_file(location, os.path.basename(os.path.abspath(location)), info))
    source.files.sort(key=lambda file: os.fsencode(file.path))
    source.dirs.sort(key=os.fsencode)
    return source


def _walk(location: str, path: str, above: list[tuple[int, int]], source: Source) -> None:
    pending = [(location, path, above)]
    while pending:
        location, path, above = pending.pop()
        try:
            with os.scandir(location) as entries:
                names = [entry.name for entry in entries]
        except OSError as error:
            raise SourceError(f"cannot read the directory {location!r}: {error.strerror}") from error
        if not names:
            source.dirs.append(path)
        for name in names:
            child = os.path.join(location, name)
            child_path = f"{path}/{name}" if path else name
            info = _stat(child)
            if stat.S_ISDIR(info.st_mode):
                identity = (info.st_dev, info.st_ino)
                if identity in above:
                    raise SourceError(f"{child!r} leads back to a directory above it: remove the link that loops")
                pending.append((child, child_path, [*above, identity]))
            else:
                source.files.append(_file(child, child_path, info))


def _stat(location: str) -> os.stat_result:
    try:
        return os.stat(location)
    except OSError as error:
        if os.path.islink(location):
            raise SourceError(
                f"{location!r} is a link to {os.readlink(location)!r}, which cannot be read ({error.strerror}): "
                "remove the link or restore what it points to"
            ) from error
        raise SourceError(f"cannot save {location!r}: {error.strerror}") from error


def _file(location: str, path: str, info: os.stat_result) -> SourceFile:
    if not stat.S_ISREG(info.st_mode):
        raise SourceError(f"{location!r} is neither a file nor a directory (a socket, pipe or device): move it away")
    return SourceFile(path, location, info.st_size, stat.S_IMODE(info.st_mode), info.st_mtime_ns)
