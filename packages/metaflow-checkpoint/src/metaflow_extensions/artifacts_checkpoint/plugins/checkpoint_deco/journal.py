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
_PARENTS = "parents.jsonl"
_FAILURES = "failures.jsonl"
_NUMBERS = "next_number"
_FIELD = "journal"

_journals: dict[tuple[str | None, int], Journal] = {}


class Journal:
    """The journal in `directory`. If that is None or does not exist, nothing is written, and reads find nothing."""

    def __init__(self, directory: str | None) -> None:
        self._directory = directory
        self._position = 0
        self.trainings: set[str] = set()
        """The names of the trainings that callbacks have begun in this process."""

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

    def export(self, task: TaskIdentity, **more: str | None) -> None:
        """Set the environment variable by which subprocesses started from now on find `task`, this journal, and `more`.

        These are `policy`, which checkpoints the task may resume from, and `resumed`, the key of the one that it does.
        """
        task.export(**{_FIELD: self._directory, **more})

    @contextlib.contextmanager
    def timed(self, progress: Progress) -> Iterator[Callable[[Mapping[str, Any], bool], None]]:
        """Measure the time of a save, and yield a function that enters it: `enter(reference, latest)`.

        The bytes that the save stored are taken from `progress`.
        """
        start = time.monotonic()

        def enter(artifact: Mapping[str, Any], latest: bool) -> None:
            self._enter(artifact, latest, progress, time.monotonic() - start)

        yield enter

    def enter_stored(self, artifact: Mapping[str, Any], latest: bool, progress: Progress, seconds: float) -> None:
        """Enter a save that was made in the background, and took so long; the step did not wait for it."""
        self._enter(artifact, latest, progress, seconds, background=True)

    def _enter(
        self, artifact: Mapping[str, Any], latest: bool, progress: Progress, seconds: float, **more: Any
    ) -> None:
        entry = {**artifact, "seconds": seconds, "stored": progress.stored, "latest": bool(latest), **more}
        self._append_lines(_SAVES, [json.dumps(entry, separators=(",", ":"))])

    def note_failure(self, error: BaseException) -> None:
        """Enter the error of a save in the background that nobody has seen in this process."""
        self._append_lines(_FAILURES, [json.dumps(f"{type(error).__name__}: {error}")])

    def failures(self) -> list[str]:
        """The errors of saves that the task's processes have entered."""
        return [json.loads(line) for line in self._lines(_FAILURES, 0)[0]]

    def _append_lines(self, name: str, lines: list[str]) -> None:
        if self._directory is None or not lines:
            return
        # The directory may be on another machine, or may have been removed with the task.
        with contextlib.suppress(OSError):
            fd = os.open(os.path.join(self._directory, name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(fd, "".join(f"{line}\n" for line in lines).encode())
            finally:
                os.close(fd)

    def new_saves(self) -> list[dict[str, Any]]:
        """The saves since the last call: references, with `seconds`, `stored` (bytes) and `latest`."""
        lines, self._position = self._lines(_SAVES, self._position)
        return [json.loads(line) for line in lines]

    def _lines(self, name: str, position: int) -> tuple[list[bytes], int]:
        """The lines of a file from `position` on, and where they end."""
        if self._directory is None:
            return [], position
        try:
            with open(os.path.join(self._directory, name), "rb") as file:
                file.seek(position)
                content = file.read()
        except OSError:
            return [], position
        # A line without an end is still being written.
        complete = content[: content.rfind(b"\n") + 1]
        return complete.splitlines(), position + len(complete)

    def draw_number(self, at_least: int = 0) -> int | None:
        """The next number for a checkpoint of this attempt, from `at_least`; None if the journal cannot tell.

        Each number is given once on this machine, to whichever process or thread asks.
        """
        if self._directory is None:
            return None
        # The disk may be full, or have no locks: that must not cost the checkpoint.
        with contextlib.suppress(OSError, ValueError):
            fd = os.open(os.path.join(self._directory, _NUMBERS), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                # If a process that holds the lock is killed, the lock is released.
                fcntl.flock(fd, fcntl.LOCK_EX)
                try:
                    number = max(int(os.pread(fd, 20, 0) or b"0"), at_least)
                    os.pwrite(fd, b"%d" % (number + 1), 0)
                finally:
                    # A child that was forked meanwhile has the descriptor too, and would keep the lock.
                    fcntl.flock(fd, fcntl.LOCK_UN)
            finally:
                os.close(fd)
            return number
        return None

    def note_parents(self) -> None:
        """Enter the keys of what the task in this process has loaded."""
        if self._directory is None:
            return
        noted = set(self._noted_parents())
        lines = [json.dumps(key) for key in loaded_keys() if key not in noted]
        # Lines are appended, so that processes that note at the same moment lose nothing.
        self._append_lines(_PARENTS, lines)

    def parents(self) -> list[str]:
        """The keys of what the task has loaded, in this process and in the others that entered theirs."""
        return list(dict.fromkeys([*self._noted_parents(), *loaded_keys()]))

    def _noted_parents(self) -> list[str]:
        return [json.loads(line) for line in self._lines(_PARENTS, 0)[0]]
