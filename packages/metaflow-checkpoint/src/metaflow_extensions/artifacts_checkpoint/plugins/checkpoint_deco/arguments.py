"""What the arguments of `save` mean.

The distribution metaflow-checkpoint has two classes with two orders of these arguments. Both orders work here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from metaflow_artifacts.plugin import UsageError

__all__ = ["SaveArguments", "save_arguments"]

_ORDERS = "save(path, name, metadata, latest) or save(path, metadata, latest, name)"


class SaveArguments(NamedTuple):
    """The arguments of a save besides its path; None means the default."""

    name: str | None = None
    metadata: Mapping[str, Any] | None = None
    latest: bool | None = None


def save_arguments(
    positional: Sequence[object], *, name: object = None, metadata: object = None, latest: object = None
) -> SaveArguments:
    """Tell which of the arguments after `path` is the name, the metadata and `latest`.

    A positional text is the name, a mapping is the metadata, a bool is `latest`, in any order; None is skipped. Raises
    UsageError for a value of another type, and for an argument that is given twice.
    """
    found: dict[str, Any] = {}

    def take(kind: str, value: object) -> None:
        if kind in found:
            raise UsageError(f"Checkpoint.save: {kind} is given twice, {found[kind]!r:.80} and {value!r:.80}; give one")
        found[kind] = value

    for value in positional:
        if value is None:
            continue
        kind = _kind(value)
        if kind is None:
            raise UsageError(
                f"Checkpoint.save: {value!r:.80} ({type(value).__name__}) is neither a name (str) nor metadata (dict) "
                f"nor latest (bool); call {_ORDERS}, or use keywords"
            )
        take(kind, value)
    for kind, value, expected in (("name", name, "str"), ("metadata", metadata, "dict"), ("latest", latest, "bool")):
        if value is None:
            continue
        if _kind(value) != kind and not (kind == "latest" and isinstance(value, int) and value in (0, 1)):
            raise UsageError(
                f"Checkpoint.save: {kind} is a {expected}, found {value!r:.80} ({type(value).__name__}); call {_ORDERS}"
            )
        take(kind, value)
    if "latest" in found:
        found["latest"] = bool(found["latest"])
    return SaveArguments(**found)


def _kind(value: object) -> str | None:
    if isinstance(value, str):
        return "name"
    if isinstance(value, Mapping):
        return "metadata"
    # numpy's bool is not a subclass of bool.
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    if isinstance(value, bool) or (kind == "b" and getattr(value, "shape", None) == ()):
        return "latest"
    return None
