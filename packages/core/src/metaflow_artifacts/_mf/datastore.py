"""How a Metaflow datastore becomes a store of core: root, credentials, and the datastore of the running flow."""

from __future__ import annotations

import copy
import functools
import os
import threading
import warnings
from typing import TYPE_CHECKING, Any, cast

from metaflow_artifacts._mf.roots import SPIN, azure_url, is_cloud, missing_sdks, normalised
from metaflow_artifacts.errors import ArtifactWarning, InvalidInput, StorageError

if TYPE_CHECKING:
    # Imported where it is used: every Metaflow process imports the decorators, and few of them use a store.
    from metaflow_artifacts._mf.store_config import StoreConfig
    from metaflow_artifacts._storage import Storage
    from metaflow_artifacts._store.store import Store
    from metaflow_artifacts._transfer.cache import Cache

__all__ = [
    "SPIN",
    "configured_cache",
    "configured_root",
    "open_root",
    "open_with",
    "place_of_flow",
    "require_client",
    "require_usable",
    "storage_at",
    "store_at",
    "store_of_flow",
    "store_of_task",
]


def require_usable(flow_datastore: Any, decorator: str, step: str) -> None:
    """Make sure, before a run starts, that its datastore can keep what `decorator` saves in `step`.

    `flow_datastore` is what Metaflow gives to `step_init`. Nothing is read or written. Raises StorageError, which says
    what to do: the type is not supported, its root names no bucket, or its SDK is not installed; InvalidInput if the
    limit of the node's cache is no number.
    """
    from metaflow_artifacts._mf.artifact_store import flow_store

    kind = flow_datastore.TYPE
    if flow_store(flow_datastore) is not None:
        # What the decorators save goes there, and was checked when the flow began.
        configured_cache()
        return
    try:
        normalised(kind, flow_datastore.datastore_root)
    except StorageError as error:
        raise StorageError(f"step {step} has @{decorator}, but {error}") from None
    if is_cloud(kind):
        configured_cache()
    missing, install = missing_sdks(kind)
    if missing:
        raise StorageError(
            f"step {step} has @{decorator}, but the datastore {kind} needs {' and '.join(missing)}: {install}"
        )


def store_of_flow(flow_datastore: Any) -> Store:
    """The store of a flow, `flow_datastore` being what Metaflow gives to `step_init`.

    That is the one that `@with_artifact_store` names, else the datastore which the run uses, also if `--datastore` on
    the command line differs from the configuration.

    Raises StorageError for a type that is not supported, InvalidInput for an artifact store that cannot be used.
    """
    return store_of_task(*place_of_flow(flow_datastore))


def place_of_flow(flow_datastore: Any) -> tuple[str, str | None]:
    """Type and root of the store of a flow, in Metaflow's words. Raises as `store_of_flow`."""
    from metaflow_artifacts._mf.artifact_store import flow_store

    of_flow = flow_store(flow_datastore)
    if of_flow is None:
        return flow_datastore.TYPE, flow_datastore.datastore_root
    config = of_flow.config()
    return config.kind, config.given_root


def store_at(kind: str, root: str | None) -> Store:
    """The store in a Metaflow datastore of type `kind` (`local`, `s3`, `azure` or `gs`) at `root`.

    Each root has one store object in a process, for each config with which it is reached (see `config_of`). A root of
    `azure` is `CONTAINER/PREFIX`, as Metaflow has it, or the root of a store.

    Raises StorageError for a type that is not supported, a root that is not configured, or one without a bucket.
    """
    return open_root(normalised(kind, root))


def store_of_task(kind: str, root: str | None) -> Store:
    """As `store_at`, for the store that a task writes to: it is reached as the task says, whatever a block says."""
    from metaflow_artifacts._mf.artifact_store import config_of_task

    found = normalised(kind, root)
    return open_with(found, config_of_task(found))


def configured_root(kind: str) -> str | None:
    """The root of the store in the cloud `kind` that Metaflow is configured for; None if it is for none."""
    from metaflow import metaflow_config

    root: str | None = getattr(metaflow_config, f"DATASTORE_SYSROOT_{kind.upper()}", None)
    if not root or (kind == "azure" and not metaflow_config.AZURE_STORAGE_BLOB_SERVICE_ENDPOINT):
        return None
    return azure_url(root.rstrip("/")) if kind == "azure" else root.rstrip("/")


def open_root(root: str) -> Store:
    """The store at a normalised root: an absolute path, or a URL (see `is_url`) without a slash at its end."""
    from metaflow_artifacts._mf.artifact_store import config_of

    return open_with(root, config_of(root))


@functools.lru_cache(maxsize=16)
def open_with(root: str, config: StoreConfig | None) -> Store:
    """The store at a normalised root, reached as `config` says, or else as Metaflow is configured."""
    from metaflow_artifacts._storage import is_url
    from metaflow_artifacts._store.store import Store

    _let_warnings_through()
    storage = storage_at(root, config=config)
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

    if not from_conf("ARTIFACTS_CACHE"):
        # Asked in all processes of a flow with a decorated step: without a cache, its modules are not imported.
        return None
    from metaflow_artifacts._transfer.cache import CACHE, CACHE_GB, cache_from

    return cache_from({name: from_conf(name.removeprefix("METAFLOW_")) for name in (CACHE, CACHE_GB)})


