"""Holes of sparse files, which are read as zeros when a file is saved, and left when one is loaded."""

from __future__ import annotations

import functools
import hashlib
import os
from typing import Any

from metaflow_artifacts.errors import TargetError

__all__ = ["is_zero", "leave_hole", "only_zeros", "zero_sha256"]

_LEAST_BYTES = 64 << 10
"""Fewer zeros than this are written: most file systems keep holes of whole blocks only."""
_ZEROS = bytes(1 << 20)
_FIRST_BYTES = 4096
"""What is read first, since nearly all content is not zero there."""


@functools.lru_cache(maxsize=64)
def zero_sha256(size: int) -> str:
    """The digest (hex) of `size` zeros."""
    digest = hashlib.sha256()
    for begin in range(0, size, len(_ZEROS)):
        digest.update(_ZEROS[: size - begin])
    return digest.hexdigest()


def is_zero(fd: int, start: int, length: int) -> bool:
    """Whether a part of a file reads as zeros, as holes do.

    It is read, which costs little in a hole. `SEEK_DATA` is not asked: OpenZFS 2.1.4 to 2.2.1 told of holes where there
    was content (its issue 15526). False where the file ends before. Raises OSError.
    """
    buffer = bytearray(min(length, len(_ZEROS)))
    at, end, step = start, start + length, _FIRST_BYTES
    while at < end:
        count = os.preadv(fd, [memoryview(buffer)[: min(step, end - at)]], at)
        if not count or (buffer != _ZEROS if count == len(_ZEROS) else buffer[:count] != _ZEROS[:count]):
            return False
        at += count
        step = len(buffer)
    return True


def only_zeros(block: memoryview) -> bool:
    """Whether a block has nothing but zeros, and is so long that a hole is worth it."""
    size = len(block)
    if size < _LEAST_BYTES or block[0] or block[size // 2] or block[-1]:
        return False
    return all(block[at : at + len(_ZEROS)].tobytes() == _ZEROS[: size - at] for at in range(0, size, len(_ZEROS)))


def leave_hole(file: Any, length: int, size: int) -> bool:
    """Move on in an unbuffered file by `length` zeros that are not written. False, and nothing is done, where the file
    has something there, or may have.

    `size` is what the file has in the end: where it ends before, it is made as long as that, so that nobody who writes
    elsewhere in it meanwhile loses something. Raises TargetError.
    """
    try:
        fd, start = file.fileno(), file.tell()
        now = os.fstat(fd).st_size
        there = min(now, start + length) - start
        if there > 0 and not is_zero(fd, start, there):
            file.seek(start)
            return False
        if now < start + length:
            os.ftruncate(fd, size)
        file.seek(start + length)
    except OSError as error:
        raise TargetError(f"cannot write {file.name!r}: {error.strerror}; choose another path") from error
    return True
