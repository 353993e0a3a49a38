"""How a Metaflow datastore becomes a store of core: its root, its S3 client, and the datastore of the running flow."""

from __future__ import annotations

import copy
import functools
import os
import re
import threading
import warnings
from typing import TYPE_CHECKING, Any, cast

from metaflow_artifacts.errors import ArtifactWarning, StorageError

if TYPE_CHECKING:
    # Imported where it is used: every Metaflow process imports the decorators, and few of them use a store.
    from metaflow_artifacts._store.store import Store

__all__ = ["SPIN", "open_root", "require_usable", "running_flow_datastore", "s3_client", "store_at", "store_of_flow"]

SPIN = "spin"
"""The type of the datastore of a step that is run with `spin`: a directory `.metaflow_spin`."""
_LOCAL_TYPES = ("local", SPIN)
_NAMES_A_BUCKET = re.compile(r"s3://[^/]")


def require_usable(flow_datastore: Any, decorator: str, step: str) -> None:
    """Make sure, before a run starts, that its datastore can keep what `decorator` saves in `step`.

    `flow_datastore` is what Metaflow gives to `step_init`. Nothing is read or written. Raises StorageError, which says
    what to do.
    """
    try:
        _normalised(flow_datastore.TYPE, flow_datastore.datastore_root)
    except StorageError as error:
        raise StorageError(f"step {step} has @{decorator}, but {error}") from None


def store_of_flow(flow_datastore: Any) -> Store:
    """The store in the datastore of a flow, `flow_datastore` being what Metaflow gives to `step_init`.

    That is the datastore which the run uses, also if `--datastore` on the command line differs from the configuration.

    Raises StorageError for a type that is not supported.
    """
    return store_at(flow_datastore.TYPE, flow_datastore.datastore_root)


def store_at(kind: str, root: str | None) -> Store:
    """The store in a Metaflow datastore of type `kind` (`local` or `s3`) at `root`.

    Each root has one store object in a process.

    Raises StorageError for a type that is not supported, a root that is not configured, or one on S3 without a bucket.
    """
    return open_root(_normalised(kind, root))


def _normalised(kind: str, root: str | None) -> str:
    """The root for `open_root`. Raises as `store_at`."""
    if kind not in (*_LOCAL_TYPES, "s3"):
        raise StorageError(
            f"the datastore {kind} ({root}) cannot keep models and checkpoints yet; "
            "run the flow with --datastore s3 or --datastore local"
        )
    if not root:
        variable = f"METAFLOW_DATASTORE_SYSROOT_{kind.upper()}"
        raise StorageError(f"the datastore {kind} has no root; set {variable}")
    if kind == "s3" and not _NAMES_A_BUCKET.match(root):
        raise StorageError(
            f"the root {root!r} of the datastore s3 names no bucket; set METAFLOW_DATASTORE_SYSROOT_S3 to "
            "s3://BUCKET/PREFIX"
        )
    return root.rstrip("/") if kind == "s3" else os.path.abspath(root)


@functools.lru_cache(maxsize=16)
def open_root(root: str) -> Store:
    """The store at a normalised root: an absolute path, or `s3://BUCKET/PREFIX` without a slash at its end."""
    from metaflow_artifacts._store.store import Store, open_store

    _let_warnings_through()
    if not root.startswith("s3://"):
        return open_store(root)
    from metaflow import metaflow_config

    from metaflow_artifacts._storage.s3 import S3Storage

    storage = S3Storage(root, s3_client, sse=metaflow_config.S3_SERVER_SIDE_ENCRYPTION)
    # The connection is made while the task prepares its first save or load.
    threading.Thread(target=storage.connect, name="metaflow-artifacts-connect", daemon=True).start()
    return Store(storage)


def _let_warnings_through() -> None:
    """Exempt our warnings from the filter with which Metaflow's command line, and so every task, hides all warnings.

    Filters that the user has set after Metaflow keep their precedence.
    """
    hides_all = ("ignore", None, Warning, None, 0)
    shows_ours = ("default", None, ArtifactWarning, None, 0)
    if hides_all in warnings.filters and shows_ours not in warnings.filters:
        warnings.filterwarnings("default", category=ArtifactWarning)
        cast("list[Any]", warnings.filters).remove(shows_ours)
        cast("list[Any]", warnings.filters).insert(warnings.filters.index(hides_all), shows_ours)


def running_flow_datastore() -> Any:
    """Metaflow's flow datastore of the task that runs in this process; None outside of a task."""
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


def s3_client(patience: float | None = None) -> Any:
    """A boto3 client made as Metaflow makes its own.

    Endpoint, certificates, session and credentials provider are those of Metaflow's configuration. What the user
    configured there takes precedence over core's settings, and over `patience`, the seconds to wait for an answer.
    """
    from botocore.config import Config
    from metaflow import metaflow_config
    from metaflow.plugins.aws.aws_client import get_aws_client

    from metaflow_artifacts._storage.s3 import client_config

    # A copy, because Metaflow's provider changes the dict that it is given.
    params: dict[str, Any] = copy.deepcopy(metaflow_config.DATATOOLS_CLIENT_PARAMS or {})
    chosen = params.get("config") or {}
    config = client_config() if patience is None else client_config(read_timeout=patience)
    if _is_configured("S3_CLIENT_RETRY_CONFIG"):
        config = config.merge(Config(retries=metaflow_config.S3_CLIENT_RETRY_CONFIG))
    params["config"] = config.merge(chosen if isinstance(chosen, Config) else Config(**chosen))
    return get_aws_client("s3", session_vars=metaflow_config.DATATOOLS_SESSION_VARS, client_params=params)


def _is_configured(name: str) -> bool:
    from metaflow import metaflow_config_funcs

    variable = f"METAFLOW_{name}"
    sources = (os.environ, metaflow_config_funcs.METAFLOW_LOCAL_CONFIG, metaflow_config_funcs.METAFLOW_CONFIG)
    return any(variable in source for source in sources if source)
