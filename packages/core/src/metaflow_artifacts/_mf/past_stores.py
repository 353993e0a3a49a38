"""Which artifact store a run or a task has used, by its system tags and metadata."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from metaflow_artifacts._mf.artifact_store import STORE_ROOT, STORE_TYPE
from metaflow_artifacts._mf.store_config import StoreConfig, kind_of, result_of
from metaflow_artifacts.errors import ArtifactNotFound, InvalidInput, warn

__all__ = ["store_of_past"]

_WHERE = "artifact_store_from"
_MAX_RESUMED_RUNS = 50


def store_of_past(run: Any, task: Any, given: object) -> StoreConfig | None:
    """The store of a run or a task, whichever is not None; None if it has used Metaflow's datastore.

    `given` is what the user says about how to reach it. Raises InvalidInput for what cannot be used, and
    ArtifactNotFound if Metaflow does not know the run or the task.
    """
    if (run is None) == (task is None):
        raise InvalidInput(f"{_WHERE}: pass either run= or task=")
    past = _client_object(run, "Run", "run") if task is None else _client_object(task, "Task", "task")
    named = _in_tags(past.system_tags) if task is None else _of_task(past)
    if named is None:
        if given is not None:
            warn(
                f"{_WHERE}: {past.pathspec} has used no @with_artifact_store; config= is left out, and Metaflow's "
                "datastore is used"
            )
        return None
    kind, root = named
    config = result_of(given, _WHERE)
    if config is not None and not isinstance(config, Mapping):
        raise InvalidInput(
            f"{_WHERE}: config is a {type(config).__name__}; pass a dict, or a function that returns one"
        )
    found = StoreConfig.read(kind_of(kind, _WHERE), {"root": root, **(config or {})}, _WHERE)
    found.require_sdk(_WHERE)
    return found


def _client_object(given: Any, name: str, argument: str) -> Any:
    """A `metaflow.Run` or `metaflow.Task`, from a pathspec or as it is."""
    from metaflow.client import core
    from metaflow.exception import MetaflowInvalidPathspec, MetaflowNotFound

    if isinstance(given, str):
        try:
            return getattr(core, name)(given, _namespace_check=False)
        except (MetaflowNotFound, MetaflowInvalidPathspec) as error:
            raise ArtifactNotFound(f"{_WHERE}: Metaflow knows no {argument} {given}: {error}") from error
    if not hasattr(given, "system_tags" if name == "Run" else "metadata_dict"):
        raise InvalidInput(
            f"{_WHERE}: {argument}= is a {type(given).__name__}; pass a metaflow.{name}, or its pathspec"
        )
    return given


def _in_tags(tags: Iterable[str]) -> tuple[str, str] | None:
    pairs = dict(tag.split(":", 1) for tag in tags if ":" in tag)
    return (pairs[STORE_TYPE], pairs[STORE_ROOT]) if {STORE_TYPE, STORE_ROOT} <= set(pairs) else None


def _of_task(task: Any) -> tuple[str, str] | None:
    """The store of a task; for one that `resume` has copied from an earlier run, that of the task of that run."""
    for _ in range(_MAX_RESUMED_RUNS):
        metadata = task.metadata_dict
        if metadata.get(STORE_TYPE) and metadata.get(STORE_ROOT):
            return metadata[STORE_TYPE], metadata[STORE_ROOT]
        origin_run, origin_task = metadata.get("origin-run-id"), metadata.get("origin-task-id")
        if origin_task in (None, "", "None"):
            break
        flow, _run, step, _task = task.pathspec.split("/")
        task = _client_object(f"{flow}/{origin_run}/{step}/{origin_task}", "Task", "task")
    # A step without one of the decorators leaves no metadata.
    return _in_tags(getattr(task, "system_tags", ()))
