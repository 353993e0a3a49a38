"""A directory whose whole content is replaced at once, under the same path."""

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
    """An empty directory, whose content takes the place of that of `directory` when the block ends.

    `directory` itself stays, since others may watch it or work in it; it is made where it is missing. Where the
    block raises, or a part of the content cannot be replaced, nothing in it has changed. Raises TargetError where it
    cannot be written.
    """
    stage = old = ""
    try:
        os.makedirs(directory, exist_ok=True)
        # Beside it, so that entries can be renamed; behind a link, beside what the link leads to.
        place = os.path.realpath(directory)
        above, prefix = os.path.dirname(place), os.path.basename(place) + "_"
        stage = tempfile.mkdtemp(prefix=prefix, dir=above)
        yield stage
        old = tempfile.mkdtemp(prefix=prefix, dir=above)
        _exchange(place, stage, old)
        remove_tree(old)
    except OSError as error:
        if isinstance(error, TargetError):
            raise
        raise TargetError(f"cannot load into {directory!r}: {error.strerror or error}") from error
    finally:
        if stage:
            remove_tree(stage)
        if old:
            # It holds something only where what was moved into it cannot be moved back.
            with contextlib.suppress(OSError):
                os.rmdir(old)


def _exchange(place: str, stage: str, old: str) -> None:
    """Move the content of `place` to `old` and that of `stage` to `place`, or nothing."""
    moved: list[tuple[str, str]] = []
    try:
        for source, target in ((place, old), (stage, place)):
            for name in os.listdir(source):
                step = os.path.join(source, name), os.path.join(target, name)
                _rename(*step)
                moved.append(step)
    except BaseException:
        for before, after in reversed(moved):
            with contextlib.suppress(OSError):
                os.rename(after, before)
        raise


def _rename(source: str, target: str) -> None:
    try:
        os.rename(source, target)
    except PermissionError:
        # To be moved, a directory itself must allow changes.
        if os.path.islink(source) or not os.path.isdir(source):
            raise
        allow_owner(source)
        os.rename(source, target)
