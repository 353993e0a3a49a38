"""The step decorator: the hooks that Metaflow calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from metaflow.decorators import StepDecorator
from metaflow.metaflow_current import current

from metaflow_artifacts.plugin import (
    ArtifactError,
    Log,
    UsageError,
    in_hook,
    refuse_foreign_decorators,
    refuse_unusable_datastore,
)

# Every Metaflow process imports this module. What only decorated steps need is imported where it is used.
if TYPE_CHECKING:
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
    load : list of str, dict, (str, str) and (dict, str), default None
        Repos to load before the step's code runs: repo ids, or dicts of arguments of
        `huggingface_hub.snapshot_download`. In a pair, the second element is the directory to load into; without it, a
        temporary directory is used.
    cache_scope : str, default 'checkpoint'
        Which tasks find a stored snapshot. `checkpoint`: those of the same flow, step, namespace and foreach value.
        `flow`: those of all steps of the flow, in all namespaces. `global`: those of all flows.
    temp_dir_root : str, default None
        The directory in which temporary directories are made; by default the system's. They are deleted when the task
        ends.
    show_card : bool, default True
        Whether a step that has a card (`@card`, `--with card`) gets a second one, which shows its repos.

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

    @in_hook
    def init(self) -> None:
        """Check the arguments. Metaflow calls this in the process that starts the run too, before any task runs."""
        from .arguments import CACHE_SCOPES, parse_load, without_secrets

        scope = self.attributes["cache_scope"]
        if scope not in CACHE_SCOPES:
            raise UsageError(f"@huggingface_hub(cache_scope={scope!r}): expected one of {', '.join(CACHE_SCOPES)}")
        try:
            self._specs = parse_load(self.attributes["load"])
        except ArtifactError as error:
            raise type(error)(f"@huggingface_hub: {error}") from None
        # Metaflow prints the attributes, and stores them with every run.
        self.attributes["load"] = without_secrets(self.attributes["load"])

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
        from metaflow_artifacts.plugin import attach_card

        from .report import CARD_TYPE

        refuse_foreign_decorators()
        refuse_unusable_datastore(flow_datastore)
        self._flow_datastore = flow_datastore
        self._log = Log("huggingface_hub", logger)
        self._has_card = attach_card(flow, step_name, decorators, CARD_TYPE, self.attributes["show_card"])

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
        from metaflow_artifacts.plugin import TaskIdentity

        from .current_hub import CurrentHuggingfaceHub

        task = TaskIdentity.of_running(flow, self._flow_datastore, ubf_context, inputs)
        self._hub = CurrentHuggingfaceHub(
            task, self.attributes["cache_scope"], self._log, self.attributes["temp_dir_root"]
        )
        current._update_env({"huggingface_hub": self._hub})
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
        if self._hub is None or not self._has_card:
            return step_func
        from .live_card import with_hub_card

        return with_hub_card(step_func, self._hub, self._log.warning)

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
