"""Finds the store that a command works on, from `--root`, the keys, or Metaflow's configuration."""

from __future__ import annotations

import argparse
import os
import re
from importlib.util import find_spec

from metaflow_artifacts._cli.s3_settings import plain_client
from metaflow_artifacts._format.foreign import parse_any_key
from metaflow_artifacts._layout import TOP_DIRECTORIES
from metaflow_artifacts._storage import is_url
from metaflow_artifacts._store.references import split_url
from metaflow_artifacts._store.store import Store, open_store
from metaflow_artifacts._text import public_url
from metaflow_artifacts.errors import ArtifactNotFound, InvalidInput, StorageError

__all__ = ["configured_store", "is_pattern", "missing_store", "resolve", "store_of", "target_of"]

_KINDS = {"s3": "s3", "gs": "gs", "https": "azure", "http": "azure"}
"""Metaflow's name of the datastore, by the scheme of a root."""
_NAMED = {
    "s3": "s3://bucket/prefix",
    "gs": "gs://bucket/prefix",
    "https": "https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX",
    "http": "https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX",
}
_ALMOST_A_URL = re.compile(r"(s3|gs|https?)//", re.IGNORECASE)
_FORMS = "a directory, s3://bucket/prefix, gs://bucket/prefix, or the address of an Azure container"


def store_of(options: argparse.Namespace) -> Store:
    """The store at `--root`, or the one that Metaflow is configured for.

    Raises ArtifactNotFound if there is no store; the message names a store nearby, if there is one. Raises StorageError
    if the store cannot be used.
    """
    store = _open(options)
    _demand_store(store)
    return store


def configured_store(root: str | os.PathLike[str]) -> Store:
    """The store below `root`, as `open_store` takes it, reached as Metaflow is configured.

    In a cloud, that is with Metaflow's endpoint, credentials, encryption and cache. Where Metaflow is not installed, it
    is as with `open_store`. Nothing is read or written yet.

    Raises InvalidInput for a root of another kind, and StorageError for a URL that names no bucket, or an address of
    Azure that no credentials are sent to.
    """
    text = os.fspath(root)
    if not is_url(text) or find_spec("metaflow") is None:
        return open_store(root)
    from metaflow_artifacts._mf.datastore import store_at

    return store_at(_KINDS[text.partition(":")[0]], text)


def _demand_store(store: Store) -> None:
    """Raise ArtifactNotFound if the root holds no store; the message names the likely one.

    In a cloud, only a listing shows that. Commands with keys do without it, until nothing is stored at a key.
    """
    if not is_url(store.root):
        _demand_directories(store.root)
    elif not _holds_objects(store):
        raise _holds_nothing(store.root, _configured_root(store.root))


def _holds_objects(store: Store) -> bool:
    return any(True for name in TOP_DIRECTORIES for _ in store.storage.list(f"{name}/"))


def target_of(options: argparse.Namespace) -> tuple[Store, bool]:
    """The store at `--to`, which need not exist yet, and whether it holds anything.

    Raises InvalidInput for a text that is no root, or that looks like a misspelt URL: a directory of that name would be
    made. Raises StorageError if the store cannot be used.
    """
    root: str = options.to
    if not root.strip():
        raise InvalidInput(f"--to is empty; pass {_FORMS}")
    if root != root.strip() or _ALMOST_A_URL.match(root):
        raise InvalidInput(
            f"--to {public_url(root)!r} looks like a misspelt URL; pass {_FORMS} (a directory as ./NAME)"
        )
    try:
        store = _in_cloud(root, "--to")
    except ArtifactNotFound as error:
        raise InvalidInput(str(error)) from error
    if store is not None:
        return store, _holds_objects(store)
    store = open_store(root)
    return store, _holds_a_store(store.root)


def missing_store(options: argparse.Namespace) -> str | None:
    """Why nothing is stored at a key that was asked for, if the reason is that the root holds no store."""
    if not is_url(getattr(options, "root", None) or ""):
        return None
    try:
        _demand_store(_open(options))
    except ArtifactNotFound as error:
        return str(error)
    except StorageError:
        # What was wrong with the key is said already.
        pass
    return None


