"""Replaces the whole content of a directory, which stays the same directory."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from metaflow_artifacts.plugin import TargetError, allow_owner, remove_tree

__all__ = ["replace_content"]


@contextmanager
def replace_content(directory: str) -> Iterator[str]:
    """Yield an empty directory, whose content replaces that of `directory` when the block ends.

    `directory` itself stays, because other processes may watch it or have it as their working directory; it is made if
    it does not exist. If the block raises, or a part of the content cannot be replaced, its content is unchanged.
    Raises TargetError if it cannot be written.
    """
    stage = old = ""
    try:
        os.makedirs(directory, exist_ok=True)
        # Next to it, so that entries can be renamed. If it is a link, next to the target of the link.
        target = os.path.realpath(directory)
        above, prefix = os.path.dirname(target), os.path.basename(target) + "_"
        stage = tempfile.mkdtemp(prefix=prefix, dir=above)
        yield stage
        old = tempfile.mkdtemp(prefix=prefix, dir=above)
        _exchange(target, stage, old)
        remove_tree(old)
    except OSError as error:
        if isinstance(error, TargetError):
            raise
        raise TargetError(f"cannot load into {directory!r}: {error.strerror or error}") from error
    finally:
        if stage:
            remove_tree(stage)
        if old:
            # It contains something only if an entry that was moved into it could not be moved back.
            with contextlib.suppress(OSError):
                os.rmdir(old)


def _exchange(directory: str, stage: str, old: str) -> None:
    """Move the content of `directory` to `old` and that of `stage` to `directory`, or move nothing."""
    moved: list[tuple[str, str]] = []
    try:
        for source, target in ((directory, old), (stage, directory)):
            for name in os.listdir(source):
                move = os.path.join(source, name), os.path.join(target, name)
                _rename(*move)
                moved.append(move)
    except BaseException:
        for before, after in reversed(moved):
            with contextlib.suppress(OSError):
                os.rename(after, before)
        raise


def _rename(source: str, target: str) -> None:
    try:
        os.rename(source, target)
    except PermissionError:
        # A directory can be moved only if it can be written itself.
        if os.path.islink(source) or not os.path.isdir(source):
            raise
        allow_owner(source)
        os.rename(source, target)
