"""Finding what to save: a walk over a file or directory, before any content is read."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from typing import NamedTuple

from metaflow_artifacts._format.paths import path_bytes, stored_path
from metaflow_artifacts._transfer.staging import STAGING_PREFIX
from metaflow_artifacts._transfer.target import is_path
from metaflow_artifacts.errors import InvalidInput, SourceError, SourceNotFound, warn

__all__ = ["Source", "SourceFile", "look_again", "scan"]

_NAMED_ENTRIES = 5
"""How many of the entries that are left out the warning names."""


class SourceFile(NamedTuple):
    """One file to be saved. There may be 100,000, and Python makes a named tuple in a quarter of a dataclass's time."""

    path: str
    """Its name within the artifact, `/`-separated."""
    location: str
    """Where it is on this machine."""
    size: int
    """Bytes."""
    mode: int
    """Permission bits."""
    mtime_ns: int
    """When its content was last changed, as found by the walk."""
    ctime_ns: int
    """When its content or its inode was last changed."""
    inode: int
    """Its number in the file system."""
    links: int
    """How many names it has."""
    gone: bool = False
    """Whether it was removed since the walk: it is left out, as if it had been removed before."""
    named: bool = False
    """Whether the caller named this file itself: it cannot be left out."""
    content: bytes | memoryview | None = None
    """Its content, where it is in memory and in no file; nobody writes to it."""
    fd: int | None = None
    """A descriptor that is read instead of the location, which may be gone. Whoever opened it closes it."""
    shared: tuple[FileIO, int] | None = None
    """Where `content` lies in a file, which another process can read: the file, and the offset."""


@dataclass
class Source:
    """Files and empty directories to be saved, each in the order of their paths' bytes."""

    files: list[SourceFile] = field(default_factory=list)
    dirs: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """What is left out, with the reason: pipes, sockets, devices, dangling links."""

    @property
    def size(self) -> int:
        """Bytes of content."""
        return sum(file.size for file in self.files)


