"""The checkpoints of one training, as the callbacks of `metaflow_artifacts_checkpoint` save and resume them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from metaflow_artifacts.plugin import (
    ENVIRONMENT_VARIABLE,
    ArtifactError,
    ArtifactNotFound,
    CheckpointKey,
    CorruptArtifact,
    InvalidInput,
    Log,
    PendingSave,
    SaveReplaced,
    TaskIdentity,
    UsageError,
    in_flow,
    parse_key,
)

from .checkpoint import PREFIX, Checkpoint
from .policy import candidates

__all__ = ["TrainingCheckpoints"]


class TrainingCheckpoints:
    """Saves the states of one training under one name, and finds the state that it resumes from.

    In a task it uses `current.checkpoint`. In a subprocess of a task, all processes resume from the same checkpoint as
    the task.
    """

    def __init__(self, name: str, callback: str) -> None:
        """`name` is that of the checkpoints, `callback` is named in messages."""
        self.name = name
        self._callback = callback
        self._checkpoint: Checkpoint | None = None
        self._scratch: str | None = None
        self._pending: list[PendingSave] = []
        self._log = Log("checkpoint")

    def __getstate__(self) -> dict[str, Any]:
        # A copy in another process saves for the task of that process.
        return {**vars(self), "_checkpoint": None, "_scratch": None, "_pending": []}

    @property
    def has_begun(self) -> bool:
        """Whether `begin` was called in this process."""
        return self._checkpoint is not None

    @in_flow
    def begin(self, marker: str) -> str | None:
        """Begin the training: the directory with the newest state that it may resume from, None if there is none.

        `marker` is a file or directory that is in each state of this training, or the prefix of one. Raises NoTask
        outside of a task with `@checkpoint`, UsageError where another training of this process has the same name,
        InvalidInput where what has this name is of another kind, StorageError.
        """
        checkpoint = _checkpoint_of_process()
        task = checkpoint._task("save_async")
        journal = checkpoint._journal()
        if self.name in journal.trainings:
            raise UsageError(
                f"{self._callback}: a training with checkpoints named {self.name!r} was begun in this process already, "
                "and a retry could not tell the two apart; give each a name of its own: "
                f"{self._callback}(name=…)"
            )
        journal.trainings.add(self.name)
        self._checkpoint = checkpoint
        directory = self._resumed(checkpoint, task)
        if directory is not None and not _has(directory, marker):
            raise InvalidInput(
                f"{self._callback}: the checkpoint named {self.name!r} that the task resumes from has no {marker}, so "
                f"another callback or program saved it; use another name: {self._callback}(name=…)"
            )
        return directory

    def _resumed(self, checkpoint: Checkpoint, task: TaskIdentity) -> str | None:
        exported = json.loads(os.environ.get(ENVIRONMENT_VARIABLE) or "{}")
        key = exported.get("resumed")
        if key is not None and _name_in(key) == self.name:
            # In the task, it is loaded already. If the step's code has loaded something else there, that is meant.
            if checkpoint.directory is not None and getattr(checkpoint, "is_loaded", False):
                return checkpoint.directory
            return checkpoint.load(key, checkpoint._temporary.new(PREFIX))
        return self._find(checkpoint, task, exported.get("policy", "fresh"))

    def _find(self, checkpoint: Checkpoint, task: TaskIdentity, policy: str) -> str | None:
        """Load the newest checkpoint of this name, where the newest of all has another name."""
        for artifact in candidates(policy, task, self._skip):
            if _name_in(artifact["key"]) != self.name:
                continue
            try:
                return checkpoint.load(artifact, checkpoint._temporary.new(PREFIX))
            except (ArtifactNotFound, CorruptArtifact) as error:
                self._skip(error)
        return None

    def _skip(self, error: ArtifactError) -> None:
        self._log.warning(f"skipping a damaged checkpoint: {error}")

    def tell_resumed(self, after: str) -> None:
        """Write into the log after what the training resumes, such as `epoch 3`."""
        self._log(f"{self._callback} resumes after {after}")

    @property
    def scratch(self) -> str:
        """A directory for files that are to be saved; it is deleted when the task ends."""
        assert self._checkpoint is not None
        if self._scratch is None:
            self._scratch = self._checkpoint._temporary.new(PREFIX)
        return self._scratch

    @in_flow
    def save(self, content: Mapping[str, Any], metadata: Mapping[str, Any], *, consume: bool = False) -> None:
        """Save a state in the background. A newer state takes the place of one that waits.

        A state that could not be stored costs a warning when the next one is saved; the step fails if it was the last.
        Raises as `Checkpoint.save_async`.
        """
        assert self._checkpoint is not None
        # A failure that was asked for does not fail the step.
        for pending in [one for one in self._pending if one.done()]:
            self._pending.remove(pending)
            error = pending.exception()
            if error is not None and not isinstance(error, SaveReplaced):
                self._log.warning(f"a checkpoint could not be stored, the training goes on: {error}")
        self._pending.append(
            self._checkpoint.save_async(content, metadata=metadata, name=self.name, consume=consume, on_busy="replace")
        )


def _checkpoint_of_process() -> Checkpoint:
    from metaflow.metaflow_current import current

    found = getattr(current, "checkpoint", None) if current.is_running_flow else None
    return found if isinstance(found, Checkpoint) else Checkpoint()


def _has(directory: str, marker: str) -> bool:
    return any(name.startswith(marker) for name in os.listdir(directory))


def _name_in(key: str) -> str:
    parsed = parse_key(key)
    return parsed.name if isinstance(parsed, CheckpointKey) else ""
