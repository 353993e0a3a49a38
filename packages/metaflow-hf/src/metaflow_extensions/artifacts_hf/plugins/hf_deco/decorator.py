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

    from .arguments import LoadSpec
    from .current_hub import CurrentHuggingfaceHub

__all__ = ["HuggingfaceHubDecorator"]


class HuggingfaceHubDecorator(StepDecorator):
    """Stores repos of the Hugging Face Hub in the datastore and loads them from there, with `current.huggingface_hub`.

    ```python
    @huggingface_hub
    @step
    def start(self):
        self.bert = current.huggingface_hub.snapshot_download(
            repo_id="google-bert/bert-base-uncased", allow_patterns=["*.json", "*.safetensors"]
        )
        self.next(self.train)

    @huggingface_hub(load=["google-bert/bert-base-uncased", ("stanfordnlp/imdb", "./imdb")])
    @step
    def train(self):
        path = current.huggingface_hub.loaded["google-bert/bert-base-uncased"]
        with current.huggingface_hub.load(repo_id="openai-community/gpt2", revision="main") as other:
            print(os.listdir(other))
        self.next(self.end)
    ```

    Parameters
    ----------
    load : Union[str, Dict[str, Any], typing.Sequence[Union[str, Dict[str, Any], Tuple[Any, ...]]], None], default None
        Repos to load before the step's code runs: repo ids, or dicts of arguments of
        `huggingface_hub.snapshot_download`. In a pair, the second element is the directory to load into; without it, a
        temporary directory is used.
    cache_scope : str, default 'checkpoint'
        Which tasks find a stored snapshot. `checkpoint`: those of the same flow, step, namespace and foreach value.
        `flow`: those of all steps of the flow, in all namespaces. `global`: those of all flows.
    temp_dir_root : Union[str, os.PathLike, None], default None
        The directory in which temporary directories are made; by default the system's. They are deleted when the task
        ends.
    show_card : bool, default True
        Whether a step that has a card (`@card`, `--with card`) gets another one, which shows its repos.

    MF Add To Current
    -----------------
    huggingface_hub -> metaflow_extensions.artifacts_hf.plugins.hf_deco.current_hub.CurrentHuggingfaceHub
        Stores repos in the datastore and loads them from there: `snapshot_download`, `load`, `loaded`.

        @@ Returns
        ----------
        CurrentHuggingfaceHub
            The object with which the step gets repos of the Hugging Face Hub.
    """

    name = "huggingface_hub"
    defaults = {"load": None, "cache_scope": "checkpoint", "temp_dir_root": None, "show_card": True}  # noqa: RUF012

    _specs: list[LoadSpec]
    _hub: CurrentHuggingfaceHub | None = None
    _card: LiveCard | None = None

    @in_hook
    def init(self) -> None:
        """Check the arguments. Metaflow calls this in the process that starts the run too, before any task runs."""
        from metaflow_artifacts.plugin import ArgumentReader, ArtifactError, UsageError

        from .arguments import CACHE_SCOPES, parse_load, secret_in, without_secrets

        given = ArgumentReader(self)
        self._cache_scope = given.choice("cache_scope", CACHE_SCOPES)
        self._temp_dir_root = given.path("temp_dir_root")
        self._show_card = given.flag("show_card")
        load = given.value("load", secret=True)
        # Metaflow prints the attributes, and stores them with every run.
        self.attributes["load"] = without_secrets(load)
        if self._is_of_command_line() and (secret := secret_in(load)) is not None:
            raise UsageError(
                f"@huggingface_hub: load= on the command line has {secret!r}, which would be part of the command of "
                "every task, for all to see; set HF_TOKEN, or log in with `hf auth login`, and leave it out"
            )
        try:
            self._specs = parse_load(load)
        except ArtifactError as error:
            raise type(error)(f"@huggingface_hub: {error}") from None

    def _is_of_command_line(self) -> bool:
        """Whether the decorator was given with `--with`: tasks then get its arguments by their command line."""
        return not self.statically_defined and getattr(self, "inserted_by", None) is None

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
        from metaflow_artifacts.plugin import Log, has_card, refuse_foreign_decorators, require_usable

        refuse_foreign_decorators()
        require_usable(flow_datastore, self.name, step_name)
        self._flow_datastore = flow_datastore
        self._log = Log("huggingface_hub", logger)
        self._has_card = has_card(decorators, self._show_card)

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
        from metaflow_artifacts.plugin import LiveCard, TaskIdentity, enter_artifact_store, shown_on

        from .current_hub import CurrentHuggingfaceHub

        enter_artifact_store(self._flow_datastore, metadata, run_id, step_name, task_id, retry_count)
        task = TaskIdentity.of_running(flow, self._flow_datastore, ubf_context, inputs)
        self._hub = CurrentHuggingfaceHub(task, self._cache_scope, self._log, self._temp_dir_root)
        current._update_env({"huggingface_hub": self._hub})
        if self._has_card:
            from .report import HubReport

            self._card = LiveCard(HubReport(self._hub), self._flow_datastore, self._log.warning)
        with shown_on(self._card):
            self._hub.load_first(self._specs)

    def task_decorate(
        self,
        step_func: Callable[..., Any],
        flow: Any,
        graph: Any,
        retry_count: int,
        max_user_code_retries: int,
        ubf_context: str | None,
    ) -> Callable[..., Any]:
        return self._card.wrap(step_func) if self._card is not None else step_func

    def task_finished(
        self,
        step_name: str,
        flow: Any,
        graph: Any,
        is_task_ok: bool,
        retry_count: int,
        max_user_code_retries: int,
    ) -> None:
        if self._hub is not None:
            self._hub.close()
