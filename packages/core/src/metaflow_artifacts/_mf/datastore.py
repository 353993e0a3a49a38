"""How a Metaflow datastore becomes a store of core: root, credentials, and the datastore of the running flow."""

from __future__ import annotations

import copy
import functools
import os
import re
import threading
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from metaflow_artifacts.errors import ArtifactWarning, StorageError

if TYPE_CHECKING:
    # Imported where it is used: every Metaflow process imports the decorators, and few of them use a store.
    from metaflow_artifacts._storage import Storage
    from metaflow_artifacts._store.store import Store
    from metaflow_artifacts._transfer.cache import Cache

__all__ = [
    "SPIN",
    "configured_cache",
    "configured_root",
    "open_root",
    "require_usable",
    "running_flow_datastore",
    "storage_at",
    "store_at",
    "store_of_flow",
]

SPIN = "spin"
"""The type of the datastore of a step that is run with `spin`: a directory `.metaflow_spin`."""
_LOCAL_TYPES = ("local", SPIN)
_NAMES_A_BUCKET = {
    "s3": (re.compile(r"s3://[^/]"), "bucket", "s3://BUCKET/PREFIX"),
    "gs": (re.compile(r"gs://[^/]"), "bucket", "gs://BUCKET/PREFIX"),
    "azure": (re.compile(r"https?://|[^/:]+(/|$)"), "container", "CONTAINER/PREFIX"),
}
"""For each cloud: what its root looks like, and in words."""
_SDKS = {
    "azure": (("azure.storage.blob", "azure-storage-blob"), ("azure.identity", "azure-identity")),
    "gs": (("google.cloud.storage", "google-cloud-storage"),),
}
"""For each cloud: modules that must be installed, and the packages that bring them."""


def require_usable(flow_datastore: Any, decorator: str, step: str) -> None:
    """Make sure, before a run starts, that its datastore can keep what `decorator` saves in `step`.

    `flow_datastore` is what Metaflow gives to `step_init`. Nothing is read or written. Raises StorageError, which says
    what to do: the type is not supported, its root names no bucket, or its SDK is not installed; InvalidInput if the
    limit of the node's cache is no number.
    """
    kind = flow_datastore.TYPE
    try:
        _normalised(kind, flow_datastore.datastore_root)
    except StorageError as error:
        raise StorageError(f"step {step} has @{decorator}, but {error}") from None
    missing = [package for module, package in _SDKS.get(kind, ()) if not _is_installed(module)]
    if kind in _NAMES_A_BUCKET:
        configured_cache()
    if missing:
        raise StorageError(
            f"step {step} has @{decorator}, but the datastore {kind} needs {' and '.join(missing)}: pip install "
            f"{' '.join(missing)} (or metaflow-artifacts[{'gcs' if kind == 'gs' else kind}])"
        )


def store_of_flow(flow_datastore: Any) -> Store:
    """The store in the datastore of a flow, `flow_datastore` being what Metaflow gives to `step_init`.

    That is the datastore which the run uses, also if `--datastore` on the command line differs from the configuration.

    Raises StorageError for a type that is not supported.
    """
    return store_at(flow_datastore.TYPE, flow_datastore.datastore_root)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        # One of the packages above it.
        return False


def store_at(kind: str, root: str | None) -> Store:
    """The store in a Metaflow datastore of type `kind` (`local`, `s3`, `azure` or `gs`) at `root`.

    Each root has one store object in a process. A root of `azure` is `CONTAINER/PREFIX`, as Metaflow has it, or the
    root of a store.

    Raises StorageError for a type that is not supported, a root that is not configured, or one without a bucket.
    """
    return open_root(_normalised(kind, root))


def _normalised(kind: str, root: str | None) -> str:
    """The root for `open_root`. Raises as `store_at`."""
    if kind not in (*_LOCAL_TYPES, *_NAMES_A_BUCKET):
        raise StorageError(
            f"the datastore {kind} ({root}) cannot keep models and checkpoints yet; "
            "run the flow with --datastore s3, azure, gs or local"
        )
    variable = f"METAFLOW_DATASTORE_SYSROOT_{kind.upper()}"
    if not root:
        raise StorageError(f"the datastore {kind} has no root; set {variable}")
    if kind not in _NAMES_A_BUCKET:
        return os.path.abspath(root)
    pattern, place, form = _NAMES_A_BUCKET[kind]
    if not pattern.match(root):
        raise StorageError(f"the root {root!r} of the datastore {kind} names no {place}; set {variable} to {form}")
    root = root.rstrip("/")
    return _azure_url(root) if kind == "azure" and "://" not in root else root


