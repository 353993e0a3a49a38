"""What a resumed task resumes: the task at the same place in the run that this one was started from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from metaflow_artifacts.mf.task import TaskIdentity

__all__ = ["origin_tasks"]

_MAX_DEPTH = 50


def origin_tasks(identity: TaskIdentity) -> Iterator[Any]:
    """The `metaflow.Task`s that `identity` resumes, newest run first; none in a run that resumes nothing.

    A run that resumes a resumed run has several. Asks Metaflow's metadata, in a foreach for each task of the
    step.
    """
    from metaflow.client.core import Run
    from metaflow.exception import MetaflowNotFound

    run_id = identity.origin_run
    for _ in range(_MAX_DEPTH):
        if run_id is None:
            return
        try:
            run = Run(f"{identity.flow}/{run_id}", _namespace_check=False)
        except MetaflowNotFound:
            return
        task = _task_at(run, identity)
        if task is not None:
            yield task
        run_id = _origin_of(run)


def _task_at(run: Any, identity: TaskIdentity) -> Any:
    if identity.step not in run:
        return None
    tasks = list(run[identity.step])
    if not identity.foreach_path:
        return tasks[0] if tasks else None
    wanted = _normal(identity.foreach_path)
    for task in tasks:
        if _normal(task.metadata_dict.get("foreach-execution-path", "")) == wanted:
            return task
    return None


def _normal(path: str) -> str:
    # The control task of a @parallel step has index 0 on one machine, and none elsewhere.
    return path.replace(":None", ":0")


def _origin_of(run: Any) -> str | None:
    for step in run:
        for task in step:
            origin = task.metadata_dict.get("origin-run-id")
            if origin not in (None, "", "None"):
                return str(origin)
            break
    return None
