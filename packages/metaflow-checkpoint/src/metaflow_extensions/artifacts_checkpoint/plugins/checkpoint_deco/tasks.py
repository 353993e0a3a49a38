"""Finds the task whose checkpoints a user asks for, by its pathspec or as an object of Metaflow's client."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metaflow_artifacts.plugin import (
    ArtifactNotFound,
    InvalidInput,
    NotRegistered,
    Store,
    TaskIdentity,
    default_store,
    store_of_block,
)

__all__ = ["FoundTask", "attempt_number", "find_task", "store_of"]

_MAX_RESUMED_RUNS = 50


def attempt_number(attempt: int | str | None) -> int | None:
    """An attempt as a number. Raises InvalidInput if it is not a number from 0."""
    if attempt is None:
        return None
    try:
        number = int(attempt)
    except (TypeError, ValueError):
        raise InvalidInput(f"attempt {attempt!r}: expected a number from 0, or None") from None
    if number < 0:
        raise InvalidInput(f"attempt {attempt!r}: attempts count from 0")
    return number


@dataclass(frozen=True)
class FoundTask:
    """A task whose checkpoints a user asks for."""

    identity: TaskIdentity | None
    """None if the step of the task has no `@checkpoint`, or that of metaflow-checkpoint."""
    attempt: int
    """The attempt that was asked for: by default the latest one that has started."""
    pathspec: str
    metadata: Mapping[str, str]
    """What Metaflow knows about it."""


def find_task(task: Any) -> FoundTask:
    """A task, and the attempt that `task` stands for.

    `task` is a pathspec (`flow/run/step/task`) or a `metaflow.Task`. For a task that `resume` has copied from an
    earlier run, it is the task of that run, which saved the checkpoints. Raises InvalidInput for any other `task`,
    ArtifactNotFound if there is no such task.
    """
    from metaflow.client.core import Task

    if isinstance(task, str):
        found = _task(task)
    elif isinstance(task, Task):
        found = task
    else:
        raise InvalidInput(
            f"task: expected a metaflow.Task or its pathspec (flow/run/step/task), found {type(task).__name__}"
        )
    attempt: int | None = None
    for _ in range(_MAX_RESUMED_RUNS):
        # An object of the client may stand for one attempt, and lack the metadata of the others.
        whole = found if isinstance(task, str) else _task(found.pathspec)
        metadata = whole.metadata_dict
        origin_run, origin_task = metadata.get("origin-run-id"), metadata.get("origin-task-id")
        if origin_task in (None, "", "None"):
            attempt = found.current_attempt
            identity = None
            with contextlib.suppress(NotRegistered):
                identity = TaskIdentity.of_task(whole)
            return FoundTask(identity, attempt, whole.pathspec, metadata)
        flow, _, step, _ = whole.pathspec.split("/")
        found = _task(f"{flow}/{origin_run}/{step}/{origin_task}")
    raise InvalidInput(
        f"task {task!r}: it resumes a task that resumes another one, more than {_MAX_RESUMED_RUNS} times"
    )


def _task(pathspec: str) -> Any:
    from metaflow.client.core import Task
    from metaflow.exception import MetaflowInvalidPathspec, MetaflowNotFound

    parts = pathspec.split("/")
    if len(parts) != 4 or not all(parts):
        raise InvalidInput(f"task {pathspec!r}: expected a pathspec of the form flow/run/step/task")
    try:
        return Task(pathspec, _namespace_check=False)
    except (MetaflowNotFound, MetaflowInvalidPathspec) as error:
        raise ArtifactNotFound(f"Metaflow knows no task {pathspec}: {error}") from error


def store_of(task: TaskIdentity) -> Store:
    """The store to list a task's checkpoints in: the one that it writes to, or that of `artifact_store_from`.

    If it is a local directory that is not on this machine, the default store.
    """
    block = store_of_block()
    if block is not None:
        return block
    if os.path.isabs(task.datastore_root) and not os.path.isdir(task.datastore_root):
        return default_store()
    return task.store()
