"""Reads the headers of a tar, as untrusted input: which files it has, and where their content lies. No content is read.

Archives in the forms that Python's tarfile writes are understood: ustar, with extended headers of POSIX or long names
of GNU, without compression. A member that a load could not write safely is never skipped in silence: names that lead
out, duplicates and damage are errors for the whole archive; links out and devices are errors for what contains them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from metaflow_artifacts._format.paths import path_bytes, path_problem, tree_problem

__all__ = ["BLOCK", "BadTar", "TarFile", "TarTree", "is_tar", "read_tar"]

BLOCK = 512
"""Bytes of a header; content is padded to a multiple of it."""

_MAX_HEADER = 1 << 20
"""Bytes of an extended header or long name: more is damage, or meant to fill the memory."""
_MAX_MEMBERS = 1_000_000
_MAX_GROWTH = 16
"""How many times the size of the archive its files may have: links to a file in it are files of the same content."""
_MAX_LINKS = 40
"""How many links a link may lead through."""
_MAX_TARGET = 4096
"""Characters of a link's target. Systems follow none that is longer."""
_MAX_PARTS = 2 * _MAX_TARGET
"""Parts of paths that are still to be followed, where links lead through links."""
_RECORD = 20 * BLOCK
"""Python's tarfile fills an archive with zeros to a multiple of this, after an end mark of two blocks."""

Kind = Literal["file", "dir", "symlink", "hardlink", "other"]
_KINDS: dict[bytes, Kind] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "hardlink",
    b"2": "symlink",
    b"5": "dir",
}
_KNOWN = (b"path", b"linkpath", b"size")
"""What an extended header says that counts here; the rest (times, owners, attributes) is not kept."""
_SPARSE = b"GNU.sparse."
_OTHERS = {b"3": "a device", b"4": "a device", b"6": "a pipe", b"S": "a sparse file"}


class BadTar(Exception):
    """What is wrong with an archive, without its key."""


@dataclass(frozen=True, slots=True)
class TarFile:
    """A file of an archive: the `size` bytes from `start` of the object."""

    path: str
    size: int
    mode: int
    start: int


@dataclass(frozen=True)
class TarTree:
    """What an archive holds."""

    files: list[TarFile]
    """In the order of their paths' bytes. Links to files in the archive are files."""
    dirs: list[str]
    """Empty directories."""
    refused: dict[str, str]
    """Members that cannot be loaded, by their path, each with the reason."""
    damage: str | None
    """Why there may have been more members; None if there were no more."""


@dataclass(frozen=True, slots=True)
class _Member:
    path: str
    kind: Kind
    size: int
    mode: int
    start: int
    target: str
    """Of a link, as it is stored; of another member that cannot be loaded, what it is."""


def is_tar(block: bytes) -> bool:
    """Whether an object that begins with these bytes is a tar. A manifest, even a damaged one, is none."""
    return block[257:262] == b"ustar"


def read_tar(read: Callable[[int, int], bytes], size: int) -> TarTree:
    """The files of an archive of `size` bytes. `read(start, length)` gives bytes of it, at most 1 MiB at a time.

    Raises BadTar for an archive that is damaged, or not to be loaded in any part; and what `read` raises.
    """
    files: dict[str, TarFile] = {}
    dirs: set[str] = set()
    links: list[_Member] = []
    refused: dict[str, str] = {}
    seen: set[str] = set()
    ends: list[int] = []
    length = 0
    for count, member in enumerate(_members(read, size, ends)):
        if count >= _MAX_MEMBERS:
            raise BadTar(f"it has more than {_MAX_MEMBERS} members")
        path = member.path
        if member.kind == "dir" and path in ("", "."):
            continue
        _demand_path(path)
        length += _length(path)
        if length > _MAX_GROWTH * size:
            raise BadTar(f"its directories have names of {length} characters, more than {_MAX_GROWTH} times its size")
        if member.kind == "dir":
            dirs.add(path)
            continue
        if path in seen:
            raise BadTar(f"it has {path!r} twice")
        seen.add(path)
        if member.kind == "file":
            files[path] = TarFile(path, member.size, member.mode, member.start)
        elif member.kind == "other":
            refused[path] = f"it is {member.target}"
        else:
            links.append(member)
    _resolve(files, dirs, links, refused, size)
    return _tree(files, dirs, refused, size, _damage(read, ends[0], size))


