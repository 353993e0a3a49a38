"""Which files of an artifact a load wants: those whose path matches a pattern."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from fnmatch import translate

from metaflow_artifacts._format.manifest import Manifest
from metaflow_artifacts._text import count_text
from metaflow_artifacts.errors import ArtifactNotFound, InvalidInput

__all__ = ["Patterns", "patterns_of", "select"]

Patterns = str | Sequence[str]
"""A pattern for paths of files, or several: `*` and `?` are wildcards, and match `/` too; `[ab]` is one of two."""

_WILD = re.compile(r"[*?[]")
_NAMED_FILES = 5
"""How many files an error names."""


def patterns_of(only: Patterns | None) -> list[str] | None:
    """The patterns in `only`; None for all files. Raises InvalidInput where it is no pattern or list of patterns."""
    if only is None:
        return None
    patterns = [only] if isinstance(only, str) else list(only) if isinstance(only, Sequence) else [only]
    if not patterns or any(not isinstance(pattern, str) or not pattern for pattern in patterns):
        raise InvalidInput(
            f"only: expected a pattern such as '*.safetensors', or a list of patterns, found {reprlib.repr(only)}; "
            "leave it out to load all files"
        )
    return patterns


def select(manifest: Manifest, only: Patterns | None) -> set[int]:
    """The numbers of the files that match one of the patterns in `only`; all with None.

    Raises InvalidInput as `patterns_of`, ArtifactNotFound where a pattern matches no file.
    """
    patterns = patterns_of(only)
    if patterns is None:
        return set(range(len(manifest.files)))
    wanted: set[int] = set()
    vain = []
    numbers = {file.path: number for number, file in enumerate(manifest.files)}
    for pattern in patterns:
        # A path is a pattern for itself, also where it has brackets.
        found = {numbers[pattern]} if pattern in numbers else _matching(manifest, pattern)
        wanted |= found
        if not found:
            vain.append(pattern)
    if vain:
        raise ArtifactNotFound(
            f"{manifest.artifact['key']}: has no file that matches {' or '.join(map(repr, vain))}; {_files(manifest)} "
            "(a pattern is for the whole path, without ./; `sub/*` for all in a directory)"
        )
    return wanted


def _matching(manifest: Manifest, pattern: str) -> set[int]:
    if not _WILD.search(pattern):
        return set()
    match = re.compile(translate(pattern)).match
    return {number for number, file in enumerate(manifest.files) if match(file.path)}


def _files(manifest: Manifest) -> str:
    if not manifest.files:
        return "it has no files"
    named = ", ".join(repr(file.path) for file in manifest.files[:_NAMED_FILES])
    more = len(manifest.files) - _NAMED_FILES
    return f"it has {named}" + (f" and {count_text(more, 'other file')}" if more > 0 else "")
