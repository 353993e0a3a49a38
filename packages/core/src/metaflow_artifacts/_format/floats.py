"""NaN and infinities in metadata: JSON has no numbers for them, so it gets texts, and a list of the paths to these."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

__all__ = ["Path", "with_floats", "without_floats"]

Path = list[str | int]
"""The keys and indices that lead to a value, such as `["history", 3]`."""

_VALUES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def without_floats(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """A copy in which each float that is not finite is the text `NaN`, `Infinity` or `-Infinity`, and their paths.

    `metadata` is what `normalise_metadata` returned.
    """
    paths: list[Path] = []

    def copy(value: Any, path: Path) -> Any:
        if isinstance(value, dict):
            return {key: copy(item, [*path, key]) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [copy(item, [*path, index]) for index, item in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            paths.append(path)
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return value

    return {key: copy(item, [key]) for key, item in metadata.items()}, paths


def with_floats(metadata: Mapping[str, Any], paths: Sequence[Sequence[str | int]]) -> dict[str, Any]:
    """A copy with floats in place of the texts at `paths`: the inverse of `without_floats`.

    Raises ValueError for a path that does not lead to one of the three texts, or occurs twice.
    """
    result = dict(metadata)
    copies: dict[tuple[str | int, ...], Any] = {}
    for path in paths:
        if not isinstance(path, (list, tuple)) or not path:
            raise ValueError(f"expected a path of keys and indices, found {path!r:.200}")
        here: Any = result
        for depth, step in enumerate(path[:-1], 1):
            inner = _at(here, step, path)
            done = tuple(path[:depth])
            if done not in copies:
                if not isinstance(inner, (dict, list)):
                    raise ValueError(f"the path {path!r:.200} leads through a value")
                copies[done] = here[step] = inner.copy()
            here = copies[done]
        text = _at(here, path[-1], path)
        if not isinstance(text, str) or text not in _VALUES:
            raise ValueError(f"the path {path!r:.200} leads to no text that stands for a float")
        here[path[-1]] = _VALUES[text]
    return result


def _at(container: Any, step: object, path: object) -> Any:
    if isinstance(container, dict) and isinstance(step, str) and step in container:
        return container[step]
    is_index = isinstance(container, list) and isinstance(step, int) and not isinstance(step, bool)
    if is_index and 0 <= cast(int, step) < len(container):
        return container[cast(int, step)]
    raise ValueError(f"the path {path!r:.200} leads nowhere")
