"""The reference to a stored artifact: the one dict that every package returns, stores and takes.

It is a plain dict, so that it can be pickled and read where none of these packages is installed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date, time
from typing import Any, Literal, TypedDict, cast

from metaflow_artifacts.errors import InvalidInput, InvalidReference, warn

__all__ = [
    "MAX_DEPTH",
    "ModelArtifact",
    "depth",
    "is_model_artifact",
    "normalise_metadata",
    "parse_reference",
    "validate_reference",
    "with_older_names",
    "with_own_names",
]


MAX_DEPTH = 100
"""Most levels of nested lists and dicts in metadata. Every JSON library reads as many."""
_MAX_BITS = 4096
_NAMED = 5
"""How many members a warning names."""
_LABEL = re.compile(r"_[0-9a-f]{32}$", re.ASCII)
_NUMBER_DIGITS = 19
_NAME_LENGTH = 100


class _Required(TypedDict):
    key: str
    """Storage key, relative to the datastore root; enough to load the artifact from anywhere."""
    uuid: str
    """Unique id; for a model `<label>_<32 hex digits>`."""
    type: Literal["model", "checkpoint"]
    """What it was saved as. Snapshots of the Hub decorator are a `checkpoint`."""
    pathspec: str
    """`flow/run/step/task` that saved it; empty when it was saved outside of a task."""
    attempt: int
    """Attempt of that task, from 0."""
    created_on: str
    """ISO 8601, UTC."""
    size: int
    """Bytes of content, exactly: the sum of the sizes of all files."""
    url: str
    """`<datastore root>/<key>`."""
    metadata: dict[str, Any]
    """The user's metadata; `{}` if there is none."""
    label: str
    """The user's label, or a default made of flow and step."""


class ModelArtifact(_Required, total=False):
    """A reference to a model, a checkpoint or a snapshot of a Hub repo. Unknown keys are kept."""

    gang: str
    """`@parallel` steps only: the pathspec of the gang's control task. All nodes of the gang count as this task."""
    name: str
    """Checkpoints only: the name it was saved under."""
    version_id: int
    """Checkpoints only: its number within the attempt, from 0."""
    parents: list[str]
    """Keys of the artifacts that the task had loaded when it saved; other writers may leave this out."""
    model_uuid: str
    """Models only: `uuid`, as metaflow-checkpoint calls it. The decorators add it; it is never stored."""
    storage_format: str
    """`files`, or `tar` where metaflow-checkpoint has stored it so; `size` is then that of the tar. The decorators add
    it; it is never stored."""


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
_OPTIONAL: dict[str, type] = {"name": str, "version_id": int, "gang": str, "parents": list}


def validate_reference(value: object) -> list[str]:
    """Why `value` is no ModelArtifact: a line for each problem, with the member and what was found there.

    It checks shape and types. It does not check whether the key is well-formed, or whether anything is stored there.
    """
    if not isinstance(value, Mapping):
        return [f"expected a dict, found {type(value).__name__}"]
    problems = []
    for key, expected in _TYPES.items():
        # The usual case, for which nothing is called: listings read thousands of references.
        if type(value.get(key)) is expected:
            continue
        if key not in value:
            problems.append(f"{key}: missing")
        elif not _is(value[key], expected):
            problems.append(f"{key}: expected {expected.__name__}, found {type(value[key]).__name__}")
    for key, expected in _OPTIONAL.items():
        if key in value and type(value[key]) is not expected and not _is(value[key], expected):
            problems.append(f"{key}: expected {expected.__name__}, found {type(value[key]).__name__}")
    if isinstance(value.get("type"), str) and value["type"] not in ("model", "checkpoint"):
        problems.append(f"type: expected model or checkpoint, found {value['type']!r}")
    for key in ("attempt", "size", "version_id"):
        number = value.get(key)
        if isinstance(number, int) and number < 0:
            problems.append(f"{key}: expected a number from 0, found {number}")
    parents = value.get("parents")
    if isinstance(parents, list) and not all(isinstance(parent, str) for parent in parents):
        problems.append("parents: expected a list of keys")
    return problems


