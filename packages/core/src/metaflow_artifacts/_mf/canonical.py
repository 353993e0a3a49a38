"""A text for a foreach value: the same in every run and process, and different for different values."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import types
from collections.abc import Mapping, Set
from pathlib import PurePath
from typing import Any

__all__ = ["Unstable", "canonical"]

_MAX_DEPTH = 100


class Unstable(Exception):
    """The value has no text that is certain to be the same in another process."""


def canonical(value: object) -> str:
    """A text that is the same for equal values in every run, whatever the order of a dict or set and the hash seed.

    The value may consist of numbers, strings, bytes, dicts, sets, sequences, enums, dataclasses, numpy arrays and
    scalars, and objects that can be pickled. Raises Unstable for values without such a text: open files, lambdas,
    objects that contain themselves.
    """
    try:
        return json.dumps(_tree(value, ()), separators=(",", ":"))
    except Unstable:
        raise
    except Exception as error:  # The code of the value's class runs here, and may raise anything.
        raise Unstable(f"a {type(value).__name__} cannot be turned into a text: {error}") from error


def _tree(value: Any, above: tuple[int, ...]) -> Any:
    if value is None or value is True or value is False:
        return value
    if isinstance(value, enum.Enum):
        return ["enum", _name(type(value)), value.name]
    if isinstance(value, str):
        return ["str", str(value)]
    if isinstance(value, int):
        return ["int", str(int(value))]
    if isinstance(value, float):
        return ["float", repr(float(value))]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return ["bytes", bytes(value).hex()]
    if isinstance(value, (type, types.FunctionType)):
        return ["global", _name(value)]
    if isinstance(value, PurePath):
        return ["path", str(value)]
    if id(value) in above or len(above) > _MAX_DEPTH:
        raise Unstable(f"a {type(value).__name__} contains itself")
    return _composite(value, (*above, id(value)))


def _composite(value: Any, above: tuple[int, ...]) -> Any:
    if isinstance(value, Mapping):
        pairs = [[_tree(key, above), _tree(item, above)] for key, item in value.items()]
        return ["dict", sorted(pairs, key=json.dumps)]
    if isinstance(value, Set):
        return ["set", sorted((_tree(item, above) for item in value), key=json.dumps)]
    if isinstance(value, (list, tuple)):
        return ["list", [_tree(item, above) for item in value]]
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return ["dataclass", _name(type(value)), [[name, _tree(getattr(value, name), above)] for name in names]]
    if hasattr(value, "dtype") and hasattr(value, "tolist") and hasattr(value, "shape"):
        return _array(value, above)
    return _object(value, above)


def _array(value: Any, above: tuple[int, ...]) -> Any:
    if tuple(value.shape) == ():
        return _tree(value.tolist(), above)
    description = ["array", str(value.dtype), [int(size) for size in value.shape]]
    if hasattr(value, "tobytes") and not getattr(value.dtype, "hasobject", True):
        return [*description, hashlib.sha256(value.tobytes()).hexdigest()]
    return [*description, _tree(value.tolist(), above)]


def _object(value: Any, above: tuple[int, ...]) -> Any:
    reduced = value.__reduce_ex__(4)
    if isinstance(reduced, str):
        return ["global", _name(type(value)), reduced]
    parts = list(reduced) + [None] * (6 - len(reduced))
    function, arguments, state, items, pairs = parts[:5]
    return [
        "object",
        _name(type(value)),
        _name(function),
        [_tree(argument, above) for argument in arguments],
        _tree(state, above),
        [_tree(item, above) for item in items or ()],
        sorted(([_tree(key, above), _tree(item, above)] for key, item in pairs or ()), key=json.dumps),
    ]


def _name(thing: Any) -> str:
    name = getattr(thing, "__qualname__", None)
    if not isinstance(name, str) or "<lambda>" in name:
        raise Unstable(f"a {type(thing).__name__} has no name")
    return f"{getattr(thing, '__module__', '')}.{name}"
