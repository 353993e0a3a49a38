"""Models and checkpoints, stored by content on local disk and S3. See `open_store`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    ArtifactError,
    ArtifactNotFound,
    ArtifactWarning,
    CorruptArtifact,
    InvalidReference,
    SourceError,
    StorageError,
    TargetError,
    TransientStorageError,
    UnsupportedFormat,
    UsageError,
)

if TYPE_CHECKING:
    from .ancestry import lineage
    from .artifact import ModelArtifact, is_model_artifact, parse, validate
    from .store import Store, open_store

__all__ = [
    "ArtifactError",
    "ArtifactNotFound",
    "ArtifactWarning",
    "CorruptArtifact",
    "InvalidReference",
    "ModelArtifact",
    "SourceError",
    "StorageError",
    "Store",
    "TargetError",
    "TransientStorageError",
    "UnsupportedFormat",
    "UsageError",
    "is_model_artifact",
    "lineage",
    "open_store",
    "parse",
    "validate",
]

__version__ = "0.1.0"

# Metaflow reads this: it puts the package into the code package of every flow, so that remote tasks have it.
METAFLOW_PACKAGE_POLICY = "include"

# The rest, with its module. Every Metaflow process imports this package; few of them use these. A name
# here must not be a module's: importing that module would put it in the name's place.
_LAZY = {
    "ModelArtifact": "artifact",
    "Store": "store",
    "is_model_artifact": "artifact",
    "lineage": "ancestry",
    "open_store": "store",
    "parse": "artifact",
    "validate": "artifact",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    return value