def _damage(read: Callable[[int, int], bytes], end: int, size: int) -> str | None:
    """What is wrong with an archive of `size` bytes whose end mark is at `end`.

    A header that was lost to zeros looks like the end mark, and would leave out all that follows.
    """
    if size - end < 2 * BLOCK + _RECORD and not read(end, size - end).strip(b"\0"):
        return None
    return f"its end mark is at byte {end} of {size}, and should be the last: what follows cannot be read"


def _tree(files: dict[str, TarFile], dirs: set[str], refused: dict[str, str], size: int, damage: str | None) -> TarTree:
    total = sum(file.size for file in files.values())
    if total > _MAX_GROWTH * size:
        raise BadTar(f"its links make {total} bytes of {size}, more than {_MAX_GROWTH} times as much")
    full = {above for path in (*files, *dirs, *refused) for above in _above(path)}
    ordered = sorted(files.values(), key=lambda file: path_bytes(file.path))
    empty = sorted((path for path in dirs - full), key=path_bytes)
    problem = tree_problem([file.path for file in ordered], empty)
    if problem is not None:
        raise BadTar(f"its members are no tree ({problem})")
    return TarTree(ordered, empty, refused, damage)


def _length(path: str) -> int:
    """About the characters of a path and of all directories above it."""
    return len(path) * (2 + path.count("/")) // 2


