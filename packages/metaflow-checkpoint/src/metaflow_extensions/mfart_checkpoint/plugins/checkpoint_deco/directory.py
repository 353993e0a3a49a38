"""A directory whose whole content is replaced at once, under the same path."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from metaflow_artifacts.errors import TargetError

__all__ = ["replace_content"]


@contextmanager
def replace_content(directory: str) -> Iterator[str]:
    """An empty directory, whose content takes the place of that of `directory` when the block ends.

    `directory` itself stays, since others may watch it or work in it; it is made where it is missing. Where the
    block raises, nothing in it has changed. Raises TargetError where it cannot be written.
    """
    stage = ""
    try:
        os.makedirs(directory, exist_ok=True)
        stage = tempfile.mkdtemp(prefix=os.path.basename(directory) + "_", dir=os.path.dirname(directory))
        yield stage
        for entry in list(os.scandir(directory)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
        for name in os.listdir(stage):
            os.rename(os.path.join(stage, name), os.path.join(directory, name))
    except OSError as error:
        if isinstance(error, TargetError):
            raise
        raise TargetError(f"cannot load into {directory!r}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
