"""Which files of an artifact a load wants: those whose path matches a pattern."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from fnmatch import translate
from unicodedata import normalize

from metaflow_artifacts._format.manifest import Manifest
from metaflow_artifacts._format.paths import stored_path
from metaflow_artifacts._text import count_text
from metaflow_artifacts.errors import ArtifactNotFound, InvalidInput

__all__ = ["Patterns", "named_files", "patterns_of", "select"]

Patterns = str | Sequence[str]
"""A pattern for paths of files, or several: `*` and `?` are wildcards, and match `/` too; `[ab]` is one of two. `**/`
stands for any directories, or none. Two texts are the same if Unicode says so: some systems take names apart."""

_WILD = re.compile(r"[*?[]")
_STARS = re.compile(r"(\[!?\]?[^\]]*\])|/(?:\*\*/)+")
"""A choice of characters, which may hold anything, or `**/` behind a slash."""
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
    paths = [file.path for file in manifest.files]
    numbers = {path: number for number, path in enumerate(paths)}
    for given in patterns:
        pattern = stored_path(given)
        # A path is a pattern for itself, also where it has brackets.
        found = {numbers[pattern]} if pattern in numbers else _matching(paths, pattern)
        wanted |= found
        if not found:
            vain.append(given)
    if vain:
        raise ArtifactNotFound(
            f"{manifest.artifact['key']}: has no file that matches {' or '.join(map(repr, vain))}; "
            f"{named_files(manifest)} (a pattern is for the whole path, without ./; `sub/*` for all in a directory)"
        )
    return wanted


def _matching(paths: Sequence[str], pattern: str) -> set[int]:
    pattern = _composed(pattern)
    composed = [_composed(path) for path in paths]
    same = {number for number, path in enumerate(composed) if path == pattern}
    if same or "\0" in pattern or not _WILD.search(pattern):
        return same
    # `/**/` is a slash, and then all up to a slash, which may be the same one. No path has a NUL, and `translate`
    # leaves it as it is. Its stars never try all their lengths together, which would take ages.
    text = translate(_STARS.sub(lambda found: found[1] or "\0*/", f"/{pattern}")).replace("\0", "(?=/)")
    match = re.compile(text).match
    return {number for number, path in enumerate(composed) if match(f"/{path}")}


def _composed(text: str) -> str:
    return text if text.isascii() else normalize("NFC", text)


def named_files(manifest: Manifest) -> str:
    """Says which files an artifact has: the first few by name, the others by number."""
    if not manifest.files:
        return "it has no files"
    named = ", ".join(repr(file.path) for file in manifest.files[:_NAMED_FILES])
    more = len(manifest.files) - _NAMED_FILES
    return f"it has {named}" + (f" and {count_text(more, 'other file')}" if more > 0 else "")