def _above(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


def _demand_path(path: str) -> None:
    problem = path_problem(path)
    if problem is not None:
        raise BadTar(f"it has a member with a name that no artifact may have: {problem}")


def _resolve(
    files: dict[str, TarFile], dirs: set[str], links: list[_Member], refused: dict[str, str], size: int
) -> None:
    """Replace links by what they lead to. Those to directories come last: the files in these are known then."""
    every = set(dirs)
    for path in (*files, *(link.path for link in links)):
        every.update(_above(path))
    targets = {link.path: link for link in links}
    to_directories: list[tuple[str, str]] = []
    ends: dict[str, TarFile] = {}
    for link in links:
        end = _end(link, targets, every)
        if end in files:
            ends[link.path] = replace(files[end], path=link.path)
        elif end is not None and (end == "." or end in every) and link.kind == "symlink":
            to_directories.append((link.path, end))
        else:
            refused[link.path] = f"it is a link to {link.target!r}, which is not in the archive"
    files.update(ends)
    _expand(files, dirs, to_directories, refused, size)


def _end(link: _Member, links: Mapping[str, _Member], directories: set[str]) -> str | None:
    """The path in the archive that a link leads to, as a file system finds it; None if it leads out or nowhere.

    `..` after a link to a directory leads to what is above that directory, not to what is above the link.
    """
    at, left = _step(link)
    for _ in range(_MAX_LINKS):
        while left:
            if at and at not in directories:
                return None
            part = left.pop()
            if part == "..":
                if not at:
                    return None
                at = at.rpartition("/")[0]
            elif part not in ("", "."):
                at = f"{at}/{part}" if at else part
                if at in links:
                    break
        else:
            return at or "."
        at, following = _step(links[at])
        left += following
        if len(left) > _MAX_PARTS:
            return None
    return None


def _step(link: _Member) -> tuple[str, list[str]]:
    """Where a link starts, and the parts of its target, the last one first. Those of one that leads out are `..`."""
    if len(link.target) > _MAX_TARGET or link.target.startswith("/"):
        return "", [".."]
    # A hard link names a member.
    start = link.path.rpartition("/")[0] if link.kind == "symlink" else ""
    return start, link.target.split("/")[::-1]


def _expand(
    files: dict[str, TarFile],
    dirs: set[str],
    to_directories: list[tuple[str, str]],
    refused: dict[str, str],
    size: int,
) -> None:
    """Give each link to a directory the files of that directory."""
    without = sorted([*(path for path, _ in to_directories), *refused])
    original, directories = sorted(files), sorted(dirs)
    length = 0
    for path, directory in to_directories:
        below = directory + "/"
        if directory == "." or path.startswith(below) or any(_beginning(without, below)):
            refused[path] = f"it is a link to {directory!r}, a directory with such a link in it"
            continue
        dirs.add(path)
        for paths in (original, directories):
            for other in _beginning(paths, below):
                copied = f"{path}/{other[len(below) :]}"
                length += _length(copied)
                if max(len(files), len(dirs)) >= _MAX_MEMBERS:
                    raise BadTar(f"its links make more than {_MAX_MEMBERS} members")
                if length > _MAX_GROWTH * size:
                    raise BadTar(f"its links make names of {length} characters, more than {_MAX_GROWTH} times its size")
                _demand_path(copied)
                if paths is directories:
                    dirs.add(copied)
                    continue
                if copied in files:
                    raise BadTar(f"it has {copied!r} twice")
                files[copied] = replace(files[other], path=copied)


def _beginning(paths: list[str], below: str) -> Iterator[str]:
    """Those of sorted paths that begin with `below`."""
    at = bisect_left(paths, below)
    while at < len(paths) and paths[at].startswith(below):
        yield paths[at]
        at += 1


def _members(read: Callable[[int, int], bytes], size: int, ends: list[int]) -> Iterator[_Member]:
    """The members of an archive. The position of the end mark is appended to `ends`."""
    position = 0
    more: dict[str, str] = {}
    while True:
        block = read(position, BLOCK)
        if len(block) < BLOCK:
            raise BadTar(f"it ends after {size} bytes, without its end mark: it is truncated")
        if not block.strip(b"\0"):
            ends.append(position)
            return
        _demand_checksum(block, position)
        kind, length = block[156:157], _number(block[124:136], position)
        if kind in b"xgLK":
            if length > _MAX_HEADER:
                raise BadTar(f"the header at byte {position} has {length} bytes, at most {_MAX_HEADER} are read")
            data = read(position + BLOCK, length)
            if len(data) < length:
                raise BadTar(f"it ends within the header at byte {position}: it is truncated")
            more |= _extension(kind, data, position)
            position += BLOCK + _padded(length)
            continue
        member = _member(block, more, length, position + BLOCK)
        content = member.size if member.kind in ("file", "other") else 0
        if position + BLOCK + content > size:
            raise BadTar(f"{member.path!r} has {content} bytes, of which not all are there: it is truncated")
        yield member
        position += BLOCK + _padded(content)
        more = {}


def _member(block: bytes, more: dict[str, str], length: int, start: int) -> _Member:
    if any(name.startswith(_SPARSE.decode()) for name in more):
        block = block[:156] + b"S" + block[157:]
    path = more.get("path")
    if path is None:
        path = _text(block[:100])
        if is_tar(block) and block[263:265] == b"00" and block[345]:
            path = f"{_text(block[345:500])}/{path}"
    if "size" in more:
        if not more["size"].isdecimal() or len(more["size"]) > 18:
            raise BadTar(f"{path!r} has no number of bytes: {more['size'][:20]!r}")
        length = int(more["size"])
    kind = _KINDS.get(block[156:157], "other")
    target = more.get("linkpath", _text(block[157:257]))
    if kind == "file" and path.endswith("/"):
        # How archives of the oldest form have directories.
        kind = "dir"
    if kind == "dir":
        # The directory that was saved has no name.
        path = "" if path == "/" else path.removesuffix("/")
    if kind == "other":
        target = _OTHERS.get(block[156:157], f"of the unknown type {block[156:157]!r}")
    if kind in ("hardlink", "symlink", "dir") and length:
        raise BadTar(f"{path!r} is no file, and has {length} bytes")
    return _Member(path, kind, length, _number(block[100:108], start) & 0o7777, start, target)


def _extension(kind: bytes, data: bytes, position: int) -> dict[str, str]:
    """What an extended header says about the next member."""
    if kind == b"L":
        return {"path": _text(data)}
    if kind == b"K":
        return {"linkpath": _text(data)}
    found: dict[str, str] = {}
    at = 0
    while at < len(data):
        digits, space, _ = data[at : at + 20].partition(b" ")
        if not space or not digits.isdigit():
            raise BadTar(f"the header at byte {position} is damaged")
        end = at + int(digits)
        name, equals, value = data[at + len(digits) + 1 : end - 1].partition(b"=")
        if end > len(data) or end <= at or not equals or data[end - 1 : end] != b"\n":
            raise BadTar(f"the header at byte {position} is damaged")
        if name in _KNOWN or name.startswith(_SPARSE):
            found[_text(name)] = value.decode("utf-8", "surrogateescape")
        at = end
    if kind == b"g":
        if found:
            raise BadTar(f"the header at byte {position} gives all members one name, size or form")
        return {}
    return found


def _demand_checksum(block: bytes, position: int) -> None:
    total = sum(block[:148]) + 8 * ord(" ") + sum(block[156:])
    if block[148:156].strip(b" \0").lstrip(b"0") != b"%o" % total:
        raise BadTar(f"there is no header at byte {position}: it is damaged, or not an archive")


def _number(field: bytes, position: int) -> int:
    if field[0] == 0o200:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        if digits:
            raise BadTar(f"the header at byte {position} is damaged")
        return 0
    return int(digits, 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK
