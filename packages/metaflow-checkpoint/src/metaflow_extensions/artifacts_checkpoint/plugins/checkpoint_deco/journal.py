"""The journal of one attempt of a task: files that the task's processes on one machine share.

From the journal, the card knows the saves of subprocesses, a subprocess knows the parents of what it saves, and all
processes draw the numbers of their checkpoints. None of this needs a request to the store. A process that cannot reach
the journal asks the store for numbers instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from metaflow_artifacts.plugin import ENVIRONMENT_VARIABLE, Progress, TaskIdentity, UsageError, loaded_keys

__all__ = ["Journal"]

_SAVES = "saves.jsonl"
_PARENTS = "parents.json"
_NUMBERS = "next_number"
_FIELD = "journal"

_journals: dict[tuple[str | None, int], Journal] = {}


class Journal:
    """The journal in `directory`. If that is None or does not exist, nothing is written, and reads find nothing."""

    def __init__(self, directory: str | None) -> None:
        self._directory = directory
        self._position = 0

    @classmethod
    def of_task(cls) -> Journal:
        """The journal of the task that this process belongs to."""
        try:
            task = TaskIdentity.from_environment()
        except UsageError:
            task = None
        if task is None:
            return cls(None)
        directory = json.loads(os.environ[ENVIRONMENT_VARIABLE]).get(_FIELD)
        key = directory, os.getpid()
        if key not in _journals:
            _journals[key] = cls(directory)
        return _journals[key]

    @property
    def is_there(self) -> bool:
        """Whether the journal is on this machine, and so contains every save of the attempt on this machine."""
        return self._directory is not None and os.path.isdir(self._directory)

    def another(self) -> Journal:
        """The same journal, for a reader that starts at its begin."""
        return Journal(self._directory)

    def export(self, task: TaskIdentity) -> None:
        """Set the environment variable by which subprocesses started from now on find `task` and this journal."""
        os.environ[ENVIRONMENT_VARIABLE] = json.dumps({**json.loads(task.encode()), _FIELD: self._directory})

    @contextlib.contextmanager
    def timed(self, progress: Progress) -> Iterator[Callable[[Mapping[str, Any], bool], None]]:
        """Measure the time of a save, and yield a function that enters it: `enter(reference, latest)`.

        The bytes that the save stored are taken from `progress`.
        """
        start = time.monotonic()

        def enter(artifact: Mapping[str, Any], latest: bool) -> None:
            seconds = time.monotonic() - start
            self._append({**artifact, "seconds": seconds, "stored": progress.stored, "latest": bool(latest)})

        yield enter

    def _append(self, entry: Mapping[str, Any]) -> None:
        if self._directory is None:
            return
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        # The directory may be on another machine, or may have been removed with the task.
        with contextlib.suppress(OSError):
            fd = os.open(os.path.join(self._directory, _SAVES), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(fd, line)
            finally:
                os.close(fd)

    def new_saves(self) -> list[dict[str, Any]]:
        """The saves since the last call: references, with `seconds`, `stored` (bytes) and `latest`."""
        if self._directory is None:
            return []
        try:
            with open(os.path.join(self._directory, _SAVES), "rb") as file:
                file.seek(self._position)
                content = file.read()
        except OSError:
            return []
        # A line without an end is still being written.
        complete = content[: content.rfind(b"\n") + 1]
        self._position += len(complete)
        return [json.loads(line) for line in complete.splitlines()]

    def draw_number(self, at_least: int = 0) -> int | None:
        """The next number for a checkpoint of this attempt, from `at_least`; None without a journal.

        Each number is given once on this machine, to whichever process or thread asks.
        """
        if self._directory is None:
            return None
        try:
            fd = os.open(os.path.join(self._directory, _NUMBERS), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return None
        try:
            # If a process that holds the lock is killed, the lock is released.
            fcntl.flock(fd, fcntl.LOCK_EX)
            number = max(int(os.pread(fd, 20, 0) or b"0"), at_least)
            os.pwrite(fd, b"%d" % (number + 1), 0)
        finally:
            os.close(fd)
        return number

    def note_parents(self) -> None:
        """Enter the keys of what the task in this process has loaded."""
        if self._directory is None:
            return
        keys = self.parents()
        with contextlib.suppress(OSError):
            temporary = os.path.join(self._directory, f"{_PARENTS}.{os.getpid()}")
            with open(temporary, "w") as file:
                json.dump(keys, file)
            os.replace(temporary, os.path.join(self._directory, _PARENTS))

    def parents(self) -> list[str]:
        """The keys of what the task has loaded, in this process and in the others that entered theirs."""
        noted: list[str] = []
        if self._directory is not None:
            with contextlib.suppress(OSError, ValueError), open(os.path.join(self._directory, _PARENTS)) as file:
                noted = json.load(file)
        return list(dict.fromkeys([*noted, *loaded_keys()]))
