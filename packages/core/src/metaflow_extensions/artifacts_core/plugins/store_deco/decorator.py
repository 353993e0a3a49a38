"""The flow decorator: the hooks that Metaflow calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from metaflow._vendor import click
from metaflow.decorators import FlowDecorator

from metaflow_artifacts._mf.errors import in_hook

# Every Metaflow process imports this module. What only a flow with the decorator needs is imported where it is used.
if TYPE_CHECKING:
    from metaflow_artifacts._mf.artifact_store import FlowStore

__all__ = ["ArtifactStoreDecorator"]

_BEGIN_A_RUN = ("run", "resume", "spin", "init")
"""Commands that register a run: its tags name the store."""
_IN_A_TASK = ("step", "spin-step")


class ArtifactStoreDecorator(FlowDecorator):
    """Keeps what `@checkpoint`, `@model` and `@huggingface_hub` save in a store other than Metaflow's datastore.

    ```python
    @with_artifact_store(type="s3", config=lambda: {"root": "s3://bucket/prefix", "role_arn": os.environ["ROLE"]})
    class TrainFlow(FlowSpec):
        ...
    ```

    Artifacts of the flow (`self.x`) stay in Metaflow's datastore. Loads and lists of the flow, and of subprocesses of
    its tasks, use this store. Elsewhere, `artifact_store_from` does.

    Parameters
    ----------
    type : str
        The kind of the store: `s3` (also `s3-compatible` and `coreweave`), `gs`, `azure` or `local`.
    config : Union[dict, typing.Callable[[], dict]]
        A dict, or a function of no arguments that returns one. It is called where a run is started, and in each task:
        what only the tasks know may be missing before, but not the root. Keys:

        - `root`: where the store is: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `CONTAINER/PREFIX` or
          `https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX`, or a directory.
        - `role_arn` (str, s3 only): a role of AWS that is assumed, and assumed again before its credentials expire.
        - `client_params` (dict, s3 only): arguments for boto3's client, such as `endpoint_url`, `aws_access_key_id` and
          `aws_secret_access_key`. They take the place of Metaflow's own.
        - `session_vars` (dict, s3 only): variables of the botocore session with which the role is used.
    """

    name = "with_artifact_store"
    defaults = {"type": None, "config": None}  # noqa: RUF012

    @in_hook
    def init(self) -> None:
        self._given = self.attributes["type"], self.attributes["config"]
        # Metaflow prints the attributes, and stores them with every run.
        self.attributes["config"] = None

    @in_hook
    def flow_init(
        self,
        flow: Any,
        graph: Any,
        environment: Any,
        flow_datastore: Any,
        metadata: Any,
        logger: Any,
        echo: Any,
        options: Any,
    ) -> None:
        from metaflow_artifacts._mf.artifact_store import FlowStore, set_flow_store
        from metaflow_artifacts._mf.datastore import require_client

        store = FlowStore(*self._given)
        set_flow_store(flow_datastore, store)
        command = _command()
        if command in _BEGIN_A_RUN:
            store.check()
            require_client(store.config(), store.where)
        elif command not in _IN_A_TASK or not _can_tell(store):
            return
        else:
            store.export()
        metadata.add_sticky_tags(sys_tags=store.tags())


def _command() -> str | None:
    """The command that the flow file was called with."""
    context = cast(Any, click).get_current_context(silent=True)
    # Metaflow's own: click tells the name of the command later.
    arguments = getattr(context, "saved_args", None)
    return arguments[0] if arguments else None


def _can_tell(store: FlowStore) -> bool:
    """Whether the store is known already, when the process of a task begins.

    Other decorators of the step may still set what a function of the user's reads. It is called again when the step
    uses the store.
    """
    from metaflow_artifacts.errors import ArtifactError

    try:
        store.config()
    except ArtifactError:
        return False
    return True
