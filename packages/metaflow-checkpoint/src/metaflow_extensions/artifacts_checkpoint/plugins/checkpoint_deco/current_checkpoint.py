"""`current.checkpoint`: the object that `@checkpoint` gives to the code of a step."""

from __future__ import annotations

import os
import time

from metaflow_artifacts.plugin import (
    ArtifactError,
    ArtifactNotFound,
    CorruptArtifact,
    Log,
    TaskIdentity,
    TemporaryDirectories,
)

# directory, tasks and writer are imported when the task starts, so that its first save or list is not delayed.
from . import directory, tasks, writer  # noqa: F401
from .checkpoint import PREFIX, Checkpoint
from .info import CheckpointInfo
from .journal import Journal
from .policy import candidates, of_any_run
from .report import Report

__all__ = ["CurrentCheckpoint"]


class CurrentCheckpoint(Checkpoint):
    """Saves, loads and lists checkpoints in a running task. Its methods may be called from any thread."""

    def __init__(
        self, task: TaskIdentity, policy: str, log: Log, temp_dir_root: str | os.PathLike[str] | None = None
    ) -> None:
        super().__init__(temp_dir_root, init_dir=True)
        self._identity = task
        self._policy = policy
        self._log = log
        self._info: CheckpointInfo | None = None
        self._journal_directory = TemporaryDirectories()
        self._own_journal = Journal(self._journal_directory.new("metaflow_checkpoint_journal_"))
        self._own_journal.export(task)
        self.report = Report(task.pathspec, task.attempt, policy, self._own_journal.another().new_saves)

    @property
    def directory(self) -> str:
        """A local directory with the checkpoint that the task resumes from; `save()` saves its content."""
        if self._directory is None:
            self.refresh_directory()
        assert self._directory is not None
        return self._directory

    @property
    def is_loaded(self) -> bool:
        """Whether a checkpoint was loaded into `directory` when the task started."""
        return self._info is not None

    @property
    def info(self) -> CheckpointInfo | None:
        """The reference to the checkpoint that was loaded when the task started; None if none was.

        The fields of the reference are attributes of it, too.
        """
        return self._info

    @property
    def task_identifier(self) -> str:
        """12 hex digits of the task's place in the flow, which is the same in every run."""
        return self._identity.place

    def refresh_directory(self) -> None:
        """Remove `directory`, and make a new, empty one."""
        self.cleanup()
        self._directory = self._temporary.new(PREFIX)

    def close(self) -> None:
        """Remove all temporary directories of the task."""
        self.cleanup()
        self._journal_directory.close()

    def load_first(self) -> None:
        """Load the checkpoint that the task resumes from into `directory`, if its policy finds one.

        A damaged checkpoint is skipped, with a warning, and the next older one is loaded. Raises StorageError if the
        datastore cannot be reached: the task must not start from the beginning because of that.
        """
        policy = self._policy
        warnings: list[str] = []

        def warn(what: str, error: ArtifactError) -> None:
            warnings.append(f"{what}: {error}")
            self._log.warning(warnings[-1])

        for artifact in candidates(policy, self._identity, lambda error: warn("skipping a damaged checkpoint", error)):
            self._log(
                "Loading the following checkpoint:\n"
                f"\t[pathspec] {artifact['pathspec']}\n"
                f"\t[key] {artifact['key']}\n"
                f"\t[created on] {artifact['created_on']}\n"
                f"\t[url] {artifact['url']}"
            )
            start = time.monotonic()
            try:
                self.load(artifact)
            except (ArtifactNotFound, CorruptArtifact) as error:
                warn(f"cannot load {artifact['key']}, trying the next older one", error)
                continue
            self._info = CheckpointInfo(artifact)
            self.report.note_loaded(self._why(policy), artifact, time.monotonic() - start, warnings)
            return
        self.report.note_loaded(self._why(policy), None, None, warnings)
        if policy == "fresh" and self._identity.origin_run and not self._identity.attempt:
            self._tell_what_eager_would_do()

    def _why(self, policy: str) -> str:
        if policy == "none":
            return "nothing is loaded automatically"
        of_this_task = "the newest checkpoint of this task's earlier attempts"
        if self._info is not None:
            if self._info["pathspec"] == self._identity.pathspec:
                return of_this_task
            return "the newest checkpoint of any run at the same place: this task's earlier attempts saved none"
        if policy == "eager":
            return "no run has saved a checkpoint at this place"
        if self._identity.attempt:
            return "this task's earlier attempts saved no checkpoint"
        return f"the first attempt starts from the beginning; a retry would load {of_this_task}"

    def _tell_what_eager_would_do(self) -> None:
        artifact = next(of_any_run(self._identity, lambda error: None), None)
        if artifact is not None:
            self._log(
                f"This run resumes run {self._identity.origin_run}, but with load_policy='fresh' each run starts from "
                f"the beginning. load_policy='eager' resumes from {artifact['key']}, saved by {artifact['pathspec']}"
            )

    def _task(self, action: str) -> TaskIdentity:
        return self._identity

    def _journal(self) -> Journal:
        return self._own_journal
