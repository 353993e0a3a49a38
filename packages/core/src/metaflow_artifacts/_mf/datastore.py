"""The datastore that Metaflow uses, as a core store: a running flow's, a past task's, the configured one."""

from __future__ import annotations

import copy
import functools
import os
import re
import threading
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from metaflow_artifacts.errors import (
    ArtifactError,
    ArtifactNotFound,
    ArtifactWarning,
    CorruptArtifact,
    InvalidInput,
    StorageError,
    TransientStorageError,
    UsageError,
)

if TYPE_CHECKING:
    # Imported where it is used: every Metaflow process imports the decorators, and few of them use a store.
    from metaflow_artifacts._format.reference import ModelArtifact
    from metaflow_artifacts._storage import Storage
    from metaflow_artifacts._store.store import Store

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
_NAMES_A_BUCKET = re.compile(r"s3://[^/]")
_PATIENCE = 5.0
"""Seconds for a place that a reference names and that may be gone, before the configured store is asked."""
_SAME = ("created_on", "size", "pathspec")
"""What tells two artifacts at one key of two stores apart."""


def store_of_flow(flow_datastore: Any) -> Store:
    """The store in a flow's datastore, as `step_init` gets it, also where the command line chose another one.

    Raises StorageError for a type that is not supported.
    """
    return store_at(flow_datastore.TYPE, flow_datastore.datastore_root)


def store_at(kind: str, root: str | None) -> Store:
    """The store in a Metaflow datastore of type `kind` (`local` or `s3`) at `root`; one object in a process.

    Raises StorageError for a type that is not supported, a root that is not configured, or one on S3 without a bucket.
    """
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
    return _open(root.rstrip("/") if kind == "s3" else os.path.abspath(root))


def default_store() -> Store:
    """The store outside of decorated steps: of the task that runs in this process, of the task whose
    subprocess this is, or else of Metaflow's configuration (METAFLOW_DEFAULT_DATASTORE).

    Raises StorageError where nothing is configured or found.
    """
    running = running_flow_datastore()
    if running is not None:
        return store_of_flow(running)
    from metaflow_artifacts._mf.task import TaskIdentity

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
    """The store that holds what `reference` names: for a key, and a `url` below the same root, `default`.

    Without a `default`, it is what `default_store` gives. A `url` below another root is looked up there, with one
    request and for at most 5 s; where it leads to nothing, to a bucket that is gone, refused or out of reach, and for
    a directory that is not on this machine, `default` is taken if it holds this artifact.

    Raises InvalidReference for a dict that is no reference, ArtifactNotFound where neither store holds the artifact,
    and StorageError where that cannot be known; the message has both places and what was found at each.
    """
    from metaflow_artifacts._format.reference import parse_reference
    from metaflow_artifacts._store.store import root_of

    root = root_of(reference)
    if root is None or isinstance(reference, str) or ("://" in root and not root.startswith("s3://")):
        return default or default_store()
    no_default: ArtifactError | None = None
    if default is None:
        try:
            default = default_store()
        except ArtifactError as error:
            no_default = error
    if default is not None and _is_same(root, default.root):
        return default
    return _found(root, parse_reference(reference), default, no_default)


def _found(root: str, artifact: ModelArtifact, default: Store | None, no_default: ArtifactError | None) -> Store:
    """The store at `root`, or else `default`, whichever holds `artifact`; `no_default` says why there is none."""
    key = artifact["key"]
    try:
        return _holding(root, key, _PATIENCE)
    except (ArtifactNotFound, InvalidInput, StorageError) as error:
        there = error
    try:
        if default is None:
            raise no_default or StorageError("no datastore is configured")
        _demand(default, artifact)
    except (ArtifactNotFound, StorageError, UsageError) as error:
        if isinstance(there, TransientStorageError):
            # Nothing else holds it: the first place is asked once more, as patiently as every load asks.
            try:
                return _holding(root, key)
            except (ArtifactNotFound, StorageError) as again:
                there = again
        raise _in_neither(artifact, there, default, error) from error
    return default