def _open(options: argparse.Namespace) -> Store:
    root: str | None = options.root
    if root is None:
        if find_spec("metaflow") is None:
            raise StorageError(f"no store is given; pass --root: {_FORMS}")
        from metaflow_artifacts._mf.stores import default_store

        try:
            return default_store()
        except StorageError as error:
            raise type(error)(f"{error}; or pass --root") from error
    store = _in_cloud(root, "--root")
    if store is not None:
        return store
    if not root:
        raise ArtifactNotFound(f"--root is empty; pass {_FORMS}")
    if not os.path.isdir(root):
        found = "looks like a misspelt URL" if _ALMOST_A_URL.match(root) else "there is no such directory"
        shown = public_url(root) if "//" in root else root
        raise ArtifactNotFound(f"{shown}: {found}; pass the root of an existing store: {_FORMS}")
    _demand_directories(root)
    return open_store(root)


def _in_cloud(root: str, option: str) -> Store | None:
    """The store at a URL; None if the root is a path."""
    scheme = root.partition(":")[0]
    if scheme not in _KINDS or not root[len(scheme) :].startswith(":"):
        return None
    if not is_url(root) or not root[len(scheme) + 3 :].split("/")[0]:
        raise ArtifactNotFound(f"{option} {public_url(root)!r} names no bucket; pass {_NAMED[scheme]}{_instead(root)}")
    if find_spec("metaflow") is not None:
        client = plain_client() if scheme == "s3" else None
        if client is not None:
            return open_store(root, client=client)
        # Metaflow's configuration has the endpoint, the credentials and the encryption.
        from metaflow_artifacts._mf.datastore import store_at

        return store_at(_KINDS[scheme], root)
    return open_store(root)


def _demand_directories(root: str) -> None:
    """Raise ArtifactNotFound if a directory holds no store, and StorageError if that cannot be seen."""
    if _holds_a_store(root):
        return
    try:
        os.stat(os.path.join(root, TOP_DIRECTORIES[0]))
    except PermissionError as error:
        raise StorageError(f"cannot read {root}: permission denied; check owner and mode") from error
    except OSError:
        pass
    raise _holds_nothing(root, _near(root))


def _holds_a_store(directory: str) -> bool:
    return any(os.path.isdir(os.path.join(directory, name)) for name in TOP_DIRECTORIES)


def _near(directory: str) -> str | None:
    """The nearest store in the directory or a directory above it, also in their `.metaflow`; None if there is none."""
    above = os.path.abspath(directory)
    while True:
        for candidate in (os.path.join(above, ".metaflow"), above):
            if _holds_a_store(candidate):
                return candidate
        if above == os.path.dirname(above):
            return None
        above = os.path.dirname(above)


def _holds_nothing(root: str, near: str | None) -> ArtifactNotFound:
    hint = f"pass --root {near}" if near and near != root else "pass the root of an existing store"
    return ArtifactNotFound(f"nothing is stored at {root}: it has none of {', '.join(TOP_DIRECTORIES)}; {hint}")


def _configured_root(root: str) -> str | None:
    """The root in the same cloud that Metaflow is configured for."""
    if find_spec("metaflow") is None:
        return None
    from metaflow_artifacts._mf.datastore import configured_root

    return configured_root(_KINDS[root.partition(":")[0]])


def _instead(root: str) -> str:
    configured = _configured_root(root)
    return f", such as {configured}, which Metaflow is configured for" if configured else ""


def is_pattern(key: str) -> bool:
    """Whether a text has wildcards, which no key has."""
    return any(character in key for character in "*?[")


def resolve(options: argparse.Namespace, keys: list[str], *, patterns: bool = False) -> tuple[Store, list[str]]:
    """The store that a command works on, and its keys. A key may be given as the `url` of a reference, which has both.

    With `patterns`, each may also be a pattern (see `is_pattern`). Raises InvalidReference for a text that is neither,
    and InvalidInput for urls in different stores, else as `store_of`.
    """
    roots, found = set(), []
    for text in keys:
        root, key = split_url(text)
        if root is not None:
            roots.add(root)
        found.append(key)
    if roots and options.root is None:
        if len(roots) > 1:
            raise InvalidInput(
                f"the keys are in different stores ({', '.join(sorted(roots))}); run the command once for each store"
            )
        options.root = roots.pop()
    for key in found:
        if not (patterns and is_pattern(key)):
            parse_any_key(key)
    needs_listing = any(map(is_pattern, found))
    return (_open(options) if found and not needs_listing else store_of(options)), found
