"""Which store a call means: that of the running task, of Metaflow's configuration, or of a reference.

This module is above `datastore` (how a Metaflow datastore becomes a store) and `task` (which task runs): it uses both.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from metaflow_artifacts._format.keys import CheckpointKey
from metaflow_artifacts._mf.artifact_store import (
    STORE_ROOT,
    STORE_TYPE,
    config_of,
    inherited_store,
    open_block,
    running_flow_datastore,
)
from metaflow_artifacts._mf.datastore import (
    SPIN,
    configured_root,
    open_root,
    open_with,
    storage_at,
    store_at,
    store_of_flow,
)
from metaflow_artifacts._mf.store_config import kind_of
from metaflow_artifacts._mf.task import TaskIdentity
from metaflow_artifacts._text import shown_url
from metaflow_artifacts.errors import (
    ArtifactError,
    ArtifactNotFound,
    CorruptArtifact,
    InvalidInput,
    StorageError,
    TransientStorageError,
    UsageError,
)

if TYPE_CHECKING:
    # Imported where they are used: every Metaflow process imports the decorators, and few of them use a store.
    from metaflow_artifacts._mf.store_config import StoreConfig
    from metaflow_artifacts._storage import Storage
    from metaflow_artifacts._store.references import ParsedReference, Reference
    from metaflow_artifacts._store.store import Store

__all__ = ["default_store", "pointing_to_blocks", "store_for", "store_of_block", "store_of_metadata"]

_FIRST_LOOKUP_S = 5.0
"""Seconds to wait for the root that a reference names, which may be gone, before the configured store is asked."""
_HINT = "; what a flow with @with_artifact_store has saved is used in `with artifact_store_from(run=…, config=…)`"


def default_store() -> Store:
    """The store for code outside of decorated steps.

    In a block of `artifact_store_from`, it is that of the block. Else it is that of the task that runs in this process,
    else that of the task whose subprocess this is, else that of Metaflow's configuration
    (METAFLOW_DEFAULT_DATASTORE).

    Raises StorageError where nothing is configured or found.
    """
    block = store_of_block()
    if block is not None:
        return block
    running = running_flow_datastore()
    if running is not None:
        return store_of_flow(running)
    task = TaskIdentity.from_environment()
    if task is not None:
        return task.store()
    inherited = inherited_store()
    return open_with(inherited.root, inherited) if inherited is not None else _configured_store()


def store_of_block() -> Store | None:
    """The store that the open block of `artifact_store_from` means; None if none is open.

    Raises UsageError if the blocks of several threads mean different ones.
    """
    block = open_block()
    if block is None:
        return None
    if block.config is not None:
        return open_root(block.config.root)
    running = running_flow_datastore()
    return store_at(running.TYPE, running.datastore_root) if running is not None else _configured_store()


def _configured_store() -> Store:
    from metaflow import metaflow_config

    kind = metaflow_config.DEFAULT_DATASTORE
    if kind == "local":
        return store_at(kind, _configured_local_root())
    return store_at(kind, getattr(metaflow_config, f"DATASTORE_SYSROOT_{kind.upper()}", None))


def store_of_metadata(metadata: Mapping[str, str]) -> Store:
    """The store of a past task, as Metaflow's metadata about it, or metaflow-checkpoint, names it.

    An open block of `artifact_store_from` takes its place.

    It is the configured one if the metadata names none, or a local directory that is not on this machine. Raises
    StorageError, and InvalidInput for a type that is unknown.
    """
    block = store_of_block()
    if block is not None:
        return block
    for type_field, root_field in ((STORE_TYPE, STORE_ROOT), ("ds-type", "ds-root")):
        kind, root = metadata.get(type_field), metadata.get(root_field)
        if kind and root and (kind != "local" or os.path.isdir(root)):
            # metaflow-checkpoint has more names for types than Metaflow.
            return store_at(kind_of(kind, f"the task's {STORE_TYPE}") if type_field == STORE_TYPE else kind, root)
    return default_store()


@contextmanager
def pointing_to_blocks(store: Store) -> Iterator[None]:
    """Let an error of a store that Metaflow is not configured for say how the store of a flow is reached."""
    try:
        yield
    except StorageError as error:
        kind = {"s3": "s3", "gs": "gs", "http": "azure", "https": "azure"}.get(store.root.partition("://")[0])
        if kind is None or open_block() is not None or store.root == configured_root(kind):
            raise
        raise type(error)(f"{error}{_HINT}") from error


def store_for(reference: Reference, default: Store | None = None) -> Store:
    """The store that holds the artifact which `reference` names.

    For a key, and for a `url` below the root of `default`, this is `default`; if none is given, `default_store()`. An
    open block of `artifact_store_from` takes the place of `default`. In a step that is spun, which saves to a store of
    its own, a key that only the configured store holds is found there.

    A `url` below another root is looked up there, with one request and for at most 5 s. `default` is used instead if it
    holds this artifact and that root does not: nothing is stored there, the bucket is gone, refuses access or cannot
    be reached, or the directory is not on this machine. A `url` that is given as text, and not in a reference, does not
    tell checkpoints with the same key apart, so that `default` is then used for models only.

    Raises InvalidReference for a dict that is not a reference, ArtifactNotFound if neither store holds the artifact,
    and StorageError if that cannot be known. The message names both roots and what was found at each.
    """
    from metaflow_artifacts._storage import is_url
    from metaflow_artifacts._store.references import ParsedReference

    parsed = ParsedReference.of(reference)
    root = parsed.root
    default = store_of_block() or default
    if root is None:
        return _holding_key(default or default_store(), parsed)
    if "://" in root and not is_url(root):
        if parsed.artifact is None:
            raise StorageError(
                f"the root {shown_url(root)} cannot be read by this version; pass the key alone, {parsed.key}, to "
                "look for it in the configured datastore"
            )
        return _holding_key(default or default_store(), parsed)
    no_default: ArtifactError | None = None
    if default is None:
        try:
            default = default_store()
        except ArtifactError as error:
            no_default = error
    if default is not None and _is_same_root(root, default.root):
        return default
    return _found(root, parsed, default, no_default)


def _holding_key(store: Store, wanted: ParsedReference) -> Store:
    """`store`; in a step that is spun, the configured store if only that one holds the key."""
    from metaflow_artifacts._store.foreign import holds

    if not _is_spun() or holds(store.storage, wanted):
        return store
    configured = _configured_store()
    return configured if holds(configured.storage, wanted) else store


def _is_spun() -> bool:
    """Whether this process, or the one that started it, runs a step with `spin`."""
    running = running_flow_datastore()
    if running is not None:
        return bool(running.TYPE == SPIN)
    task = TaskIdentity.from_environment()
    return task is not None and task.datastore_type == SPIN


def _found(root: str, wanted: ParsedReference, default: Store | None, no_default: ArtifactError | None) -> Store:
    """The store at `root` if it holds what is wanted, else `default` if that does.

    `no_default` is the reason why there is no `default`.
    """
    key = wanted.key
    try:
        return _holding(root, wanted, _FIRST_LOOKUP_S)
    except (ArtifactNotFound, InvalidInput, StorageError) as error:
        there = error
    try:
        if default is None:
            raise no_default or StorageError("no datastore is configured")
        _demand(default, wanted)
    except (ArtifactNotFound, StorageError, UsageError) as error:
        if isinstance(there, TransientStorageError):
            # No other store holds it, so the root of the reference is asked again, for as long as every load waits.
            try:
                return _holding(root, wanted)
            except (ArtifactNotFound, StorageError) as again:
                there = again
        raise _in_neither(f"{root}/{key}", key, there, default, error) from error
    return default


def _is_same_root(one: str, other: str) -> bool:
    """Whether two roots name the same directory or prefix; no request is made."""
    from metaflow_artifacts._storage import is_url

    if is_url(one) or is_url(other):
        return one.rstrip("/") == other.rstrip("/")
    return os.path.realpath(one) == os.path.realpath(other)


def _holding(root: str, wanted: ParsedReference, patience: float | None = None) -> Store:
    """The store at `root`, which must hold what is wanted; `patience` as in `_storage`.

    Raises ArtifactNotFound if it holds none, InvalidInput for a root that breaks a rule, StorageError if the root
    cannot be reached.
    """
    from metaflow_artifacts._storage import is_url
    from metaflow_artifacts._store.foreign import holds

    if not is_url(root) and not os.path.isdir(root):
        raise ArtifactNotFound(f"{root} is no directory on this machine")
    storage = _storage(root, patience, config_of(root))
    if not holds(storage, wanted):
        raise ArtifactNotFound(f"nothing is stored at {storage.url(wanted.key)}")
    return open_root(root)


@functools.lru_cache(maxsize=16)
def _storage(root: str, patience: float | None, config: StoreConfig | None) -> Storage:
    """The storage at `root`. In a cloud, with `patience`, it waits at most that many seconds for an answer."""
    return open_with(root, config).storage if patience is None else storage_at(root, patience, config)


def _demand(store: Store, wanted: ParsedReference) -> None:
    """Raise ArtifactNotFound unless `store` holds this artifact.

    The key alone does not tell: two deployments of Metaflow that both count their runs from 1 write the same keys of
    checkpoints.
    """
    from metaflow_artifacts._store.references import differing

    try:
        found = store.info(wanted.key)
    except CorruptArtifact:
        # The load raises an error that says more.
        return
    artifact = wanted.artifact
    if artifact is None:
        if isinstance(wanted.parts, CheckpointKey):
            raise ArtifactNotFound(
                "a checkpoint is stored there at the same key, and a url does not tell whether it is the same one; "
                "pass the key alone for that one"
            )
        return
    if names := differing(artifact, found):
        differences = ", ".join(f"{name} {found.get(name)!r} in place of {artifact.get(name)!r}" for name in names)
        raise ArtifactNotFound(f"another artifact is stored there ({differences})")


def _in_neither(url: str, key: str, there: ArtifactError, default: Store | None, here: ArtifactError) -> ArtifactError:
    from metaflow_artifacts._storage import is_url

    second = "no datastore is configured" if default is None else f"in the configured datastore, {default.root}"
    message = f"{key} cannot be found: at {shown_url(url)}, as the reference says: {there}; and {second}: {here}"
    if is_url(url) and open_block() is None:
        message += _HINT
    if isinstance(there, ArtifactNotFound) and isinstance(here, ArtifactNotFound):
        return ArtifactNotFound(message)
    passing = any(isinstance(error, TransientStorageError) for error in (there, here))
    return (TransientStorageError if passing else StorageError)(message)


def _configured_local_root() -> str:
    from metaflow.plugins.datastores.local_storage import LocalStorage

    root: str | None = LocalStorage.get_datastore_root_from_config(str, create_on_absent=False)
    if root is None:
        raise StorageError(
            f"no local datastore (a directory .metaflow) in {os.getcwd()} or above it; "
            "change to where the flow ran, or set METAFLOW_DATASTORE_SYSROOT_LOCAL"
        )
    return root
