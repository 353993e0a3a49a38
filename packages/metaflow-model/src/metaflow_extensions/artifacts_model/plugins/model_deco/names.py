"""The `load` argument of `@model`: the artifacts of the flow that it names, and the references that these hold."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metaflow_artifacts.plugin import ArtifactError, InvalidReference, ModelKey, ParsedReference, UsageError

__all__ = ["Wanted", "parse_load", "resolve"]

_FORMS = "a name, or a list of names and (name, path)"
_MISSING = object()


@dataclass(frozen=True)
class Wanted:
    """An artifact to load before the step's code runs."""

    name: str
    path: str | None
    reference: ParsedReference

    @property
    def key(self) -> str:
        """The key of the artifact."""
        return self.reference.key

    @property
    def type(self) -> str:
        """`model` or `checkpoint`."""
        return "model" if isinstance(self.reference.parts, ModelKey) else "checkpoint"


def parse_load(load: object, step: str) -> list[list[str | None]]:
    """The `load` argument as a list of [name, path or None], which JSON carries to remote tasks unchanged.

    Raises UsageError for a value that has none of the allowed forms.
    """
    if load is None:
        return []
    if isinstance(load, str) or _is_pair(load, tuple):
        load = [load]
    if not isinstance(load, (list, tuple)):
        raise UsageError(f"step {step}: @model(load=…) takes {_FORMS}; found {_held(load)}")
    entries: list[list[str | None]] = []
    for entry in load:
        if isinstance(entry, str):
            entries.append([entry, None])
        elif _is_pair(entry, (tuple, list)):
            name, path = entry
            entries.append([name, None if path is None else os.fspath(path)])
        else:
            raise UsageError(f"step {step}: @model(load=…) takes {_FORMS}; found {_held(entry)} in the list")
    return entries


def _is_pair(entry: object, kinds: type | tuple[type, ...]) -> bool:
    if not isinstance(entry, kinds) or not isinstance(entry, Sequence) or len(entry) != 2:
        return False
    name, path = entry
    return isinstance(name, str) and (path is None or isinstance(path, (str, os.PathLike)))


def resolve(
    entries: Iterable[Sequence[str | None]], flow: Any, step: str, inputs: Sequence[Any] | None, *, best_effort: bool
) -> tuple[list[Wanted], list[str]]:
    """What `entries` name in the flow, and, with `best_effort`, the names that hold nothing.

    `inputs` are those of a join, and None in other steps. In a join, a name counts if all branches that have it hold
    the same. Raises InvalidReference, which names the step, the name and what it holds.
    """
    found: list[Wanted] = []
    absent: list[str] = []
    for name, path in entries:
        assert name is not None
        value = _value(flow, step, name, inputs)
        if best_effort and (value is _MISSING or value is None):
            absent.append(name)
        else:
            found.append(_wanted(name, path, value, step))
    return found, absent


def _value(flow: Any, step: str, name: str, inputs: Sequence[Any] | None) -> Any:
    value = getattr(flow, name, _MISSING)
    if value is not _MISSING or inputs is None:
        return value
    values = [branch[name] for branch in inputs if name in branch]
    if any(other != values[0] for other in values[1:]):
        raise InvalidReference(
            f"step {step}: {name!r} in @model(load=…) differs between the branches that are joined here; "
            "load what you need in the step, with current.model.load(reference)"
        )
    return values[0] if values else _MISSING


def _wanted(name: str, path: str | None, value: Any, step: str) -> Wanted:
    where = f"step {step}: {name!r} in @model(load=…)"
    if value is _MISSING:
        raise InvalidReference(
            f"{where} is not an artifact or Parameter of the flow here; set self.{name} in an earlier step to what a "
            "save returned, or to its key"
        )
    if not isinstance(value, (str, Mapping)):
        raise InvalidReference(f"{where} holds {_held(value)}; expected what a save returned (dict), or its key (str)")
    try:
        return Wanted(name, path, ParsedReference.of(value))
    except ArtifactError as error:
        raise InvalidReference(f"{where} holds {_held(value)}: {error}") from error


def _held(value: object) -> str:
    short = reprlib.Repr()
    short.maxstring = short.maxother = 100
    text = " ".join(short.repr(value).split())
    return f"{text} ({type(value).__name__})"
