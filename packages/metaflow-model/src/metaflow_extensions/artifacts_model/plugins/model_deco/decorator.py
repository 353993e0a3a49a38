"""The step decorator: the hooks that Metaflow calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from metaflow.decorators import StepDecorator
from metaflow.metaflow_current import current

from metaflow_artifacts.plugin import in_hook

if TYPE_CHECKING:
    # Imported where they are used: every Metaflow process imports this module, and few of them run a decorated step.
    from metaflow_artifacts.plugin import LiveCard

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
    load : Union[str, typing.Sequence[Union[str, Tuple[Any, ...]]], None], default None
        What to load before the step's code runs: names of artifacts or Parameters of the flow. Each must hold a
        reference, which `current.model.save`, `current.checkpoint.save` or
        `current.huggingface_hub.snapshot_download` returned, or its key or url. An element of the list may also be a
        tuple. `("name", "directory")` names the directory to load into; without one, or with None, it is a temporary
        directory. `("name", None, "*.safetensors")` loads only the files that match a pattern, or one of a list of
        patterns. A tuple that is not in a list is a list of names: `load=("a", "b")` loads `a` and `b`.
    temp_dir_root : Union[str, os.PathLike, None], default None
        The directory in which temporary directories are made; by default the system's. They are deleted when the task
        ends.
    best_effort_load : bool, default False
        Whether the step runs even if something cannot be found: a name that holds nothing, such as a Parameter that was
        not given, or an artifact that was deleted from the datastore. `current.model.loaded` then lacks that name.
    show_card : bool, default True
        Whether a step that has a card (`@card`, `--with card`) gets another one, which shows what was loaded and saved.

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
    defaults = {"load": None, "temp_dir_root": None, "best_effort_load": False, "show_card": True}  # noqa: RUF012

    _model: CurrentModel | None = None
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

        from .names import parse_load, refuse_unknown

        refuse_foreign_decorators()
        require_usable(flow_datastore, self.name, step_name)
        given = ArgumentReader(self, step_name)
        self._best_effort = given.flag("best_effort_load")
        self._temp_dir_root = given.path("temp_dir_root")
        load = parse_load(given.value("load"), step_name)
        # `spin` can give artifacts to the first step.
        if not graph[step_name].in_funcs and not self._best_effort and flow_datastore.TYPE != "spin":
            refuse_unknown(load, flow, step_name)
        # With --with, Metaflow writes this as JSON on the command line of each task.
        self.attributes["load"] = load or None
        self._flow_datastore = flow_datastore
        self._log = Log("model", logger)
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
        from metaflow_artifacts.plugin import LiveCard, enter_artifact_store, shown_on, store_of_flow

        from .current_model import CurrentModel

        enter_artifact_store(self._flow_datastore, metadata, run_id, step_name, task_id, retry_count)
        pathspec = f"{flow.name}/{run_id}/{step_name}/{task_id}"
        store = store_of_flow(self._flow_datastore)
        self._model = CurrentModel(store, pathspec, retry_count, self._log, self._temp_dir_root)
        current._update_env({"model": self._model})
        if self._has_card:
            from .report import Report

            self._model.report = Report(pathspec, retry_count)
            self._card = LiveCard(self._model.report, self._flow_datastore, self._log.warning)
        with shown_on(self._card):
            self._load_first(self._model, flow, step_name, list(inputs) if graph[step_name].type == "join" else None)

    def _load_first(self, model: CurrentModel, flow: Any, step: str, joined: list[Any] | None) -> None:
        from .names import resolve

        wanted, absent = resolve(self.attributes["load"] or (), flow, step, joined, best_effort=self._best_effort)
        for name in absent:
            self._log(f"Nothing to load for `{name}`: the flow has no value for it")
        for entry in wanted:
            self._load(model, entry, step)

    def _load(self, model: CurrentModel, wanted: Wanted, step: str) -> None:
        from metaflow_artifacts.plugin import ArtifactError, ArtifactNotFound

        self._log(f"Loading Artifact with name `{wanted.name}` [type:{wanted.type}] with key: {wanted.key}")
        try:
            model.load_as(wanted.name, wanted.reference, wanted.path, only=wanted.only)
        except ArtifactError as error:
            if self._best_effort and isinstance(error, ArtifactNotFound):
                self._log(f"Nothing to load for `{wanted.name}`: {error}")
                return
            raise type(error)(f"step {step}: cannot load {wanted.name!r}: {error}") from error

    def task_decorate(
        self,
        step_func: Callable[..., Any],
        flow: Any,
        graph: Any,
        retry_count: int,
        max_user_code_retries: int,
        ubf_context: str | None,
    ) -> Callable[..., Any]:
        if self._model is None:
            return step_func
        from metaflow_artifacts.plugin import with_pending_saves

        waiting = with_pending_saves(step_func, flow, self._log)
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
        if self._model is not None:
            self._model.close()