def _is_same(one: str, other: str) -> bool:
    """Whether two roots name one place, without a request."""
    if one.startswith("s3://") or other.startswith("s3://"):
        return one.rstrip("/") == other.rstrip("/")
    return os.path.realpath(one) == os.path.realpath(other)


def _holding(root: str, key: str, patience: float | None = None) -> Store:
    """The store at `root`, where it holds an object at `key`; `patience` as in `_storage`.

    Raises ArtifactNotFound, InvalidInput for a root that breaks a rule, StorageError where it cannot be asked.
    """
    if not root.startswith("s3://") and not os.path.isdir(root):
        raise ArtifactNotFound(f"{root} is no directory on this machine")
    storage = _storage(root, patience)
    if storage.stat(key) is None:
        raise ArtifactNotFound(f"nothing is stored at {storage.url(key)}")
    return _open(root)


@functools.lru_cache(maxsize=16)
def _storage(root: str, patience: float | None) -> Storage:
    """The storage at `root`; one that waits `patience` seconds for an answer, where it may be gone."""
    if patience is None or not root.startswith("s3://"):
        return _open(root).storage
    from metaflow_artifacts._storage.s3 import S3Storage

    return S3Storage(root, functools.partial(s3_client, patience), patience=patience)


def _demand(store: Store, artifact: ModelArtifact) -> None:
    """Raise ArtifactNotFound unless `store` holds this very artifact.

    Keys of checkpoints are unique within one deployment of Metaflow: another one may count its runs from 1 too.
    """
    try:
        found = store.info(artifact["key"])
    except CorruptArtifact:
        # The load says more about it.
        return
    differing = [name for name in _SAME if found.get(name) != artifact.get(name)]
    if differing:
        told = ", ".join(f"{name} {found.get(name)!r} in place of {artifact.get(name)!r}" for name in differing)
        raise ArtifactNotFound(f"another artifact is stored there ({told})")


def _in_neither(
    artifact: ModelArtifact, there: ArtifactError, default: Store | None, here: ArtifactError
) -> ArtifactError:
    place = "no datastore is configured" if default is None else f"in the configured datastore, {default.root}"
    message = (
        f"{artifact['key']} cannot be found: at {artifact['url']}, as the reference says: {there}; and {place}: {here}"
    )
    if isinstance(there, ArtifactNotFound) and isinstance(here, ArtifactNotFound):
        return ArtifactNotFound(message)
    passing = any(isinstance(error, TransientStorageError) for error in (there, here))
    return (TransientStorageError if passing else StorageError)(message)


def store_of_task(task: Any) -> Store:
    """The store that a past task of Metaflow's client wrote to, as its metadata says."""
    metadata = task.metadata_dict
    kind, root = metadata.get("ds-type"), metadata.get("ds-root")
    if kind is None:
        raise UsageError(f"the task {task.pathspec} has no record of its datastore; did it ever start?")
    return store_at(kind, root)


@functools.lru_cache(maxsize=16)
def _open(root: str) -> Store:
    from metaflow_artifacts._store.store import Store, open_store

    _let_warnings_through()
    if not root.startswith("s3://"):
        return open_store(root)
    from metaflow import metaflow_config

    from metaflow_artifacts._storage.s3 import S3Storage

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


def s3_client(patience: float | None = None) -> Any:
    """A boto3 client as Metaflow makes its own: endpoint, certificates, session and credentials provider from
    its configuration. What the user chose there wins over core's own settings, and over `patience`, the seconds
    that it waits for an answer."""
    from botocore.config import Config
    from metaflow import metaflow_config
    from metaflow.plugins.aws.aws_client import get_aws_client

    from metaflow_artifacts._storage.s3 import client_config

    # A copy: Metaflow's provider writes into what it is given.
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
