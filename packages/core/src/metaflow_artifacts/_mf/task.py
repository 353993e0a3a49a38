"""The identity of the running task: its pathspec, and the three short hashes in the keys of its checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, cast

from metaflow_artifacts._format.keys import CHECKPOINTS, CheckpointPlace
from metaflow_artifacts._mf.artifact_store import ENVIRONMENT_VARIABLE, exported, names_only_a_store
from metaflow_artifacts._mf.canonical import Unstable, canonical
from metaflow_artifacts._mf.datastore import place_of_flow, store_of_flow, store_of_task
from metaflow_artifacts.errors import UsageError

if TYPE_CHECKING:
    from metaflow_artifacts._store.store import Store

__all__ = ["ENVIRONMENT_VARIABLE", "SCOPE_TAG", "NotRegistered", "TaskIdentity", "id_of", "place_of", "scope_of"]

SCOPE_TAG = "checkpoint:"
"""Runs with the same tag `checkpoint:NAME` have the same scope, whichever user started them."""

_METADATA_FIELD = "metaflow-artifacts-task"


class NotRegistered(UsageError):
    """A task that has left no record of its checkpoints: most likely, its step has no `@checkpoint`."""


@dataclass(frozen=True)
class TaskIdentity:
    """One attempt of a task, with the values that appear in keys and references."""

    flow: str
    run: str
    step: str
    task: str
    attempt: int
    scope: str
    """12 hex digits of the namespace, or of the run's `checkpoint:NAME` tag."""
    place: str
    """12 hex digits of the task's place in the flow; the same in every run."""
    datastore_type: str
    """The type of the datastore that the task writes to, in Metaflow's words: `local`, `s3`, `azure` or `gs`."""
    datastore_root: str
    origin_run: str | None = None
    """The run that this one resumes."""
    gang: str | None = None
    """The pathspec of the gang's control task, if the nodes of a `@parallel` step share their checkpoints."""

    @classmethod
    def of_running(
        cls,
        flow: Any,
        flow_datastore: Any,
        ubf_context: str | None = None,
        inputs: Iterable[Any] = (),
        per_node: bool = False,
    ) -> TaskIdentity:
        """The task that runs in this process. The arguments are those of the hook `task_pre_step`.

        In a `@parallel` step, all nodes have one place, unless `per_node` is set.

        Raises UsageError if no task runs, or if a node of a `@parallel` step does not know its control task;
        StorageError for a datastore that is not supported.
        """
        from metaflow.metaflow_current import current

        if current.flow_name is None or current.step_name is None:
            raise UsageError("no task of a flow runs in this process; call this in a step")
        parallel = ubf_context is not None
        node = node_of(flow, ubf_context) if per_node else None
        origin = current.origin_run_id
        return cls(
            flow=current.flow_name,
            run=str(current.run_id),
            step=current.step_name,
            task=str(current.task_id),
            attempt=current.retry_count,
            scope=scope_of(current.namespace, current.tags or ()),
            place=place_of(flow, current.step_name, parallel, node, list(inputs or ())),
            datastore_type=place_of_flow(flow_datastore)[0],
            datastore_root=store_of_flow(flow_datastore).root,
            origin_run=str(origin) if origin not in (None, "", "None") else None,
            gang=_control_pathspec(ubf_context) if parallel and not per_node else None,
        )

    @property
    def pathspec(self) -> str:
        """`flow/run/step/task`."""
        return f"{self.flow}/{self.run}/{self.step}/{self.task}"

    @property
    def owner(self) -> str:
        """The pathspec that the task's checkpoints belong to: that of its gang in a `@parallel` step, else its own."""
        return self.gang or self.pathspec

    @property
    def id(self) -> str:
        """8 hex digits of the owner's pathspec."""
        return id_of(self.owner)

    def store(self) -> Store:
        """The store that the task writes to."""
        return store_of_task(self.datastore_type, self.datastore_root)

    def checkpoint_place(self, root: str = CHECKPOINTS) -> CheckpointPlace:
        """The place of the task's checkpoints below `root`, `mf.checkpoints` or `mf.huggingface_hub`."""
        return CheckpointPlace(self.flow, self.step, self.scope, self.place, root)

    def export(self, **more: str | None) -> None:
        """Set the environment variable by which subprocesses started from now on find their task, and `more`."""
        os.environ[ENVIRONMENT_VARIABLE] = _as_json({**asdict(self), **more, **exported()})

    def encode(self) -> str:
        """The identity as JSON, for `decode`."""
        return _as_json(asdict(self))

    @classmethod
    def decode(cls, text: str, where: str) -> TaskIdentity:
        """The identity that `encode` wrote. Raises UsageError for any other text; `where` says where it was found."""
        try:
            values = json.loads(text)
            known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
            return cls(**known)
        except (ValueError, TypeError, KeyError):
            raise UsageError(f"{where} does not name a task: {text[:200]!r}") from None

    @classmethod
    def from_environment(cls) -> TaskIdentity | None:
        """The task that this process or its parent runs, as the environment variable says; None outside of tasks with
        `@checkpoint`.

        A flow that was started inside a task does not belong to that task.
        """
        text = os.environ.get(ENVIRONMENT_VARIABLE)
        if not text or names_only_a_store(text):
            return None
        identity = cls.decode(text, f"the environment variable {ENVIRONMENT_VARIABLE}")
        from metaflow.metaflow_current import current

        if current.is_running_flow and current.pathspec != identity.pathspec:
            return None
        return identity

    def register(self, metadata: Any) -> None:
        """Write the identity into Metaflow's metadata of the task, where `of_task` reads it.

        It can be read while the task runs, and for as long as Metaflow keeps the task. `metadata` is the argument of
        `task_pre_step`.
        """
        from metaflow.metadata_provider.metadata import MetaDatum

        datum = MetaDatum(
            field=_METADATA_FIELD,
            value=self.encode(),
            type="metaflow-artifacts",
            tags=[f"attempt_id:{self.attempt}"],
        )
        metadata.register_metadata(self.run, self.step, self.task, [datum])

    @classmethod
    def of_task(cls, task: Any) -> TaskIdentity:
        """The identity that a past or running task has registered. `task` is a `metaflow.Task`.

        Raises NotRegistered for a task without one: its step has no `@checkpoint`, or it has not started.
        """
        text = task.metadata_dict.get(_METADATA_FIELD)
        if text is None:
            raise NotRegistered(
                f"the task {task.pathspec} has left no record of its checkpoints: its step has no @checkpoint, "
                "or that of another distribution, or it has not started yet"
            )
        return cls.decode(text, f"the metadata of {task.pathspec}")


