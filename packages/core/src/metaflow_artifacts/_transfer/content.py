"""What callers pass to be saved: a path, or a mapping of paths within the artifact to their contents."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from metaflow_artifacts._format.paths import path_bytes, path_problem, stored_path, tree_problem
from metaflow_artifacts._transfer.scan import Source, SourceFile, scan
from metaflow_artifacts.errors import InvalidInput

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Content", "PathOrBytes", "source_of"]

PathOrBytes: TypeAlias = "str | os.PathLike[str] | Buffer"
"""A file or directory, or content in memory: bytes, bytearray, memoryview, a numpy array."""
Content: TypeAlias = "str | os.PathLike[str] | Mapping[str, PathOrBytes] | Source"
"""What is saved: a file or directory, a mapping of relative path to content, or what `source_of` returned."""

_MODE = 0o644
"""Permission bits of a file whose content comes from memory."""
_FIELD_NAME = re.compile(":[^:]*:")
"""In the format of a buffer; "O" elsewhere in it is a Python object."""


def source_of(content: Content) -> Source:
    """Find all that is to be saved.

    In a mapping, the keys are paths within the artifact, and the values are bytes-like objects, or paths of files or
    directories. What can be written to is copied, `bytes` are kept by reference. Raises InvalidInput for a path within
    the artifact that is not relative and normalised, or that is a directory of another; else as `scan`.
    """
    if isinstance(content, Source):
        return content
    if not isinstance(content, Mapping):
        return scan(content)
    source = Source()
    for path, value in content.items():
        if not isinstance(path, str):
            raise InvalidInput(f"content to save: its keys are paths (str), found {path!r:.80} ({type(path).__name__})")
        path = stored_path(path)
        problem = path_problem(path)
        if problem is not None:
            raise InvalidInput(f"content to save: {problem}; pass relative paths such as 'state.json' or 'a/b.bin'")
        if isinstance(value, (str, os.PathLike)):
            _add_path(source, path, value)
        else:
            source.files.append(_in_memory(path, value))
    source.files.sort(key=lambda file: path_bytes(file.path))
    source.dirs.sort(key=path_bytes)
    problem = tree_problem([file.path for file in source.files], source.dirs)
    if problem is not None:
        raise InvalidInput(f"content to save: {problem}")
    return source


def _add_path(source: Source, path: str, value: str | os.PathLike[str]) -> None:
    found = scan(value)
    if len(found.files) == 1 and found.files[0].named:
        source.files.append(found.files[0]._replace(path=path))
        return
    source.files += [file._replace(path=f"{path}/{file.path}") for file in found.files]
    source.dirs += [f"{path}/{name}" for name in found.dirs]
    if not found.files and not found.dirs:
        source.dirs.append(path)


def _in_memory(path: str, value: Any) -> SourceFile:
    try:
        view = memoryview(value)
        if "O" in _FIELD_NAME.sub("", view.format):
            raise ValueError("it holds Python objects, and its bytes are their addresses")
        # Of a read-only view, others may write to what it shows. Contiguous bytes only: `tobytes` copies any view.
        is_fixed = type(view.obj) is bytes
        content = view.cast("B") if is_fixed and view.c_contiguous and view.nbytes else view.tobytes()
    except (TypeError, ValueError, BufferError) as error:
        if getattr(value, "is_pending_save", None) is True:
            raise InvalidInput(
                f"content to save: {path!r} is a save in the background; its .result() is the reference to it, a dict"
            ) from error
        raise InvalidInput(
            f"content to save: {path!r} is {type(value).__name__}, neither bytes-like nor a path ({error}); encode it, "
            "or write it to a file and pass its path; metadata is a keyword: metadata={...}"
        ) from error
    return SourceFile(path, path, len(content), _MODE, 0, 0, 0, 1, named=True, content=content)
