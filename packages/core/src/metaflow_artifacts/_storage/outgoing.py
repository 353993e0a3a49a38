"""Content that is sent while it is read, and hashed again on the way out."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Generator

from metaflow_artifacts._storage.job import check, send_bytes

__all__ = ["Blocks", "ContentChanged", "Outgoing", "verified"]

Blocks = Callable[[], Generator[memoryview, None, None]]
"""Gives content from its begin, block by block, at each call; a block need not outlive the next one."""


class ContentChanged(Exception):
    """What was read to be sent is not what was hashed before: hash it again."""


def verified(size: int, sha256: bytes, blocks: Blocks) -> Generator[memoryview, None, None]:
    """The blocks, the last one only if all of them are `size` bytes with the digest `sha256`.

    Raises ContentChanged where they are not, Cancelled where the work is no longer wanted, and what `blocks` raises.
    """
    digest = hashlib.sha256()
    left = size
    with contextlib.closing(blocks()) as content:
        for block in content:
            check()
            digest.update(block)
            left -= len(block)
            if left <= 0:
                break
            yield block
        if left or digest.digest() != sha256:
            raise ContentChanged
        if size:
            yield block


class Outgoing:
    """Content as a file that an HTTP client reads from front to back, once for each attempt.

    The client never gets the last block of content that is not `size` bytes with the digest `sha256`, so the server
    never gets the whole object. Where reading fails, `failure` is what it raised; HTTP clients wrap it.
    """

    def __init__(self, size: int, sha256: bytes, blocks: Blocks) -> None:
        self._size = size
        self._content: Blocks = lambda: verified(size, sha256, blocks)
        self.failure: BaseException | None = None
        self._restart()

    def _restart(self) -> None:
        self._blocks = self._content()
        self._block = memoryview(b"")
        self._position = 0
        self._closed = False

    def __len__(self) -> int:
        return self._size

    def read(self, size: int = -1) -> memoryview | bytes:
        """The next bytes, as many as one call of send() is given, whatever `size` is; all if it is negative."""
        if size < 0:
            pieces = []
            while piece := self.read(1):
                pieces.append(bytes(piece))
            return b"".join(pieces)
        if not self._block:
            try:
                self._block = next(self._blocks, memoryview(b""))
            except BaseException as error:
                self.failure = error
                raise
        count = send_bytes()
        piece, self._block = self._block[:count], self._block[count:]
        self._position += len(piece)
        return piece

    def seek(self, position: int, whence: int = 0) -> int:
        """To the begin, or to where it is; HTTP clients also look for the end to learn the size."""
        target = position + (0, self._position, self._size)[whence]
        if target == 0 and (self._position or self._closed):
            self.close()
            self._restart()
        else:
            self._position = target
        return target

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        """Release what is being read. After `seek(0)` it can be read again."""
        self._closed = True
        self._blocks.close()
        self._block = memoryview(b"")
