"""The datastore that Metaflow uses, as a core store: a running flow's, a past task's, the configured one."""

from __future__ import annotations

import copy
import functools
import os
import threading
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from metaflow_artifacts.errors import ArtifactWarning, StorageError, UsageError

if TYPE_CHECKING:
    # Imported where it is used: every Metaflow process imports the decorators, and few of them use a store.
    from metaflow_artifacts.store import Store

__all__ = [
    "default_store",
    "running_flow_datastore",
    "s3_client",
    "store_at",
    "store_for",
    "store_of_flow",
    "store_of_task",
]

_LOCAL_TYPES = ("local", "spin")


def store_of_flow(flow_datastore: Any) -> Store:
    """The store in a flow's datastore, as `step_init` gets it, also where the command line chose another one.

    Raises StorageError for a type that is not supported.
    """
    return store_at(flow_datastore.TYPE, flow_datastore.datastore_root)


def store_at(kind: str, root: str | None) -> Store:
    """The store in a Metaflow datastore of type `kind` (`local` or `s3`) at `root`; one object in a process.

    Raises StorageError for a type that is not supported, or a root that is not configured.
    """
    if kind not in (*_LOCAL_TYPES, "s3"):
        raise StorageError(
            f"the datastore {kind} ({root}) cannot keep models and checkpoints yet; "
            "run the flow with --datastore s3 or --datastore local"
        )
    if not root:
        variable = f"METAFLOW_DATASTORE_SYSROOT_{kind.upper()}"
        raise StorageError(f"the datastore {kind} has no root; set {variable}")
    return _open(root.rstrip("/") if kind == "s3" else os.path.abspath(root))


def default_store() -> Store:
    """The store outside of decorated steps: of the task that runs in this process, of the task whose
    subprocess this is, or else of Metaflow's configuration (METAFLOW_DEFAULT_DATASTORE).

    Raises StorageError where nothing is configured or found.
    """
    running = running_flow_datastore()
    if running is not None:
        return store_of_flow(running)
    from metaflow_artifacts.mf.task import TaskIdentity

    task = TaskIdentity.from_environment()
    if task is not None:
        return task.store()
    from metaflow import metaflow_config

    kind = metaflow_config.DEFAULT_DATASTORE
    if kind == "local":
        return store_at(kind, _configured_local_root())
    if kind == "s3":
        return store_at(kind, metaflow_config.DATASTORE_SYSROOT_S3)
    return store_at(kind, None)


def store_for(reference: str | Mapping[str, Any], default: Store | None = None) -> Store:
    """The store that holds what `reference` names: `default`, unless its `url` lies below another root.

    Without a `default`, it is what `default_store` gives. A local root that does not exist on this machine
    counts as the default: the datastore was moved or is mounted elsewhere. Raises InvalidReference for a dict
    that is no reference.
    """
    from metaflow_artifacts.store import root_of

    root = root_of(reference)
    if root is not None and (root.startswith("s3://") or os.path.isdir(root)):
        return _open(root)
    return default or default_store()


def store_of_task(task: Any) -> Store:
    """The store that a past task of Metaflow's client wrote to, as its metadata says."""
    metadata = task.metadata_dict
    kind, root = metadata.get("ds-type"), metadata.get("ds-root")
    if kind is None:
        raise UsageError(f"the task {task.pathspec} has no record of its datastore; did it ever start?")
    return store_at(kind, root)


@functools.lru_cache(maxsize=16)
def _open(root: str) -> Store:
    from metaflow_artifacts.store import Store, open_store

    _let_warnings_through()
    if not root.startswith("s3://"):
        return open_store(root)
    from metaflow import metaflow_config

    from metaflow_artifacts.storage.s3 import S3Storage

    storage = S3Storage(root, s3_client, sse=metaflow_config.S3_SERVER_SIDE_ENCRYPTION)
    # While the task gets ready for its first save or load.
    threading.Thread(target=storage.connect, name="metaflow-artifacts-connect", daemon=True).start()
    return Store(storage)


def _let_warnings_through() -> None:
    """Exempt our warnings from the filter by which Metaflow's command line, and so each task, hides all of them.

    Filters that the user has set since then stay in front.
    """
    hides_all = ("ignore", None, Warning, None, 0)
    shows_ours = ("default", None, ArtifactWarning, None, 0)
    if hides_all in warnings.filters and shows_ours not in warnings.filters:
        warnings.filterwarnings("default", category=ArtifactWarning)
        cast("list[Any]", warnings.filters).remove(shows_ours)
        cast("list[Any]", warnings.filters).insert(warnings.filters.index(hides_all), shows_ours)


def running_flow_datastore() -> Any:
    """Metaflow's flow datastore of the task that runs in this process; None outside of tasks."""
    from metaflow.metaflow_current import current

    if not current.is_running_flow:
        return None
    try:
        from metaflow.system_context import system_context
    except ImportError:
        # Early releases of Metaflow 2.19 have it in the command line's context, in the main thread.
        from metaflow._vendor import click

        context: Any = cast(Any, click).get_current_context(silent=True)
        return getattr(context.obj, "flow_datastore", None) if context is not None else None
    return system_context.flow_datastore


def _configured_local_root() -> str:
    from metaflow.plugins.datastores.local_storage import LocalStorage

    root: str | None = LocalStorage.get_datastore_root_from_config(str, create_on_absent=False)
    if root is None:
        raise StorageError(
            f"no local datastore (a directory .metaflow) in {os.getcwd()} or above it; "
            "change to where the flow ran, or set METAFLOW_DATASTORE_SYSROOT_LOCAL"
        )
    return root


def s3_client() -> Any:
    """A boto3 client as Metaflow makes its own: endpoint, certificates, session and credentials provider from
    its configuration. What the user chose there wins over core's own settings."""
    from botocore.config import Config
    from metaflow import metaflow_config
    from metaflow.plugins.aws.aws_client import get_aws_client

    from metaflow_artifacts.storage.s3 import client_config

    # A copy: Metaflow's provider writes into what it is given.
    params: dict[str, Any] = copy.deepcopy(metaflow_config.DATATOOLS_CLIENT_PARAMS or {})
    chosen = params.get("config") or {}
    config = client_config()
    if _is_configured("S3_CLIENT_RETRY_CONFIG"):
        config = config.merge(Config(retries=metaflow_config.S3_CLIENT_RETRY_CONFIG))
    params["config"] = config.merge(chosen if isinstance(chosen, Config) else Config(**chosen))
    return get_aws_client("s3", session_vars=metaflow_config.DATATOOLS_SESSION_VARS, client_params=params)


def _is_configured(name: str) -> bool:
    from metaflow import metaflow_config_funcs

    variable = f"METAFLOW_{name}"
    sources = (os.environ, metaflow_config_funcs.METAFLOW_LOCAL_CONFIG, metaflow_config_funcs.METAFLOW_CONFIG)
    return any(variable in source for source in sources if source)