def id_of(pathspec: str) -> str:
    """8 hex digits of a task's pathspec."""
    return _hex(pathspec, 8)


def scope_of(namespace: str | None, tags: Iterable[str] = ()) -> str:
    """12 hex digits of the run's tag `checkpoint:NAME`, or else of its namespace (`user:NAME`, `production:TOKEN`).

    If a run has several such tags, the first in alphabetical order is used.
    """
    chosen = sorted(tag for tag in tags if tag.startswith(SCOPE_TAG) and tag != SCOPE_TAG)
    return _hex(chosen[0] if chosen else namespace or "", 12)


def node_of(flow: Any, ubf_context: str | None) -> int | None:
    """The index of this node in a @parallel step; None in other steps."""
    if ubf_context is None:
        return None
    if ubf_context == "ubf_control":
        return 0
    return int(flow.index or 0)


def _control_pathspec(ubf_context: str | None) -> str:
    """The pathspec of the control task of the gang that the running task is a node of."""
    from metaflow.metaflow_current import current

    control: str | None = current.task_id
    if ubf_context != "ubf_control":
        control = cast(Any, current).parallel.control_task_id
        if not control:
            raise UsageError(
                f"step {current.step_name}: this node of the @parallel step does not know its control task "
                "(MF_PARALLEL_CONTROL_TASK_ID is not set), so it cannot share what the gang has stored; use a "
                "version of Metaflow that sets it, or @checkpoint(per_node=True)"
            )
    return f"{current.flow_name}/{current.run_id}/{current.step_name}/{control}"


def place_of(flow: Any, step: str, parallel: bool = False, node: int | None = None, inputs: Iterable[Any] = ()) -> str:
    """12 hex digits of the running task's place in the flow, which is the same in every run.

    The place is the step, the values of the foreach levels that it is in, the iteration in a step that repeats itself,
    and `node`, if the nodes of a `parallel` step have places of their own. `inputs` is the argument of
    `task_pre_step`, which joins need.
    """
    stack = _stack(flow)
    if parallel:
        # Metaflow adds an innermost foreach level for the nodes of a @parallel step.
        stack = stack[:-1]
    levels = [_level(flow, depth, frame, list(inputs)) for depth, frame in enumerate(stack)]
    iterations = list(getattr(flow, "_iteration_stack", None) or [])
    return _hex(json.dumps([step, levels, node, iterations], separators=(",", ":")), 12)


def _stack(flow: Any) -> list[Any]:
    return list(getattr(flow, "_foreach_stack", None) or [])


_MISSING = object()


def _level(flow: Any, depth: int, frame: Any, inputs: list[Any]) -> list[Any]:
    value = _value(flow, depth, frame, inputs)
    if value is not _MISSING:
        try:
            return ["value", canonical(value)]
        except Unstable:
            pass
    text = str(getattr(frame, "value", ""))
    # Metaflow's short text of the value identifies it, unless the text may be the repr of an object, which can
    # differ between runs.
    return ["index", frame.index, text if not set(text) & set("<({[") else ""]


def _value(flow: Any, depth: int, frame: Any, inputs: list[Any]) -> Any:
    """The foreach value of a level; _MISSING if the artifact that was split has changed since."""
    try:
        value = flow.foreach_stack()[depth][2]
        if value is None and frame.var not in flow and inputs:
            # A join has no artifacts yet; its inputs have.
            value = inputs[0][frame.var][frame.index]
    except (AttributeError, LookupError, TypeError, StopIteration):
        return _MISSING
    text = getattr(frame, "value", None)
    if text is None:
        return value
    # Only numbers and strings have a text that is the same in every process.
    is_plain = isinstance(value, (str, int, float))
    replaced = (value is None and text != "None") or (is_plain and flow._get_foreach_item_value(value) != text)
    return _MISSING if replaced else value


def _as_json(values: dict[str, Any]) -> str:
    return json.dumps(values, separators=(",", ":"))


def _hex(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:digits]