def _is(value: object, expected: type) -> bool:
    return isinstance(value, expected) and not (expected is int and isinstance(value, bool))


def is_model_artifact(value: object) -> bool:
    """Whether `value` has the shape of a ModelArtifact, or is a reference that metaflow-checkpoint has made."""
    return not validate_reference(with_own_names(value))


def parse_reference(value: object) -> ModelArtifact:
    """A copy of `value` as a ModelArtifact, unknown keys kept. Raises InvalidReference naming every problem at once.

    A reference that metaflow-checkpoint has made gets the members that it lacks. What is a mapping or a list in it, as
    the metadata is, is a plain dict or list of its own in the copy.
    """
    value = with_own_names(value)
    problems = validate_reference(value)
    if problems:
        found = "; ".join(problems)
        raise InvalidReference(
            f"not a reference to a stored artifact ({found}); pass the dict that save() returned, or its key"
        )
    return cast(ModelArtifact, _plain_copy(value, {}))


def _plain_copy(value: Any, made: dict[int, tuple[Any, Any]], level: int = 0) -> Any:
    """A copy of which mappings are dicts: a Config of Metaflow has mappings of its own, whose pickle needs Metaflow.

    What is nested deeper than metadata may be stays what it is. `made` has the copies and, so that their ids stay
    theirs, the values.
    """
    if not isinstance(value, (Mapping, list)) or level > MAX_DEPTH + 1:
        return value
    if id(value) not in made:
        copy: Any = {} if isinstance(value, Mapping) else []
        made[id(value)] = copy, value
        if isinstance(value, Mapping):
            copy.update((name, _plain_copy(member, made, level + 1)) for name, member in value.items())
        else:
            copy.extend(_plain_copy(member, made, level + 1) for member in value)
    return made[id(value)][0]


def with_older_names(artifact: Mapping[str, Any]) -> ModelArtifact:
    """A copy of a reference with the members that flows written for metaflow-checkpoint may read."""
    older = {"model_uuid": artifact["uuid"]} if artifact["type"] == "model" else {}
    # That of a tar is of metaflow-checkpoint: its size is not that of the content.
    storage_format = "tar" if artifact.get("storage_format") == "tar" else "files"
    return cast(ModelArtifact, {**artifact, **older, "storage_format": storage_format})


def with_own_names(value: object) -> Any:
    """A reference that metaflow-checkpoint has made, copied, with the members that ours have; any other value as it is.

    Its references have `model_uuid` and no `uuid`, may have None as `label`, and have no `parents`. Those of processes
    beside a task have the attempt as text.
    """
    if not isinstance(value, Mapping) or "uuid" in value or not {"model_uuid", "pathspec_hash"} & value.keys():
        return value
    members = dict(value)
    key = members.get("key")
    if isinstance(key, str):
        last = key.rpartition("/")[2]
        members["uuid"] = members.get("model_uuid") or last
        if members.get("label") is None:
            pathspec = str(members.get("pathspec") or "").split("/")
            is_task = members.get("type") == "checkpoint" and len(pathspec) == 4
            members["label"] = f"{pathspec[0]}_{pathspec[2]}" if is_task else _LABEL.sub("", str(members["uuid"]))
    for name in ("attempt", "version_id"):
        number = members.get(name)
        if isinstance(number, str) and number.isascii() and number.isdecimal() and len(number) < _NUMBER_DIGITS:
            members[name] = int(number)
    for name, default in (("metadata", {}), ("pathspec", ""), ("attempt", 0)):
        if members.get(name) is None:
            members[name] = default
    members.setdefault("parents", [])
    return members


