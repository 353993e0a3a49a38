"""The function for artifact stores outside of the flow that used them: in notebooks, scripts and other flows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from metaflow_artifacts._mf.errors import shown

if TYPE_CHECKING:
    from metaflow.client.core import Run, Task

__all__ = ["artifact_store_from"]


def artifact_store_from(
    run: Run | str | None = None,
    task: Task | str | None = None,
    config: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
) -> AbstractContextManager[None]:
    """Let loads and lists in the block use the artifact store that a run or a task has used.

    ```python
    run = Run("TrainFlow/12")
    with artifact_store_from(run=run, config={"role_arn": ROLE}):
        load_model(run.data.model, "./model")
    ```

    It holds for `load_model`, `delete_model`, `Checkpoint` and the loads of `current`: in the thread that opens the
    block, and in threads that have opened none. Subprocesses do not know of it. What a task saves goes to the task's
    own store.

    Parameters
    ----------
    run : Run or str, default None
        The run that has used the store, or its pathspec. One without `@with_artifact_store` has used Metaflow's
        datastore, and so does the block.
    task : Task or str, default None
        The same for a task. Give one of the two.
    config : Mapping[str, Any] or callable, default None
        How to reach the store: `role_arn`, `session_vars` and `client_params`, as in `@with_artifact_store`, or a
        function that returns such a dict. A `root` in it takes the place of that of the run, for a store that was
        moved.

    Raises
    ------
    InvalidInput
        If neither or both of `run` and `task` are given, or if `config` cannot be used.
    ArtifactNotFound
        If Metaflow does not know the run or the task.
    StorageError
        If a package that the store needs is not installed.
    """
    return _use_store_of(run, task, config)


@contextmanager
def _use_store_of(run: Any, task: Any, config: Any) -> Iterator[None]:
    # Imported here, because every Metaflow process imports this module.
    from metaflow_artifacts._mf.artifact_store import use_store
    from metaflow_artifacts._mf.past_stores import store_of_past

    with shown(always=False):
        found = store_of_past(run, task, config)
    with use_store(found):
        yield