def scan(path: str | os.PathLike[str], *, warns: bool = True) -> Source:
    """Find everything below `path`; links are followed, a file becomes a directory holding it under its name.

    Directories of loads that were killed (`.metaflow_artifacts_…`) are left out. So are pipes, sockets, devices and
    dangling links, with one ArtifactWarning that names them (none with `warns=False`). Raises SourceError for a path
    that does not exist or cannot be read, and for a link to a directory above it.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidInput(
            f"path to save: expected str or PathLike, found {type(path).__name__}; content in memory is saved by a "
            "dict of paths to contents, such as {'weights.bin': content}"
        )
    location = os.fspath(path)
    if not is_path(location):
        raise InvalidInput(f"path to save: expected a path, found {location!r}")
    source = Source()
    try:
        info = os.stat(location)
    except OSError as error:
        kind = SourceNotFound if isinstance(error, FileNotFoundError) else SourceError
        raise kind(f"cannot save {location!r}: {error.strerror}") from error
    if stat.S_ISDIR(info.st_mode):
        _walk(location, [(info.st_dev, info.st_ino)], source)
        # A directory that is saved empty has no entry: an artifact without files is that directory.
        source.dirs = [name for name in source.dirs if name]
    elif stat.S_ISREG(info.st_mode):
        source.files.append(_file(stored_path(os.path.basename(os.path.abspath(location))), location, info, named=True))
    else:
        raise SourceError(f"cannot save {location!r}: it is {_kind(info.st_mode)}, neither a file nor a directory")
    source.files.sort(key=lambda file: path_bytes(file.path))
    source.dirs.sort(key=path_bytes)
    if warns:
        _warn(location, source.skipped)
    return source


def look_again(file: SourceFile) -> SourceFile:
    """The file as it is now; `gone` where a file of a directory does not exist any more.

    Raises SourceError where it cannot be read, and where a file that the caller named does not exist any more.
    """
    if file.content is not None:
        return file
    try:
        info = os.stat(file.location if file.fd is None else file.fd)
    except FileNotFoundError as error:
        if not file.named:
            # As a temporary file that was renamed.
            return file._replace(size=0, gone=True)
        raise SourceError(f"{file.location!r} was removed while it was saved ({error.strerror}); save again") from error
    except OSError as error:
        raise SourceError(f"{file.location!r} was removed while it was saved ({error.strerror}); save again") from error
    if not stat.S_ISREG(info.st_mode):
        raise SourceError(f"{file.location!r} became {_kind(info.st_mode)} while it was saved; save again")
    return _file(file.path, file.location, info, named=file.named)._replace(fd=file.fd)


def _walk(location: str, above: list[tuple[int, int]], source: Source) -> None:
    pending = [(location, "", above)]
    while pending:
        location, path, above = pending.pop()
        try:
            with os.scandir(location) as entries:
                names = [entry.name for entry in entries if not _is_ours(entry)]
        except OSError as error:
            if path and isinstance(error, FileNotFoundError):
                continue  # removed since its parent was read
            raise SourceError(f"cannot read the directory {location!r}: {error.strerror}") from error
        kept = 0
        below = os.path.join(location, "")
        for name in names:
            child, stored = below + name, stored_path(name)
            child_path = f"{path}/{stored}" if path else stored
            info = _stat(child, source)
            if info is None:
                continue
            if stat.S_ISDIR(info.st_mode):
                identity = (info.st_dev, info.st_ino)
                if identity in above:
                    raise SourceError(f"{child!r} leads back to a directory above it: remove the link that loops")
                pending.append((child, child_path, [*above, identity]))
                kept += 1
            elif stat.S_ISREG(info.st_mode):
                source.files.append(_file(child_path, child, info))
                kept += 1
            else:
                source.skipped.append(f"{child!r} is {_kind(info.st_mode)}")
        if not kept:
            source.dirs.append(path)


def _is_ours(entry: os.DirEntry[str]) -> bool:
    """Whether it is the private directory of a load that was killed."""
    return entry.name.startswith(STAGING_PREFIX) and entry.is_dir(follow_symlinks=False)


def _stat(location: str, source: Source) -> os.stat_result | None:
    """The status of `location`, through links; None where it is a dangling link, or was removed since the listing."""
    try:
        return os.stat(location)
    except OSError as error:
        try:
            target = os.readlink(location)
        except FileNotFoundError:
            return None
        except OSError:
            raise SourceError(f"cannot save {location!r}: {error.strerror}") from error
        if isinstance(error, PermissionError):
            raise SourceError(f"{location!r} links to {target!r}, which cannot be read: {error.strerror}") from error
        source.skipped.append(f"{location!r} is a link to {target!r}, which leads nowhere")
        return None


def _file(path: str, location: str, info: os.stat_result, *, named: bool = False) -> SourceFile:
    if not info.st_size:
        _demand_empty(location)
    mode = stat.S_IMODE(info.st_mode)
    times = info.st_mtime_ns, info.st_ctime_ns
    return SourceFile(path, location, info.st_size, mode, *times, info.st_ino, info.st_nlink, named=named)


def _demand_empty(location: str) -> None:
    """Raise SourceError for a file that is said to be empty and is not, as those that a kernel makes at each read.

    Nothing is raised for one that cannot be read, or that has grown meanwhile.
    """
    has_content = False
    with suppress(OSError):
        fd = os.open(location, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            has_content = bool(os.read(fd, 1)) and not os.fstat(fd).st_size
        finally:
            os.close(fd)
    if has_content:
        raise SourceError(
            f"cannot save {location!r}: its file system says that it is empty, but it has content, as files in /proc "
            "do; save a copy of it"
        )


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a directory"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _warn(location: str, skipped: list[str]) -> None:
    if skipped:
        more = f"; and {len(skipped) - _NAMED_ENTRIES} more" if len(skipped) > _NAMED_ENTRIES else ""
        named = "; ".join(skipped[:_NAMED_ENTRIES])
        warn(f"saved {location!r} without some entries that are not files: {named}{more}")
