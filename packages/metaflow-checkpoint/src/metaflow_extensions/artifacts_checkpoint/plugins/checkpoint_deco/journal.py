"""What one attempt of a task has saved so far, as its processes on this machine write it down for each other.

The card shows saves of subprocesses too, what these save has everything that the task had loaded for parents, and
numbers are drawn here. The store is not asked for any of it. Where the journal cannot be reached, it is.
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

_known: dict[tuple[str | None, int], Journal] = {}


class Journal:
    """The journal in `directory`; without one, nothing is written and nothing is known."""

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
        if key not in _known:
            _known[key] = cls(directory)
        return _known[key]

    @property
    def is_there(self) -> bool:
        """Whether the journal is on this machine, and so has every save of the attempt from here."""
        return self._directory is not None and os.path.isdir(self._directory)

    def another(self) -> Journal:
        """The same journal, read from its begin."""
        return Journal(self._directory)

    def export(self, task: TaskIdentity) -> None:
        """Set the environment variable by which subprocesses started from now on find `task` and this journal."""
        os.environ[ENVIRONMENT_VARIABLE] = json.dumps({**json.loads(task.encode()), _FIELD: self._directory})

    @contextlib.contextmanager
    def timed(self, transfer: Progress) -> Iterator[Callable[[Mapping[str, Any], bool], None]]:
        """Time a save. What is yielded takes the reference that came of it, and whether it may be latest."""
        start = time.monotonic()

        def note(artifact: Mapping[str, Any], latest: bool) -> None:
            seconds = time.monotonic() - start
            self._append({**artifact, "seconds": seconds, "stored": transfer.stored, "latest": bool(latest)})

        yield note

    def _append(self, entry: Mapping[str, Any]) -> None:
        if self._directory is None:
            return
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        # The directory may be on another machine, or gone with the task.
        with contextlib.suppress(OSError):
            fd = os.open(os.path.join(self._directory, _SAVES), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(fd, line)
            finally:
                os.close(fd)

    def new_saves(self) -> list[dict[str, Any]]:
        """What was saved since the last call: references, with `seconds`, `stored` (bytes) and `latest`."""
        if self._directory is None:
            return []
        try:
            with open(os.path.join(self._directory, _SAVES), "rb") as file:
                file.seek(self._position)
                content = file.read()
        except OSError:
            return []
        # A line whose end is missing is still being written.
        whole = content[: content.rfind(b"\n") + 1]
        self._position += len(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def draw_number(self, at_least: int = 0) -> int | None:
        """The next number for a checkpoint of this attempt: each is given once on this machine, to whichever process
        asks. None where the journal is not here."""
        if self._directory is None:
            return None
        try:
            fd = os.open(os.path.join(self._directory, _NUMBERS), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return None
        try:
            # The lock ends with the process that holds it.
            fcntl.flock(fd, fcntl.LOCK_EX)
            number = max(int(os.pread(fd, 20, 0) or b"0"), at_least)
            os.pwrite(fd, b"%d" % (number + 1), 0)
        finally:
            os.close(fd)
        return number

    def note_parents(self) -> None:
        """Write down what the task in this process has loaded."""
        if self._directory is None:
            return
        keys = self.parents()
        with contextlib.suppress(OSError):
            temporary = os.path.join(self._directory, f"{_PARENTS}.{os.getpid()}")
            with open(temporary, "w") as file:
                json.dump(keys, file)
            os.replace(temporary, os.path.join(self._directory, _PARENTS))

    def parents(self) -> list[str]:
        """The keys of what the task has loaded: in this process, and as far as its other processes noted it."""
        noted: list[str] = []
        if self._directory is not None:
            with contextlib.suppress(OSError, ValueError), open(os.path.join(self._directory, _PARENTS)) as file:
                noted = json.load(file)
        return list(dict.fromkeys([*noted, *loaded_keys()]))
