"""What a source of streamed files offers, so that `ingestion.py` can store them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from metaflow_artifacts.errors import ArtifactError

__all__ = ["Stream", "StreamSource", "StreamedFile"]

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class StreamedFile:
    """A file that a source lists: its path in the artifact, and its size in bytes."""

    path: str
    size: int
    id: str
    """What the source names the content by. If it is 64 hex digits, it is the SHA-256 of the content."""

    @property
    def sha256(self) -> str | None:
        """SHA-256 of the content; None if the source does not tell it."""
        return self.id if _SHA256.fullmatch(self.id) else None


class Stream(Protocol):
    """The content of a file in blocks, from its first byte to its last."""

    verified: bool
    """Whether all of it has come, and is the content that the file's `id` names."""

    def __iter__(self) -> Iterator[bytes]:
        """The blocks. Raises an ArtifactError if the content cannot be had, or is not what the source lists."""


_F = TypeVar("_F", bound=StreamedFile, contravariant=True)


class StreamSource(Protocol[_F]):
    """Where streamed files come from. Any thread may call these."""

    parallel: int
    """Files to stream at the same time."""

    def open(self, file: _F) -> Stream:
        """The content of a file."""

    def reopen(self, file: _F, error: ArtifactError) -> Stream:
        """The content once more, from its first byte, after a stream ended with `error`.

        Raises `error` if another attempt would end like the first one.
        """

    def cancel(self) -> None:
        """End the waits of all streams: the files are no longer needed."""
