"""What a task resumes from: found when the task starts, and loaded into its directory.

The nodes of a gang all resume from one checkpoint. The first node that has found and loaded one writes down its choice,
and every other node of the attempt obeys it.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from metaflow_artifacts.plugin import (
    ArtifactError,
    ArtifactNotFound,
    Choice,
    CorruptArtifact,
    GangChoice,
    Log,
    ModelArtifact,
    Progress,
    TaskIdentity,
    size_text,
    task_of,
)

from .directory import replace_content
from .policy import candidates, of_any_run

__all__ = ["Resumed", "resume"]


class Resumed(NamedTuple):
    """What a task resumes from."""

    artifact: ModelArtifact | None
    """The reference to the checkpoint; None if the task starts from the beginning."""
    why: str
    """The reason, for the card."""
    seconds: float | None
    """Seconds that the load took; None if nothing was loaded."""
    warnings: list[str]
    """The damaged checkpoints that were skipped."""
    cached: int = 0
    """Bytes that came from the node's cache."""


def resume(task: TaskIdentity, policy: str, directory: str, log: Log) -> Resumed:
    """Load the checkpoint that `task` resumes from under `policy` into `directory`, if there is one.

    A damaged checkpoint is skipped, with a warning, and the next older one is loaded. But a node of a gang loads what
    the gang's first node has chosen for this attempt, or fails: raises ArtifactNotFound or CorruptArtifact. Raises
    StorageError if the datastore cannot be reached: the task must not start from the beginning because of that.
    """
    search = _Search(task, policy, directory, log)
    # In the first attempt of a fresh gang there is nothing to choose.
    if task.gang is None or policy == "none" or (policy == "fresh" and not task.attempt):
        artifact = search.load_newest()
        why = _why(task, policy, artifact)
    else:
        artifact, why = _resume_gang(task, policy, search, log)
    if artifact is None and policy == "fresh" and task.origin_run and not task.attempt:
        _tell_what_eager_would_do(task, log)
    return Resumed(artifact, why, search.seconds if artifact is not None else None, search.warnings, search.cached)


def _resume_gang(task: TaskIdentity, policy: str, search: _Search, log: Log) -> tuple[ModelArtifact | None, str]:
    choices = GangChoice(task.store(), task.checkpoint_place(), task.owner, task.attempt)
    all_nodes = f"all nodes of the gang {task.gang} in attempt {task.attempt}"
    artifact = None
    choice = choices.find()
    if choice is None:
        artifact = search.load_newest()
        own = Choice(None if artifact is None else artifact["key"], task.pathspec)
        choice = choices.make(own)
        if choice == own:
            if artifact is None:
                log(f"There is no checkpoint to resume from: {all_nodes} start from the beginning")
            else:
                log(f"This checkpoint was chosen for {all_nodes}")
            return artifact, f"{_why(task, policy, artifact)}; chosen for all nodes of the gang by this one"
    log(f"{choice.node} chose for {all_nodes}: {choice.key or 'no checkpoint, they start from the beginning'}")
    return search.obey(choice, artifact), f"chosen for all nodes of the gang by {choice.node}"


class _Search:
    """Looks for the checkpoint to resume from, and loads it."""

    def __init__(self, task: TaskIdentity, policy: str, directory: str, log: Log) -> None:
        self._task = task
        self._policy = policy
        self._directory = directory
        self._log = log
        self.seconds = 0.0
        """Seconds that the last load took."""
        self.cached = 0
        """Bytes that it had from the node's cache."""
        self.warnings: list[str] = []

    def load_newest(self) -> ModelArtifact | None:
        """Load the newest checkpoint that is whole, and return it; None if there is none."""

        def skip(error: ArtifactError) -> None:
            self._warn("skipping a damaged checkpoint", error)

        for artifact in candidates(self._policy, self._task, skip):
            try:
                self._load(artifact)
            except (ArtifactNotFound, CorruptArtifact) as error:
                self._warn(f"cannot load {artifact['key']}, trying the next older one", error)
                continue
            return artifact
        return None

    def obey(self, choice: Choice, loaded: ModelArtifact | None) -> ModelArtifact | None:
        """Load what another node chose, in place of what this node has `loaded`; None if it chose nothing."""
        if choice.key is None:
            if loaded is not None:
                with replace_content(self._directory):
                    pass
            return None
        if loaded is not None and loaded["key"] == choice.key:
            return loaded
        try:
            artifact = self._task.store().info(choice.key)
            self._load(artifact)
        except (ArtifactNotFound, CorruptArtifact) as error:
            raise type(error)(
                f"the gang {self._task.gang} resumes attempt {self._task.attempt} from {choice.key}, which "
                f"{choice.node} chose, but {self._task.pathspec} cannot load it ({error}); with @retry, the next "
                "attempt chooses again"
            ) from error
        return artifact

    def _load(self, artifact: ModelArtifact) -> None:
        self._log(
            "Loading the following checkpoint:\n"
            f"\t[pathspec] {artifact['pathspec']}\n"
            f"\t[key] {artifact['key']}\n"
            f"\t[created on] {artifact['created_on']}\n"
            f"\t[url] {artifact['url']}"
        )
        start = time.monotonic()
        progress = Progress()
        with replace_content(self._directory) as stage:
            self._task.store().load(artifact, stage, progress=progress)
        self.seconds, self.cached = time.monotonic() - start, progress.cached
        if self.cached:
            self._log(f"{size_text(self.cached)} of {size_text(progress.total)} came from the node's cache")

    def _warn(self, what: str, error: ArtifactError) -> None:
        self.warnings.append(f"{what}: {error}")
        self._log.warning(self.warnings[-1])


def _why(task: TaskIdentity, policy: str, artifact: ModelArtifact | None) -> str:
    if policy == "none":
        return "nothing is loaded automatically"
    whose = "task" if task.gang is None else "gang"
    of_this_task = f"the newest checkpoint of this {whose}'s earlier attempts"
    if artifact is not None:
        if task_of(artifact) == task.owner:
            return of_this_task
        return f"the newest checkpoint of any run at the same place: this {whose}'s earlier attempts saved none"
    if policy == "eager":
        return "no run has saved a checkpoint at this place"
    if task.attempt:
        return f"this {whose}'s earlier attempts saved no checkpoint"
    return f"the first attempt starts from the beginning; a retry would load {of_this_task}"


def _tell_what_eager_would_do(task: TaskIdentity, log: Log) -> None:
    artifact = next(of_any_run(task, lambda error: None), None)
    if artifact is not None:
        log(
            f"This run resumes run {task.origin_run}, but with load_policy='fresh' each run starts from the beginning. "
            f"load_policy='eager' resumes from {artifact['key']}, saved by {artifact['pathspec']}"
        )
