"""What a process and its worker say to each other; see `worker` and `worker_process`."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

from metaflow_artifacts._transfer.cache import Cache
from metaflow_artifacts._transfer.scan import SourceFile
from metaflow_artifacts.errors import StorageError

__all__ = ["Alive", "Answer", "Counted", "Failed", "Job", "Place", "Question", "Stored", "Warned", "failure"]

Place = tuple[int, int]
"""Where content is that lies in a file with others: which of the files that were sent, and its offset."""


@dataclass(frozen=True, repr=False)
class Job:
    """To the worker: store these files."""

    number: int
    """What it answers with."""
    storage: bytes
    """The pickle of a `Portable`."""
    files: list[SourceFile]
    """A descriptor is its number among the files that were sent."""
    places: dict[int, Place]
    """By number, files whose content is in memory."""
    chunk_size: int
    refresh_after: float
    cache: Cache | None
    umask: int | None
    """Of the process that saves; None where it is not known."""


@dataclass(frozen=True)
class Alive:
    """From the worker: it is ready, or stores still."""


@dataclass(frozen=True)
class Question:
    """From the worker, about keys; see `handover`."""

    number: int
    storage: int
    """The number of the `Portable`."""
    about: Any


@dataclass(frozen=True, repr=False)
class Answer:
    """To the worker."""

    number: int
    value: Any
    error: BaseException | None = None


@dataclass(frozen=True)
class Counted:
    """From the worker: the bytes so far."""

    job: int
    total: int
    done: int
    stored: int


@dataclass(frozen=True)
class Warned:
    """From the worker: the text of an ArtifactWarning."""

    text: str


@dataclass(frozen=True)
class Stored:
    """From the worker: all is stored."""

    job: int
    chunks: list[tuple[str, int]]
    digests: dict[int, str]
    changed: dict[int, SourceFile]
    """By number, files whose entries changed."""
    counted: Counted


@dataclass(frozen=True)
class Failed:
    """From the worker: the files cannot be stored."""

    job: int
    error: BaseException


def failure(error: BaseException) -> BaseException:
    """An error as it can be sent: itself, or a StorageError that says what it was. Its cause is not sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return StorageError(f"{type(error).__name__} in the process that stores: {error}")
    return error
