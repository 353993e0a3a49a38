"""The directory that an artifact is loaded into: nothing in it changes until all of the artifact is loaded.

Files are written to a staging directory inside of the target, which is on the same file system. When every byte is
verified, they are renamed into the target. Files of the same paths are replaced. Nothing else that the target held is
changed or removed, and no link in it is followed.
"""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from metaflow_artifacts._format.manifest import FileEntry
from metaflow_artifacts._format.paths import NAMES_ARE_UTF8, local_path
from metaflow_artifacts._transfer.staging import Stage, make_stage
from metaflow_artifacts.errors import InvalidInput, StorageError, TargetError

__all__ = [
    "NO_SPACE",
    "Target",
    "create",
    "is_path",
    "local_files",
    "make_tree",
    "open_target",
    "seek",
    "staged_target",
    "write_all",
    "write_file",
]


def is_path(text: object) -> bool:
    """Whether the system can take it as the path of a file."""
    if not isinstance(text, str) or not text or "\0" in text:
        return False
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def staged_target(path: str | os.PathLike[str]) -> Iterator[str]:
    """An empty directory whose content is moved into `path` when the block ends, and removed where it raises.

    `path` is made where it does not exist. Raises TargetError where it is a file, cannot be written, or holds a
    directory where the artifact has a file, a file where it has a directory, or a link where it has a directory.
    """
    with open_target(path) as target:
        yield target.stage.files


@dataclass
class Target:
    """A directory that is loaded into."""

    path: str
    stage: Stage
    """The private directory in it, whose files are moved into it."""


@contextmanager
def open_target(path: str | os.PathLike[str], load: str = "") -> Iterator[Target]:
    """As `staged_target`, for loads that also look at what is in the target; for `load` see `make_stage`."""
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidInput(f"path to load into: expected str or PathLike, found {type(path).__name__}")
    target = os.fspath(path)
    if not is_path(target):
        raise InvalidInput(f"path to load into: expected a path, found {target!r}")
    made = _make(target)
    try:
        with _wording(target):
            stage = make_stage(target, load)
        try:
            yield Target(target, stage)
            with _wording(target):
                for step in list(_moves(stage.files, target)):
                    _move(*step)
        except BaseException as error:
            # What an interrupt leaves is for the same load, done again. Errors leave the target as it was, which
            # includes what a killed load has left there.
            kept = stage.inherits if isinstance(error, StorageError) else not isinstance(error, Exception)
            if kept and stage.holds_content:
                stage.leave()
            else:
                stage.remove()
            raise
        stage.remove()
    except BaseException:
        for directory in reversed(made):
            try:
                os.rmdir(directory)
            except OSError:  # not empty: another process uses it
                break
        raise


@contextmanager
def _wording(target: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, TargetError):
            raise
        raise TargetError(f"cannot load into {target!r}: {error.strerror}; choose another path") from error


def _make(target: str) -> list[str]:
    missing = []
    try:
        probe = os.path.abspath(target)
    except OSError as error:
        raise TargetError(
            f"cannot load into {target!r}: it is relative to the working directory, which is gone ({error.strerror}); "
            "pass an absolute path"
        ) from error
    while not os.path.lexists(probe):
        missing.append(probe)
        probe = os.path.dirname(probe)
    made = []
    with _wording(target):
        for directory in reversed(missing):
            try:
                os.mkdir(directory)
                made.append(directory)
            except FileExistsError:
                pass
    if not os.path.isdir(target):
        raise TargetError(f"cannot load into {target!r}: it, or a part of it, is not a directory; choose another path")
    return made


def _moves(stage: str, target: str) -> Iterator[tuple[str, str]]:
    """The renames that move all of `stage` into `target`: whole directories where the target does not have them."""
    # No recursion: a path may have more directories than Python nests calls.
    pending = [(stage, target)]
    while pending:
        ours, theirs = pending.pop()
        with os.scandir(ours) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for name, is_directory in found:
            source, target_path = os.path.join(ours, name), os.path.join(theirs, name)
            try:
                there = os.lstat(target_path)
            except FileNotFoundError:
                yield source, target_path
                continue
            if is_directory and stat.S_ISDIR(there.st_mode):
                pending.append((source, target_path))
            elif is_directory:
                kind = "a link" if stat.S_ISLNK(there.st_mode) else "a file"
                raise _conflict(theirs, f"{target_path!r} is {kind} and the artifact has a directory there")
            elif stat.S_ISDIR(there.st_mode):
                raise _conflict(theirs, f"{target_path!r} is a directory and the artifact has a file there")
            else:
                yield source, target_path


def _conflict(target: str, found: str) -> TargetError:
    return TargetError(f"cannot load into {target!r}: {found}; remove it or choose another path")


