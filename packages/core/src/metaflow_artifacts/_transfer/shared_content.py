"""Contents in memory, copied into a file in memory that another process can read too."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO

from metaflow_artifacts._transfer.free_memory import free_memory
from metaflow_artifacts._transfer.scan import Source

__all__ = ["NoRoom", "shared_content"]

_MARGIN = 1.25
"""The copy is made where at least this many times its size is free."""
_BLOCK_BYTES = 64 << 20


class NoRoom(Exception):
    """There is no room in memory, or a copy cannot be made."""


@contextmanager
def shared_content(source: Source, beside: int = 0) -> Iterator[None]:
    """In the block, the contents in memory are those of a file in memory. What is in none yet is copied into one.

    The entries of `source` are replaced: they hold the copy, and what they held before no longer. Raises NoRoom where
    there is no room in memory for it and for `beside` bytes more; then nothing was changed.
    """
    numbers = [number for number, file in enumerate(source.files) if file.content and file.shared is None]
    size = sum(source.files[number].size for number in numbers)
    free = free_memory()
    if free is not None and free < size * _MARGIN + beside:
        raise NoRoom(f"{size} bytes and {beside} more do not fit into {free} bytes of free memory")
    if not numbers:
        yield
        return
    with _file_in_memory() as file:
        view, places = _copied(file, source, numbers)
        for number, at in zip(numbers, places, strict=True):
            found = source.files[number]
            source.files[number] = found._replace(content=view[at : at + found.size], shared=(file, at))
        try:
            yield
        finally:
            for number in numbers:
                source.files[number] = source.files[number]._replace(shared=None)


def _copied(file: FileIO, source: Source, numbers: list[int]) -> tuple[memoryview, list[int]]:
    """Copy some files' contents into `file`: all of it as it is mapped into memory, and the offsets."""
    places = []
    at = 0
    try:
        for number in numbers:
            content = source.files[number].content
            assert content is not None
            places.append(at)
            at += _write(file, memoryview(content))
        return memoryview(mmap.mmap(file.fileno(), at, prot=mmap.PROT_READ)), places
    except OSError as error:
        raise NoRoom(f"contents cannot be copied in memory: {error}") from error


def _file_in_memory() -> FileIO:
    try:
        if hasattr(os, "memfd_create"):
            return FileIO(os.memfd_create("metaflow-artifacts", os.MFD_CLOEXEC), "r+")
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
    except OSError as error:
        raise NoRoom(f"contents cannot be copied in memory: {error}") from error
    assert isinstance(file, FileIO)
    return file


def _write(file: FileIO, content: memoryview) -> int:
    done = 0
    while done < len(content):
        done += file.write(content[done : done + _BLOCK_BYTES])
    return done
