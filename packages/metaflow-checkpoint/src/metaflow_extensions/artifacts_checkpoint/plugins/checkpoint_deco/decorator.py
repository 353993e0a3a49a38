"""The step decorator: the hooks that Metaflow calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from metaflow.decorators import StepDecorator
from metaflow.metaflow_current import current

from metaflow_artifacts.plugin import in_hook

# Every Metaflow process imports this module. What only decorated steps need is imported where it is used.
if TYPE_CHECKING:
    from metaflow_artifacts.plugin import LiveCard

    from .current_checkpoint import CurrentCheckpoint

__all__ = ["CheckpointDecorator"]


class CheckpointDecorator(StepDecorator):
    """Saves the state of a running step with `current.checkpoint`, so that a retry resumes from it.

    ```python
    @retry
    @checkpoint
    @step
    def train(self):
        path = os.path.join(current.checkpoint.directory, "state.json")
        state = {"epoch": 0}
        if current.checkpoint.is_loaded:
            with open(path) as file:
                state = json.load(file)
        while state["epoch"] < 10:
            state["epoch"] += 1
            with open(path, "w") as file:
                json.dump(state, file)
            current.checkpoint.save(metadata=state)
        self.next(self.end)
    ```

    Parameters
    ----------
    load_policy : Optional[str], default 'fresh'
        Which checkpoint is loaded into `current.checkpoint.directory` before the step's code runs. `fresh`: the newest
        checkpoint of the same task's earlier attempts; every run starts from the beginning, also with `resume`.
        `eager`: the same, or else the newest checkpoint that any run has saved at the same place: the same flow, step,
        foreach value and namespace. `none`, or None: no checkpoint.
    temp_dir_root : Union[str, os.PathLike, None], default None
        The directory in which `current.checkpoint.directory` is made; by default the system's directory for temporary
        files. `current.checkpoint.directory` is deleted when the task ends.
    per_node : bool, default False
        In a `@parallel` step, whether each node has checkpoints of its own, and resumes from its own newest one. By
        default, all nodes share theirs, and in each attempt all of them load the same one, whichever node saved it and
        whenever they start.
    preempt_grace : Optional[float], default None
        Seconds that the step has after SIGTERM, to save and to leave: `current.checkpoint.preempted` becomes true. The
        process ends after that as it would have, and at once at a second signal. Without it, SIGTERM ends the process
        when what `save_async` has taken over is stored, after 25 seconds at most. The signal must reach the Python
        process of the task: Kubernetes and AWS Batch do not send it there.
    show_card : bool, default True
        Whether a step that has a card (`@card`, `--with card`) gets another one, which shows its checkpoints.

    MF Add To Current
    -----------------
    checkpoint -> metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.current_checkpoint.CurrentCheckpoint
        Saves, loads and lists checkpoints: `save`, `load`, `list`, `directory`, `is_loaded`, `info`.

        @@ Returns
        ----------
        CurrentCheckpoint
            The object with which the step saves and loads checkpoints.
    """

    name = "checkpoint"
    defaults = {  # noqa: RUF012
        "load_policy": "fresh",
        "temp_dir_root": None,
        "per_node": False,
        "show_card": True,
        "preempt_grace": None,
    }

    _checkpoint: CurrentCheckpoint | None = None
    _card: LiveCard | None = None

    @in_hook
    def step_init(
        self,
        flow: Any,
        graph: Any,
        step_name: str,
        decorators: Any,
        environment: Any,
        flow_datastore: Any,
        logger: Any,
    ) -> None:
        from metaflow_artifacts.plugin import ArgumentReader, Log, has_card, refuse_foreign_decorators, require_usable

        from .policy import check_policy

        refuse_foreign_decorators()
        require_usable(flow_datastore, self.name, step_name)
        given = ArgumentReader(self, step_name)
        # With --with, Metaflow does not tell a task about arguments that are None.
        self.attributes["load_policy"] = self._policy = check_policy(self.attributes["load_policy"], step_name)
        self._temp_dir_root = given.path("temp_dir_root")
        self._per_node = given.flag("per_node")
        self._preempt_grace = given.seconds("preempt_grace")
        self._flow_datastore = flow_datastore
        self._log = Log("checkpoint", logger)
        self._has_card = has_card(decorators, given.flag("show_card"))

    @in_hook
    def task_pre_step(
        self,
        step_name: str,
        task_datastore: Any,
        metadata: Any,
        run_id: str,
        task_id: str,
        flow: Any,
        graph: Any,
        retry_count: int,
        max_user_code_retries: int,
        ubf_context: str | None,
        inputs: Any,
    ) -> None:
        if retry_count > max_user_code_retries:
            # @catch runs this attempt, without the step's code.
            return
        from metaflow_artifacts.plugin import (
            LiveCard,
            TaskIdentity,
            enter_artifact_store,
            shown_on,
            watch_for_preemption,
        )

        from .current_checkpoint import CurrentCheckpoint

        enter_artifact_store(self._flow_datastore, metadata, run_id, step_name, task_id, retry_count)
        task = TaskIdentity.of_running(flow, self._flow_datastore, ubf_context, inputs, self._per_node)
        task.register(metadata)
        self._checkpoint = CurrentCheckpoint(task, self._policy, self._log, self._temp_dir_root)
        current._update_env({"checkpoint": self._checkpoint})
        if self._has_card:
            self._card = LiveCard(self._checkpoint.report, self._flow_datastore, self._log.warning)
        with shown_on(self._card):
            self._checkpoint.load_first()
        if self._preempt_grace is not None:
            watch_for_preemption(self._log, self._preempt_grace)

    def task_decorate(
        self,
        step_func: Callable[..., Any],
        flow: Any,
        graph: Any,
        retry_count: int,
        max_user_code_retries: int,
        ubf_context: str | None,
    ) -> Callable[..., Any]:
        if self._checkpoint is None:
            return step_func
        from metaflow_artifacts.plugin import with_pending_saves

        waiting = with_pending_saves(step_func, flow, self._log, self._checkpoint.failures_elsewhere)
        return self._card.wrap(waiting) if self._card is not None else waiting

    def task_finished(
        self,
        step_name: str,
        flow: Any,
        graph: Any,
        is_task_ok: bool,
        retry_count: int,
        max_user_code_retries: int,
    ) -> None:
        if self._checkpoint is not None:
            self._checkpoint.close()