def storage_at(root: str, patience: float | None = None, config: StoreConfig | None = None) -> Storage:
    """The storage at a root, with the credentials and settings of `config`, or else of Metaflow's configuration.

    In a cloud, with `patience`, it waits at most that many seconds for an answer.
    """
    from metaflow_artifacts._storage import open_storage
    from metaflow_artifacts._storage.base import PATIENCE_S

    seconds = PATIENCE_S if patience is None else patience
    if root.startswith("s3://"):
        from metaflow import metaflow_config

        from metaflow_artifacts._storage.s3 import S3Storage

        client = StoreClient(root, config, patience) if config is not None else s3_client
        if config is None and patience is not None:
            client = functools.partial(s3_client, patience)
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


class StoreClient:
    """Makes the boto3 clients of one artifact store. A pickle has its root alone.

    The config that belongs to the root is looked up anew where the pickle is read, as in a worker process of a task.
    """

    pickles_without_credentials = True

    def __init__(self, root: str, config: StoreConfig | None = None, patience: float | None = None) -> None:
        self._root, self._config, self._patience = root, config, patience

    def __call__(self) -> Any:
        from metaflow_artifacts._mf.artifact_store import config_of

        return s3_client(self._patience, self._config or config_of(self._root))

    def __reduce__(self) -> tuple[Any, ...]:
        return StoreClient, (self._root, None, self._patience)

    @staticmethod
    def makes_plain_clients() -> bool:
        """Whether settings and keys describe the clients, so that another process can make them without Metaflow."""
        from metaflow.plugins.aws import aws_client

        # Others may register hooks with their clients. The provider is known when the first client is made.
        provider = aws_client.cached_provider_class
        return provider is aws_client.Boto3ClientProvider


def s3_client(patience: float | None = None, store: StoreConfig | None = None) -> Any:
    """A boto3 client made as Metaflow makes its own.

    Endpoint, certificates, session and credentials provider are those of Metaflow's configuration; where `store` says
    otherwise, that holds. What the user configured there takes precedence over core's settings, and over `patience`,
    the seconds to wait for an answer. A role is assumed again whenever its credentials are about to expire.

    Raises InvalidInput if boto3 takes no such options.
    """
    from botocore.config import Config
    from metaflow import metaflow_config
    from metaflow.plugins.aws.aws_client import get_aws_client

    from metaflow_artifacts._storage.s3 import client_config

    options = store.options if store is not None else {}
    # A copy, because Metaflow's provider changes the dict that it is given.
    params: dict[str, Any] = copy.deepcopy(
        options.get("client_params") or metaflow_config.DATATOOLS_CLIENT_PARAMS or {}
    )
    config = client_config() if patience is None else client_config(read_timeout=patience)
    if _is_configured("S3_CLIENT_RETRY_CONFIG"):
        config = config.merge(Config(retries=metaflow_config.S3_CLIENT_RETRY_CONFIG))
    session_vars = options.get("session_vars") or metaflow_config.DATATOOLS_SESSION_VARS
    role = options.get("role_arn")
    try:
        chosen = params.get("config") or {}
        params["config"] = config.merge(chosen if isinstance(chosen, Config) else Config(**chosen))
        if role is not None and "aws_access_key_id" not in params:
            _demand_credentials(role)
        return get_aws_client("s3", role_arn=role, session_vars=session_vars, client_params=params)
    except TypeError as error:
        if store is None:
            raise
        raise InvalidInput(f"no S3 client can be made for {store.root} with client_params as given: {error}") from error


s3_client.makes_plain_clients = StoreClient.makes_plain_clients  # type: ignore[attr-defined]


def require_client(config: StoreConfig, where: str) -> None:
    """Make sure that a client can be made for an artifact store. No request is made.

    Raises InvalidInput, whose message begins with `where`. A role is not assumed: the credentials for that may be known
    in the tasks only.
    """
    if config.kind != "s3":
        return
    from botocore.exceptions import BotoCoreError

    try:
        s3_client(None, config.without_role())
    except (ValueError, BotoCoreError) as error:
        raise InvalidInput(f"{where}: {error}") from error


def _demand_credentials(role: str) -> None:
    from boto3.session import Session

    # Metaflow's provider takes it for granted that there are some.
    if Session().get_credentials() is None:
        raise StorageError(
            f"no AWS credentials are found with which the role {role} could be assumed; configure some as boto3 reads "
            "them (AWS_ACCESS_KEY_ID, a profile, or the role of the machine)"
        )


def _is_configured(name: str) -> bool:
    from metaflow import metaflow_config_funcs

    variable = f"METAFLOW_{name}"
    sources = (os.environ, metaflow_config_funcs.METAFLOW_LOCAL_CONFIG, metaflow_config_funcs.METAFLOW_CONFIG)
    return any(variable in source for source in sources if source)
