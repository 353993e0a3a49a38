"""Rows of bytes that may be more than fit in memory: they are kept in a temporary file then.

The file has no name, so it is gone with its process, even if that is killed.
"""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from typing import IO

from metaflow_artifacts.errors import StorageError

__all__ = ["Spill"]

_IN_MEMORY = 8 << 20
"""Bytes that are kept in memory; with more, all go to the file."""


class Spill:
    """Bytes that are appended and read again, in any order and from any thread."""

    def __init__(self, in_memory: int = _IN_MEMORY) -> None:
        self.size = 0
        """Bytes that were appended."""
        self._in_memory = in_memory
        self._buffer = bytearray()
        self._file: IO[bytes] | None = None
        self._lock = threading.Lock()

    def append(self, data: bytes | bytearray) -> int:
        """Append bytes; returns the offset at which they can be read. Raises StorageError if there is no room."""
        with self._lock:
            offset = self.size
            self._buffer += data
            self.size += len(data)
            if len(self._buffer) > self._in_memory:
                self._write()
            return offset

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at an offset. All of them must have been appended. Raises StorageError."""
        with self._lock:
            if self._file is None:
                return bytes(self._buffer[offset : offset + length])
            if self._buffer:
                self._write()
            try:
                data = os.pread(self._file.fileno(), length, offset)
                while 0 < len(data) < length:
                    data += os.pread(self._file.fileno(), length - len(data), offset + len(data))
            except OSError as error:
                raise _failure(error, "read") from error
            return data

    def _write(self) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="metaflow_artifacts_", buffering=0)  # noqa: SIM115
                weakref.finalize(self, self._file.close)
            view = memoryview(self._buffer)
            offset = self.size - len(view)
            while view:
                written = os.pwrite(self._file.fileno(), view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise _failure(error, "write") from error
        self._buffer = bytearray()


def _failure(error: OSError, action: str) -> StorageError:
    # Without any directory for temporary files, the error names those that were tried.
    where = f" in {tempfile.tempdir}" if tempfile.tempdir else ""
    return StorageError(
        f"cannot {action} a temporary file{where}: {error.strerror}; make room there, or name another directory in "
        "TMPDIR"
    )