def _move(source: str, target: str) -> None:
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # Another load has made this directory since.
        for step in list(_moves(source, target)):
            _move(*step)


def local_files(files: Sequence[FileEntry]) -> Sequence[FileEntry]:
    """The files of an artifact, under the names that this process has for them."""
    return files if NAMES_ARE_UTF8 else [replace(file, path=local_path(file.path)) for file in files]


def make_tree(stage: str, files: Iterable[str], dirs: Iterable[str]) -> None:
    """Make the directories that `files` lie in, and `dirs`, below `stage`.

    Raises TargetError where two of the names are the same for the file system (case, Unicode form), or it refuses one.
    """
    made = {""}
    names: dict[str, str] = {}

    def make(path: str) -> None:
        missing = []
        while path not in made:
            missing.append(path)
            path = path.rpartition("/")[0]
        for directory in reversed(missing):
            make_one(directory)

    def make_one(path: str) -> None:
        try:
            os.mkdir(os.path.join(stage, path))
        except FileExistsError:
            raise TargetError(
                f"{path!r} and another directory are the same for this file system: {_OTHER_FILE_SYSTEM}"
            ) from None
        except OSError as error:
            raise TargetError(f"cannot make the directory {path!r}: {error.strerror}; choose another path") from error
        made.add(path)

    for path in files:
        make(path.rpartition("/")[0])
        twin = names.setdefault(path.casefold() if path.isascii() else _folded(path), path)
        if twin != path and _one_name(stage, twin, path):
            raise TargetError(f"{path!r} and {twin!r} are the same file for this file system: {_OTHER_FILE_SYSTEM}")
    for path in dirs:
        make(path)


def _folded(path: str) -> str:
    """Equal for all paths that are the same for some file system."""
    return unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", path).casefold())


_OTHER_FILE_SYSTEM = "load onto a file system that distinguishes capital letters and Unicode forms"


def _one_name(stage: str, a: str, b: str) -> bool:
    location = os.path.join(stage, a)
    with open(location, "wb"):
        same = os.path.lexists(os.path.join(stage, b))
    os.unlink(location)
    return same


NO_SPACE = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
"""The numbers of the errors of a disk that is full."""


def create(location: str, mode: int, full: Callable[[], None] | None = None) -> Any:
    """Open a new file for writing, and for reading what is in it.

    Its mode is that of any new file, with the execute bits of `mode`.

    Where the disk is full, `full` is called, and it is tried once more. Raises TargetError.
    """

    def opener(path: str, flags: int) -> int:
        return os.open(path, flags & ~os.O_TRUNC, 0o666 | (mode & 0o111))

    try:
        return open(location, "w+b", buffering=0, opener=opener)
    except OSError as error:
        if full is not None and error.errno in NO_SPACE:
            full()
            return create(location, mode)
        raise TargetError(f"cannot write {location!r}: {error.strerror}; {_MAKE_ROOM}") from error


_NEW = os.O_WRONLY | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_MAKE_ROOM = "make room and access there, or choose another path"


def seek(file: Any, position: int) -> None:
    """Move to a position in bytes of an unbuffered file. Raises TargetError, which names the file."""
    try:
        file.seek(position)
    except OSError as error:
        raise TargetError(f"cannot write {file.name!r} at byte {position}: {error.strerror}; {_MAKE_ROOM}") from error


def write_all(file: Any, block: memoryview, full: Callable[[], None] | None = None) -> None:
    """Write all of a block to an unbuffered file. Raises TargetError, which names the file.

    Where the disk is full, `full` is called, and the rest is tried once more.
    """
    try:
        while block:
            block = block[file.write(block) :]
    except OSError as error:
        if full is not None and error.errno in NO_SPACE:
            full()
            write_all(file, block)
            return
        raise TargetError(f"cannot write {file.name!r}: {error.strerror}; {_MAKE_ROOM}") from error


def write_file(directory: str, file: FileEntry, content: memoryview, full: Callable[[], None] | None = None) -> None:
    """Write a new file of an artifact below `directory`. Raises TargetError, which names the file.

    Where the disk is full, `full` is called, and it is tried once more.
    """
    location = os.path.join(directory, file.path)
    rest = content
    try:
        # Each call of the system gives the interpreter's lock away. A file object would make three more.
        fd = os.open(location, _NEW, 0o666 | (file.mode & 0o111))
        try:
            while rest:
                rest = rest[os.write(fd, rest) :]
        finally:
            os.close(fd)
    except OSError as error:
        if full is not None and error.errno in NO_SPACE:
            full()
            write_file(directory, file, content)
            return
        raise TargetError(f"cannot write {location!r}: {error.strerror}; {_MAKE_ROOM}") from error
