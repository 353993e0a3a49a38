"""The `load` argument of `@model`: the artifacts of the flow that it names, and the references that these hold."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metaflow_artifacts.plugin import ArtifactError, InvalidInput, InvalidReference, UsageError

# Every process of a flow with @model imports this module. What only the decorated task needs is imported there.
if TYPE_CHECKING:
    from metaflow_artifacts.plugin import ParsedReference

__all__ = ["Wanted", "parse_load", "refuse_unknown", "resolve"]

_FORMS = "a name, or a list of names, (name, path) and (name, path, pattern)"
_EXAMPLE = "load=['name', ('other_name', './path')]"
_MISSING = object()


@dataclass(frozen=True)
class Wanted:
    """An artifact to load before the step's code runs."""

    name: str
    path: str | None
    only: list[str] | None
    """Patterns of the files to load; None for all."""
    reference: ParsedReference

    @property
    def key(self) -> str:
        """The key of the artifact."""
        return self.reference.key

    @property
    def type(self) -> str:
        """`model` or `checkpoint`."""
        from metaflow_artifacts.plugin import ModelKey

        return "model" if isinstance(self.reference.parts, ModelKey) else "checkpoint"


Entry = list[Any]
"""A name, its path or None, and, where only a part is to be loaded, the list of patterns: as JSON has it."""


def parse_load(load: object, step: str) -> list[Entry]:
    """The `load` argument as a list of entries, which JSON carries to remote tasks unchanged.

    A tuple is a list, so `("a", "b")` is two names; a pair is a member of a list. Raises UsageError for a value that
    has none of the allowed forms.
    """
    if load is None:
        return []
    if isinstance(load, str):
        load = [load]
    # Not only lists: Config objects have sequences of their own.
    if not isinstance(load, Sequence):
        raise UsageError(f"step {step}: @model(load=…) takes {_FORMS}; found {_held(load)}")
    entries = [_entry(given, step) for given in load]
    for name, *_ in entries:
        if not name or "/" in name or name == ".":
            raise UsageError(
                f"step {step}: @model(load=…) takes {_FORMS}; found {_held(name)}, which is no name of an artifact or "
                f"Parameter; write {_EXAMPLE}"
            )
    return entries


def _entry(given: object, step: str) -> Entry:
    if isinstance(given, str):
        return [given, None]
    if isinstance(given, Sequence) and len(given) in (2, 3):
        name, path, *only = given
        if isinstance(name, str) and (path is None or isinstance(path, (str, os.PathLike))):
            entry: Entry = [name, None if path is None else os.fspath(path)]
            return entry if not only else [*entry, *_patterns(only[0], given, step)]
    raise UsageError(f"step {step}: @model(load=…) takes {_FORMS}; found {_held(given)} in the list")


def _patterns(only: Any, given: object, step: str) -> list[list[str]]:
    """The patterns of an entry, in a list; an empty one where all files are wanted."""
    from metaflow_artifacts.plugin import patterns_of

    try:
        patterns = patterns_of(only)
    except InvalidInput as error:
        raise UsageError(f"step {step}: @model(load=[{_held(given)}]): {error}") from None
    return [] if patterns is None else [patterns]


def refuse_unknown(entries: Iterable[Entry], flow: Any, step: str) -> None:
    """Refuse names in the first step of a flow that are no Parameter or class attribute: nothing else can be there.

    Raises InvalidReference, as `resolve` does when the task has started.
    """
    for name, *_ in entries:
        if not hasattr(type(flow), name):
            raise _missing(name, step)


def resolve(
    entries: Iterable[Entry], flow: Any, step: str, inputs: Sequence[Any] | None, *, best_effort: bool
) -> tuple[list[Wanted], list[str]]:
    """What `entries` name in the flow, and, with `best_effort`, the names that hold nothing.

    `inputs` are those of a join, and None in other steps. In a join, a name counts if all branches that have it hold
    the same. Raises InvalidReference, which names the step, the name and what it holds.
    """
    found: list[Wanted] = []
    absent: list[str] = []
    for name, path, *only in entries:
        value = _value(flow, step, name, inputs)
        if best_effort and _is_nothing(value):
            absent.append(name)
        else:
            found.append(Wanted(name, path, only[0] if only else None, _reference(name, value, step)))
    return found, absent


def _is_nothing(value: Any) -> bool:
    """Whether a name holds nothing. A Parameter that was not given has an empty text, an empty dict or None."""
    if isinstance(value, str):
        return not value.strip()
    return value is _MISSING or value is None or (isinstance(value, Mapping) and not value)


def _value(flow: Any, step: str, name: str, inputs: Sequence[Any] | None) -> Any:
    value = getattr(flow, name, _MISSING)
    if value is not _MISSING or inputs is None:
        return value
    values = [branch[name] for branch in inputs if name in branch]
    if not all(_same(values[0], other) for other in values[1:]):
        raise InvalidReference(
            f"step {step}: {name!r} in @model(load=…) differs between the branches that are joined here; "
            "load what you need in the step, with current.model.load(reference)"
        )
    return values[0] if values else _MISSING


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:
        # Arrays and tables compare each element, also as a member that the user has added to a reference.
        pair = isinstance(one, Mapping) and isinstance(other, Mapping)
        return pair and all(one.get(name) == other.get(name) for name in ("key", "url", "created_on"))


def _reference(name: str, value: Any, step: str) -> ParsedReference:
    if value is _MISSING:
        raise _missing(name, step)
    where = _where(name, step)
    if _is_nothing(value):
        raise InvalidReference(
            f"{where} holds {_held(value)}; give it what a save returned, or its key, or let the step run without it: "
            "best_effort_load=True"
        )
    if not isinstance(value, (str, Mapping)):
        raise InvalidReference(f"{where} holds {_held(value)}; expected what a save returned (dict), or its key (str)")
    from metaflow_artifacts.plugin import ParsedReference

    try:
        return ParsedReference.of(value)
    except ArtifactError as error:
        raise InvalidReference(f"{where} holds {_held(value)}: {error}") from error


def _missing(name: str, step: str) -> InvalidReference:
    return InvalidReference(
        f"{_where(name, step)} is not an artifact or Parameter of the flow here; set self.{name} in an earlier step to "
        "what a save returned, or to its key"
    )


def _where(name: str, step: str) -> str:
    return f"step {step}: {name!r} in @model(load=…)"


def _held(value: object) -> str:
    short = reprlib.Repr()
    short.maxstring = short.maxother = 100
    text = " ".join(short.repr(value).split())
    return f"{text} ({type(value).__name__})"