def normalise_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of the user's metadata as `json` reads it back: dicts, lists, texts, numbers, booleans and None.

    Every value is accepted. Numpy and tensor scalars become numbers, tuples become lists, keys become `str(key)`, and
    dates and times become text in ISO 8601. NaN and infinities stay floats. Any other object becomes its `str`. So do
    integers of more than 4096 bits, containers that contain themselves, and values below 100 levels. One
    ArtifactWarning names all values that became text.

    Raises InvalidInput if `metadata` itself is no mapping.
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise InvalidInput(f"metadata: expected a dict, found {type(metadata).__name__}")
    normaliser = _Normaliser()
    normal = normaliser.value(metadata, "metadata")
    if normaliser.changed:
        more = len(normaliser.changed) - _NAMED
        told = ", ".join(normaliser.changed[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        warn(f"JSON cannot hold some of the metadata as it is: {told}")
    # It is text only if the entries of the mapping cannot be read.
    return normal if isinstance(normal, dict) else {}


def depth(value: object) -> int:
    """The number of levels of nested lists and dicts; the count stops at MAX_DEPTH + 2."""
    level, count = [value], 0
    while count < MAX_DEPTH + 2:
        containers = [item for item in level if isinstance(item, (dict, list))]
        if not containers:
            break
        count += 1
        level = [item for one in containers for item in (one.values() if isinstance(one, dict) else one)]
    return count


class _Normaliser:
    """Turns one metadata dict into what JSON can hold, and records the values that became text."""

    def __init__(self) -> None:
        self.changed: list[str] = []
        self._open: list[int] = []

    def value(self, value: Any, where: str) -> Any:
        """`value` as JSON holds it; `where` names it in the warning. Never raises, whatever the value's class does."""
        try:
            if isinstance(value, (Mapping, list, tuple)):
                return self._container(value, where)
            return self._single(value, where)
        except Exception:
            return self._as_text(value, where, type(value).__name__)

    def _single(self, value: Any, where: str) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return _plain(value)
        if isinstance(value, int):
            number = int.__index__(value)
            if number.bit_length() > _MAX_BITS:
                return self._as_text(number, where, f"an integer of {number.bit_length()} bits")
            return number
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, (date, time)):
            return _plain(value.isoformat())
        if hasattr(value, "dtype") and value.shape == ():
            if getattr(value.dtype, "kind", "") == "M":
                # A date. If it counts nanoseconds, its item() would be an integer.
                return _plain(str(value))
            number = _number(value)
            if isinstance(number, (bool, int, float, str)):
                return self._single(number, where)
        return self._as_text(value, where, type(value).__name__)

    def _container(self, value: Any, where: str) -> Any:
        if id(value) in self._open:
            return self._as_text(value, where, "which contains itself")
        if len(self._open) >= MAX_DEPTH:
            return self._as_text(value, where, f"below {MAX_DEPTH} levels")
        entries = list(value.items()) if isinstance(value, Mapping) else list(value)
        self._open.append(id(value))
        try:
            if not isinstance(value, Mapping):
                return [self.value(item, f"{where}[{index}]") for index, item in enumerate(entries)]
            normal: dict[str, Any] = {}
            for key, item in entries:
                text = _text(key)
                member = f"{where}[{text[:_NAME_LENGTH]!r}]"
                if text in normal:
                    self.changed.append(f"{member} (two keys with this text: the later one is stored)")
                normal[text] = self.value(item, member)
            return normal
        finally:
            self._open.pop()

    def _as_text(self, value: Any, where: str, why: str) -> str:
        self.changed.append(f"{where} ({why}: stored as text)")
        return _text(value)


def _number(value: Any) -> Any:
    """A numpy or tensor scalar as a number of Python, if there is one."""
    if getattr(value.dtype, "kind", "") == "m":
        return None
    item = value.item() if hasattr(value, "item") else value.numpy()
    if hasattr(item, "dtype"):
        # The item of a type that Python does not have, such as longdouble, is a numpy scalar again.
        item = item.item()
    return float(item) if hasattr(item, "dtype") else item


def _text(value: object) -> str:
    """`value` as text; the name of its class where that raises."""
    try:
        if isinstance(value, str):
            return _plain(value)
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            # Python refuses to convert large integers to decimal text.
            return hex(value)
        # With python -bb, str() of bytes raises.
        return _plain(repr(value) if isinstance(value, (bytes, bytearray)) else str(value))
    except Exception:
        return type(value).__name__


def _plain(text: str) -> str:
    """`text` as a `str` that JSON does not change: two surrogates that form a pair become one character."""
    text = str.__str__(text)
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
