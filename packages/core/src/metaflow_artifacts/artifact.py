"""The reference to a stored artifact: the one dict that every package returns, stores and takes.

It is a plain dict, so that it can be pickled and read where none of these packages is installed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypedDict, cast

from metaflow_artifacts.errors import InvalidReference

__all__ = ["MAX_DEPTH", "ModelArtifact", "depth", "is_model_artifact", "normalise_metadata", "parse", "validate"]


MAX_DEPTH = 100
"""Lists and dicts within each other in metadata: what every JSON library reads."""
_MAX_BITS = 4096


class _Required(TypedDict):
    key: str
    """Storage key, relative to the datastore root; enough to load the artifact from anywhere."""
    uuid: str
    """Unique id; for a model `<label>_<32 hex digits>`."""
    type: Literal["model", "checkpoint"]
    """What it was saved as. What the Hub decorator saves is a `checkpoint`."""
    pathspec: str
    """`flow/run/step/task` that saved it; empty when it was saved outside of a task."""
    attempt: int
    """Attempt of that task, from 0."""
    created_on: str
    """ISO 8601, UTC."""
    size: int
    """Bytes of content, exactly: the sizes of all files, not of any wrapping."""
    url: str
    """`<datastore root>/<key>`."""
    metadata: dict[str, Any]
    """The user's, `{}` when none."""
    label: str
    """The user's, or a default from flow and step."""


class ModelArtifact(_Required, total=False):
    """A reference to a model, a checkpoint or a snapshot of a Hub repo. Unknown keys are kept."""

    gang: str
    """`@parallel` steps only: the pathspec of the gang's control task, whose task all of its nodes count as."""
    name: str
    """Checkpoints only: the name it was saved under."""
    version_id: int
    """Checkpoints only: its number within the attempt, from 0."""
    parents: list[str]
    """Keys of what the task had loaded when it saved; absent in references of other writers."""


_TYPES: dict[str, type] = {
    "key": str,
    "uuid": str,
    "type": str,
    "pathspec": str,
    "attempt": int,
    "created_on": str,
    "size": int,
    "url": str,
    "metadata": dict,
    "label": str,
}
_OPTIONAL: dict[str, type] = {"gang": str, "name": str, "version_id": int, "parents": list}


def validate(value: object) -> list[str]:
    """Everything that keeps `value` from being a ModelArtifact, each problem with where and what was found.

    It checks shape and types. It does not decide whether the key is well-formed or anything is stored there.
    """
    if not isinstance(value, Mapping):
        return [f"expected a dict, found {type(value).__name__}"]
    problems = []
    for key, expected in _TYPES.items():
        if key not in value:
            problems.append(f"{key}: missing")
        elif not _is(value[key], expected):
            problems.append(f"{key}: expected {expected.__name__}, found {type(value[key]).__name__}")
    for key, expected in _OPTIONAL.items():
        if key in value and not _is(value[key], expected):
            problems.append(f"{key}: expected {expected.__name__}, found {type(value[key]).__name__}")
    if isinstance(value.get("type"), str) and value["type"] not in ("model", "checkpoint"):
        problems.append(f"type: expected model or checkpoint, found {value['type']!r}")
    for key in ("attempt", "size", "version_id"):
        if _is(value.get(key), int) and value[key] < 0:
            problems.append(f"{key}: expected a number from 0, found {value[key]}")
    parents = value.get("parents")
    if isinstance(parents, list) and not all(isinstance(parent, str) for parent in parents):
        problems.append("parents: expected a list of keys")
    return problems


def _is(value: object, expected: type) -> bool:
    return isinstance(value, expected) and not (expected is int and isinstance(value, bool))


def is_model_artifact(value: object) -> bool:
    """Whether `value` has the shape of a ModelArtifact."""
    return not validate(value)


def parse(value: object) -> ModelArtifact:
    """`value` as a ModelArtifact, unknown keys kept. Raises InvalidReference naming every problem at once."""
    problems = validate(value)
    if problems:
        raise InvalidReference(
            "not a reference to a stored artifact (" + "; ".join(problems) + "); pass the dict that save() returned"
        )
    return cast(ModelArtifact, dict(cast("Mapping[str, Any]", value)))


def normalise_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of the user's metadata that JSON holds without loss.

    Numpy and tensor scalars become numbers, tuples become lists. Raises InvalidReference naming the entry
    for anything else that JSON cannot hold: other objects, keys that are no strings, NaN and infinities.
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise InvalidReference(f"metadata: expected a dict, found {type(metadata).__name__}")
    try:
        normal = cast("dict[str, Any]", _jsonable(metadata, "metadata"))
    except RecursionError:
        normal = {}
    if depth(normal) > MAX_DEPTH or (metadata and not normal):
        raise InvalidReference(f"metadata: nested too deeply (more than {MAX_DEPTH} levels), or contains itself")
    return normal


def depth(value: object) -> int:
    """How many lists and dicts lie within each other; no more than MAX_DEPTH + 2 are counted."""
    level, count = [value], 0
    while count < MAX_DEPTH + 2:
        containers = [item for item in level if isinstance(item, (dict, list))]
        if not containers:
            break
        count += 1
        level = [item for one in containers for item in (one.values() if isinstance(one, dict) else one)]
    return count


def _jsonable(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        if value.bit_length() > _MAX_BITS:
            raise InvalidReference(f"{where}: an integer of {value.bit_length()} bits; pass a string instead")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidReference(f"{where}: JSON cannot hold {value}; pass None or a string instead")
        return float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InvalidReference(f"{where}: JSON keys are strings, found the key {key!r}; pass str(key)")
        return {str(key): _jsonable(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if hasattr(value, "dtype") and hasattr(value, "item") and getattr(value, "shape", None) == ():
        return _jsonable(value.item(), where)
    raise InvalidReference(
        f"{where}: JSON cannot hold a {type(value).__name__}; pass a number, a string, a list or a dict"
    )
