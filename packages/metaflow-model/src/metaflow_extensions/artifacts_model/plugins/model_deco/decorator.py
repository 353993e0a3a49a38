"""The step decorator: the hooks that Metaflow calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metaflow.decorators import StepDecorator
from metaflow.metaflow_current import current

from metaflow_artifacts.plugin import (
    ArtifactError,
    ArtifactNotFound,
    Log,
    in_hook,
    refuse_foreign_decorators,
    refuse_unusable_datastore,
    store_of_flow,
)

if TYPE_CHECKING:
    # Imported where they are used: every Metaflow process imports this module, and few of them run a decorated step.
    from .current_model import CurrentModel
    from .names import Wanted

__all__ = ["ModelDecorator"]


class ModelDecorator(StepDecorator):
    """Saves and loads models in a step with `current.model`.

    ```python
    @model
    @step
    def train(self):
        self.classifier = current.model.save("./model", label="classifier", metadata={"accuracy": 0.95})
        self.next(self.use)

    @model(load=["classifier"])
    @step
    def use(self):
        path = current.model.loaded["classifier"]
        print(current.model.loaded.info["classifier"]["metadata"])
        self.next(self.end)
    ```

    Parameters
    ----------
    load : str or list of str and (str, str), default None
        What to load before the step's code runs: names of artifacts or Parameters of the flow. Each must hold a
        reference, which `current.model.save`, `current.checkpoint.save` or
        `current.huggingface_hub.snapshot_download` returned, or its key. In a pair, the second element is the directory
        to load into; without it, a temporary directory is used.
    temp_dir_root : str, default None
        The directory in which temporary directories are made; by default the system's. They are deleted when the task
        ends.
    best_effort_load : bool, default False
        Whether the step runs even if something cannot be found: a name that holds nothing, or an artifact that was
        deleted from the datastore. `current.model.loaded` then lacks that name.

    MF Add To Current
    -----------------
    model -> metaflow_extensions.artifacts_model.plugins.model_deco.current_model.CurrentModel
        Saves and loads models: `save`, `load`, and `loaded`, the paths of what was loaded.

        @@ Returns
        ----------
        CurrentModel
            The object with which the step saves and loads models.
    """

    name = "model"
    defaults = {"load": None, "temp_dir_root": None, "best_effort_load": False}  # noqa: RUF012

    _model: CurrentModel | None = None

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
        from .names import parse_load

        refuse_foreign_decorators()
        refuse_unusable_datastore(flow_datastore)
        self.attributes["load"] = parse_load(self.attributes["load"], step_name) or None
        self._flow_datastore = flow_datastore
        self._log = Log("model", logger)

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
        from .current_model import CurrentModel
        from .names import resolve

        best_effort = bool(self.attributes["best_effort_load"])
        pathspec = f"{flow.name}/{run_id}/{step_name}/{task_id}"
        store = store_of_flow(self._flow_datastore)
        self._model = CurrentModel(store, pathspec, retry_count, self._log, self.attributes["temp_dir_root"])
        current._update_env({"model": self._model})
        joined = list(inputs) if graph[step_name].type == "join" else None
        wanted, absent = resolve(self.attributes["load"] or (), flow, step_name, joined, best_effort=best_effort)
        for name in absent:
            self._log(f"Nothing to load for `{name}`: the flow has no value for it")
        for entry in wanted:
            self._load(self._model, entry, step_name, best_effort)

    def _load(self, model: CurrentModel, wanted: Wanted, step: str, best_effort: bool) -> None:
        self._log(f"Loading Artifact with name `{wanted.name}` [type:{wanted.type}] with key: {wanted.key}")
        try:
            model.load_as(wanted.name, wanted.reference, wanted.path)
        except ArtifactError as error:
            if best_effort and isinstance(error, ArtifactNotFound):
                self._log(f"Nothing to load for `{wanted.name}`: {error}")
                return
            raise type(error)(f"step {step}: cannot load {wanted.name!r}: {error}") from error

    def task_finished(
        self,
        step_name: str,
        flow: Any,
        graph: Any,
        is_task_ok: bool,
        retry_count: int,
        max_user_code_retries: int,
    ) -> None:
        if self._model is not None:
            self._model.close()
