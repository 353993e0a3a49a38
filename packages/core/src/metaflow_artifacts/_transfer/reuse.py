"""What earlier loads have left of an artifact, so that it is not fetched again.

That is files in the target with the same path and size, and files in the private directories of loads that were killed.
No record says what in them is right: each piece is hashed, and counts if it has the digest that the manifest gives. No
link is followed, and no file of the target is written to.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

from metaflow_artifacts._format.manifest import Chunk, FileEntry
from metaflow_artifacts._format.plan import Segment, segments
from metaflow_artifacts._storage.job import check
from metaflow_artifacts._transfer.chunks import READ_BYTES
from metaflow_artifacts._transfer.engine import Call
from metaflow_artifacts._transfer.holes import is_zero, leave_hole, only_zeros, zero_sha256
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.source import BLOCK_BYTES, wait_for_tick
from metaflow_artifacts._transfer.staging import STAGING_PREFIX, Stage, left_stages
from metaflow_artifacts._transfer.target import Target, create, seek, write_all
from metaflow_artifacts._transfer.threads import in_threads
from metaflow_artifacts.errors import TargetError

__all__ = ["Leftovers", "leftovers"]

_CAN_LOOK = {os.open, os.stat, os.rename} <= os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_THREADS = min(4, os.cpu_count() or 1)
_MOST_MISSES = 4
"""After how many wrong pieces in a row the rest of a file of the target is not hashed: it may be another version."""
_MOST_WRONG = 256
"""How many more pieces may be wrong than right before nothing more is hashed: all may be of another version."""


@contextmanager
def leftovers(
    target: Target,
    load: str,
    files: Sequence[FileEntry],
    chunks: Sequence[Chunk],
    wanted: set[int],
    progress: Progress,
) -> Iterator[Leftovers]:
    """What is there already of the files with the numbers in `wanted`, whose directories the stage has.

    Private directories of killed loads are removed from the target: those of this `load`, and old ones. Raises
    TargetError.
    """
    try:
        top = os.open(target.path, _DIRECTORY) if _CAN_LOOK else None
    except OSError:  # it cannot be read, only written to
        top = None
    found = Leftovers(target, files, chunks)
    if top is None:
        yield found
        return
    try:
        found.look(top, load, wanted, progress)
        yield found
    finally:
        os.close(top)


@dataclass(frozen=True)
class _Piece:
    """Bytes of one file that have a digest of their own: `length` from `start`."""

    file: int
    start: int
    length: int
    sha256: str


@dataclass(frozen=True)
class _Status:
    """What changes when a file is replaced or written to."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, info: os.stat_result) -> _Status:
        return cls(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


@dataclass(frozen=True)
class _Youngest:
    """The time of the last change to a file, as `wait_for_tick` takes it."""

    mtime_ns: int


class Leftovers:
    """The pieces of an artifact that are there already."""

    def __init__(self, target: Target, files: Sequence[FileEntry], chunks: Sequence[Chunk]) -> None:
        self.in_place: set[int] = set()
        """Files of the target that are as a load would make them; the load leaves them alone."""
        self._target = target
        self._stage = target.stage
        self._files = files
        self._chunks = chunks
        self._top = -1
        self._seen: dict[int, _Status] = {}
        """Files of the target with the right path and size."""
        self._equal: set[tuple[int, int]] = set()
        """File and start of the pieces that the target has."""
        self._misses: Counter[int] = Counter()
        """Pieces of a file of the target that were wrong since the last one that was right, about."""
        self._wrong = 0
        """All pieces of the target that were wrong, about."""
        self._taken: set[int] = set()
        """Files in the stage that a killed load has written to."""
        self._modes: dict[int, int] = {}

    def look(self, top: int, load: str, wanted: set[int], progress: Progress) -> None:
        """Find what is there. `top` is a descriptor of the target, and stays open while this object is used."""
        self._top = top
        candidates = self._candidates(wanted)
        # A write within the same tick as the last one would not show in the times.
        wait_for_tick(_Youngest(max(status.mtime_ns, status.ctime_ns)) for status in self._seen.values())
        in_threads(_THREADS, self._comparisons())
        self.in_place = candidates & self._complete()
        size = sum(self._files[number].size for number in self.in_place)
        progress.add(size, found=size)
        for stage in left_stages(self._target.path):
            try:
                same = stage.is_of(load)
                if same:
                    self._take_over(stage, wanted - self.in_place)
                if same or stage.is_outdated():
                    stage.clear()
            finally:
                stage.leave()

    def changed(self) -> set[int]:
        """The files in place that are not what they were when they were hashed."""
        return {number for number in self.in_place if self._status(number) != self._seen[number]}

    def fill(self, chunk: Chunk, parts: Sequence[Segment], wanted: set[int]) -> bool:
        """Whether all that is wanted of a chunk is in the stage, or was there to be copied into it.

        Raises TargetError.
        """
        if not self._equal and not self._taken:
            return False
        pieces = self._pieces(chunk, parts, wanted)
        if len(pieces) < sum(part.file in wanted for part in parts):
            return False
        return all(self._is_staged(piece) or self._copy(piece) for piece in pieces)

    def _pieces(self, chunk: Chunk, parts: Sequence[Segment], wanted: set[int]) -> list[_Piece]:
        """The pieces of wanted files in a chunk. What only the digest of several files can verify is none."""
        if len(parts) == 1:
            part = parts[0]
            return [_Piece(part.file, part.start, part.length, chunk.sha256)] if part.file in wanted else []
        return [
            _Piece(part.file, 0, part.length, digest)
            for part in parts
            if part.file in wanted and (digest := self._files[part.file].sha256) and self._is_whole(part)
        ]

    def _is_whole(self, part: Segment) -> bool:
        return part.length == self._files[part.file].size

    def _candidates(self, wanted: set[int]) -> set[int]:
        """Note the files of the target with the right size; those of them that may stay as they are."""
        names = {name for name in os.listdir(self._top) if not name.startswith(STAGING_PREFIX)}
        may_stay: set[int] = set()
        for number in sorted(wanted) if names else ():
            file = self._files[number]
            if not file.size or file.path.partition("/")[0] not in names:
                continue
            info = _look(self._top, file.path)
            if info is not None and stat.S_ISREG(info.st_mode) and info.st_size == file.size:
                self._seen[number] = _Status.of(info)
                # Others can write to a file with another name or owner; it is copied.
                own = info.st_nlink == 1 and info.st_uid == os.geteuid()
                if own and stat.S_IMODE(info.st_mode) == self._new_mode(file.mode):
                    may_stay.add(number)
        return may_stay

    def _comparisons(self) -> Iterator[Call]:
        for pieces in self._pieces_seen():
            yield READ_BYTES, lambda pieces=pieces: self._compare(pieces)  # type: ignore[misc]

    def _pieces_seen(self) -> Iterator[list[_Piece]]:
        """For each chunk, the pieces that are to be looked for in the target."""
        seen = set(self._seen)
        if seen:
            plan = segments([file.size for file in self._files], [chunk.size for chunk in self._chunks])
            for chunk, parts in zip(self._chunks, plan, strict=True):
                yield self._pieces(chunk, parts, seen)

    def _compare(self, pieces: list[_Piece]) -> None:
        for piece in pieces:
            if self._misses[piece.file] >= _MOST_MISSES or self._wrong > _MOST_WRONG + len(self._equal):
                continue
            with contextlib.suppress(OSError), _opened(self._top, self._files[piece.file].path) as file:
                if _digest(file, piece) == piece.sha256:
                    self._equal.add((piece.file, piece.start))
                    self._misses[piece.file] = 0
                    continue
            self._misses[piece.file] += 1
            self._wrong += 1

    def _complete(self) -> set[int]:
        """The files of which the target has every piece."""
        left = {number: self._files[number].size for number in self._seen}
        for piece in chain.from_iterable(self._pieces_seen()):
            if (piece.file, piece.start) in self._equal:
                left[piece.file] -= piece.length
        return {number for number, size in left.items() if not size}

    def _status(self, number: int) -> _Status | None:
        info = _look(self._top, self._files[number].path)
        return None if info is None else _Status.of(info)

    def _take_over(self, stage: Stage, wanted: set[int]) -> None:
        """Move the wanted files of a load that was killed to the stage of this one."""
        try:
            left = os.open(stage.files, _DIRECTORY)
        except OSError:
            return
        try:
            for number in wanted:
                if self._files[number].size:
                    with contextlib.suppress(OSError):
                        self._take(left, number)
        finally:
            os.close(left)

    def _take(self, left: int, number: int) -> None:
        file = self._files[number]
        location = os.path.join(self._stage.files, file.path)
        with _parent(left, file.path) as (directory, name):
            info = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1 or info.st_uid != os.geteuid():
                return
            if number in self._taken and os.stat(location).st_blocks >= info.st_blocks:
                return
            os.rename(name, location, src_dir_fd=directory)
        self._stage.holds_content = self._stage.inherits = True
        self._taken.add(number)
        os.chmod(location, self._new_mode(file.mode))
        if info.st_size > file.size:
            os.truncate(location, file.size)

    def _new_mode(self, mode: int) -> int:
        """The permission bits of a new file of the artifact: those that the system gives, with execute bits."""
        bits = mode & 0o111
        if bits not in self._modes:
            location = os.path.join(os.path.dirname(self._stage.files), "mode")
            with create(location, bits) as file:
                self._modes[bits] = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            os.unlink(location)
        return self._modes[bits]

    def _is_staged(self, piece: _Piece) -> bool:
        """Whether a killed load has written a piece, all of it."""
        if piece.file not in self._taken:
            return False
        try:
            file = os.open(os.path.join(self._stage.files, self._files[piece.file].path), _READ)
        except OSError:
            return False
        try:
            return _digest(file, piece) == piece.sha256
        except OSError:
            return False
        finally:
            os.close(file)

    def _copy(self, piece: _Piece) -> bool:
        """Copy a piece from the target, and hash it again: others may write to the target."""
        if (piece.file, piece.start) not in self._equal:
            return False
        entry = self._files[piece.file]
        location = os.path.join(self._stage.files, entry.path)
        digest = hashlib.sha256()
        try:
            with _opened(self._top, entry.path) as file, create(location, entry.mode) as out:
                seek(out, piece.start)
                for block in _blocks(file, piece):
                    digest.update(block)
                    if not (only_zeros(block) and leave_hole(out, len(block), entry.size)):
                        write_all(out, block)
        except TargetError:
            raise
        except OSError:
            return False
        return digest.hexdigest() == piece.sha256


@contextmanager
def _parent(top: int, path: str) -> Iterator[tuple[int, str]]:
    """A descriptor of the directory in `top` that holds `path`, and the last part of `path`.

    No link is followed. Raises OSError.
    """
    *parents, name = path.split("/")
    directory = top
    try:
        for parent in parents:
            inner = os.open(parent, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            if directory != top:
                os.close(directory)
            directory = inner
        yield directory, name
    finally:
        if directory != top:
            os.close(directory)


def _look(top: int, path: str) -> os.stat_result | None:
    try:
        with _parent(top, path) as (directory, name):
            return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return None


@contextmanager
def _opened(top: int, path: str) -> Iterator[int]:
    with _parent(top, path) as (directory, name):
        file = os.open(name, _READ, dir_fd=directory)
    try:
        yield file
    finally:
        os.close(file)


def _blocks(file: int, piece: _Piece) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(piece.length, BLOCK_BYTES)))
    at, end = piece.start, piece.start + piece.length
    while at < end:
        check()
        count = os.preadv(file, [buffer[: end - at]], at)
        if not count:
            return
        yield buffer[:count]
        at += count


def _digest(file: int, piece: _Piece) -> str:
    if is_zero(file, piece.start, piece.length):
        # A killed load leaves many, where it had not written yet.
        return zero_sha256(piece.length)
    digest = hashlib.sha256()
    for block in _blocks(file, piece):
        digest.update(block)
    return digest.hexdigest()