def configured_root(kind: str) -> str | None:
    """The root of the store in the cloud `kind` that Metaflow is configured for; None if it is for none."""
    from metaflow import metaflow_config

    root: str | None = getattr(metaflow_config, f"DATASTORE_SYSROOT_{kind.upper()}", None)
    if not root or (kind == "azure" and not metaflow_config.AZURE_STORAGE_BLOB_SERVICE_ENDPOINT):
        return None
    return _azure_url(root.rstrip("/")) if kind == "azure" else root.rstrip("/")


def _azure_url(root: str) -> str:
    """The root of a store, from Metaflow's `CONTAINER/PREFIX`."""
    from metaflow import metaflow_config

    endpoint = metaflow_config.AZURE_STORAGE_BLOB_SERVICE_ENDPOINT
    if not endpoint:
        raise StorageError("the datastore azure has no endpoint; set METAFLOW_AZURE_STORAGE_BLOB_SERVICE_ENDPOINT")
    return f"{endpoint.rstrip('/')}/{root}"


@functools.lru_cache(maxsize=16)
def open_root(root: str) -> Store:
    """The store at a normalised root: an absolute path, or a URL (see `is_url`) without a slash at its end."""
    from metaflow_artifacts._storage import is_url
    from metaflow_artifacts._store.store import Store

    _let_warnings_through()
    storage = storage_at(root)
    if is_url(root):
        # The connection is made while the task prepares its first save or load.
        connect: Any = getattr(storage, "connect", None)
        threading.Thread(target=connect, name="metaflow-artifacts-connect", daemon=True).start()
    return Store(storage, cache=configured_cache() if is_url(root) else None)


def configured_cache() -> Cache | None:
    """The node's cache that Metaflow's configuration, or the environment, names; None for none.

    Raises InvalidInput for a limit that is no number, and a directory that is no path.
    """
    from metaflow.metaflow_config_funcs import from_conf

    from metaflow_artifacts._transfer.cache import CACHE, CACHE_GB, cache_from

    return cache_from({name: from_conf(name.removeprefix("METAFLOW_")) for name in (CACHE, CACHE_GB)})


def storage_at(root: str, patience: float | None = None) -> Storage:
    """The storage at a root, with the credentials and settings of Metaflow's configuration.

    In a cloud, with `patience`, it waits at most that many seconds for an answer.
    """
    from metaflow_artifacts._storage import open_storage
    from metaflow_artifacts._storage.base import PATIENCE_S

    seconds = PATIENCE_S if patience is None else patience
    if root.startswith("s3://"):
        from metaflow import metaflow_config

        from metaflow_artifacts._storage.s3 import S3Storage

        client = s3_client if patience is None else functools.partial(s3_client, patience)
        return S3Storage(root, client, sse=metaflow_config.S3_SERVER_SIDE_ENCRYPTION, patience=seconds)
    if root.startswith("gs://"):
        from metaflow_artifacts._storage.gcs import GcsStorage

        return GcsStorage(root, _gcs_credentials, patience=seconds)
    if root.startswith(("https://", "http://")):
        from metaflow import metaflow_config

        from metaflow_artifacts._storage.azure import AzureStorage

        endpoint = metaflow_config.AZURE_STORAGE_BLOB_SERVICE_ENDPOINT
        return AzureStorage(root, _azure_credential, endpoint=endpoint, patience=seconds)
    return open_storage(root)


def _azure_credential() -> Any:
    """The credential of Metaflow's provider."""
    from metaflow.plugins.azure.azure_credential import create_cacheable_azure_credential

    return create_cacheable_azure_credential()


def _gcs_credentials() -> tuple[Any, str | None]:
    """The credentials of Metaflow's provider, and their project."""
    from metaflow.plugins.gcp.gs_storage_client_factory import get_credentials

    from metaflow_artifacts._storage.gcs_client import SCOPES

    credentials, project = get_credentials(list(SCOPES))
    return credentials, project


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
