"""What Metaflow's configuration says about the S3 client, read without Metaflow, whose import takes as long as `ls`.

Most configurations say nothing, or name the endpoint. Where one says more, or an extension of Metaflow may, Metaflow
itself makes the client.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

__all__ = ["plain_client"]

_ENDPOINT = "METAFLOW_S3_ENDPOINT_URL"
_OF_CLIENTS = (
    "METAFLOW_S3_",
    "METAFLOW_DATATOOLS_CLIENT_PARAMS",
    "METAFLOW_DATATOOLS_SESSION_VARS",
    "METAFLOW_DEFAULT_AWS_CLIENT_PROVIDER",
    "METAFLOW_AWS_SANDBOX_",
    "METAFLOW_ARTIFACTS_CACHE",
    # A task tells its subprocesses with this one how its artifact store is reached.
    "METAFLOW_CHECKPOINT_UID",
    "METAFLOW_EXTENSIONS_SEARCH_DIRS",
)
"""How the names of settings begin on which the client, the encryption or the node's cache may depend."""
_OURS = {"artifacts_core", "artifacts_model", "artifacts_checkpoint", "artifacts_hf"}
_LOCAL = os.path.join(".metaflow", "config.json")


def plain_client() -> Callable[[], Any] | None:
    """A function that makes the S3 client for which Metaflow is configured; None if only Metaflow can make it."""
    try:
        sources = [os.environ, *_files()]
    except (OSError, ValueError):
        return None
    names = {name for source in sources for name in source if name.startswith(_OF_CLIENTS)}
    if names - {_ENDPOINT} or _may_be_extended():
        return None
    from metaflow_artifacts._storage.s3_client import client_at

    endpoint = next((source[_ENDPOINT] for source in sources if _ENDPOINT in source), None)
    return functools.partial(client_at, endpoint or None)


def _files() -> Iterator[Mapping[str, Any]]:
    """Metaflow's configuration files, the one that comes first in it first. Raises OSError, ValueError."""
    above = os.getcwd()
    while not os.path.isdir(os.path.join(above, os.path.dirname(_LOCAL))) and above != os.path.dirname(above):
        above = os.path.dirname(above)
    profile = os.environ.get("METAFLOW_PROFILE")
    name = f"config_{profile}.json" if profile else "config.json"
    home = os.path.expanduser(os.environ.get("METAFLOW_HOME", "~/.metaflowconfig"))
    for path in (os.path.join(above, _LOCAL), os.path.join(home, name)):
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                found = json.load(file)
            if not isinstance(found, dict):
                raise ValueError(f"{path} holds no settings")
            yield found
        elif profile and path.endswith(name):
            raise ValueError(f"there is no {path}")


def _may_be_extended() -> bool:
    """Whether there is an extension of Metaflow that is none of these packages: it may change every setting."""
    spec = find_spec("metaflow_extensions")
    for directory in () if spec is None else spec.submodule_search_locations or ():
        try:
            names = set(os.listdir(directory))
        except OSError:
            return True
        if any(not name.startswith((".", "__")) for name in names - _OURS):
            return True
    return False
