"""What the tests of the storages share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that all users can enter; pytest's own is closed to them, and on some machines all of /tmp."""
    above = next(Path(place) for place in ("/tmp", "/var/tmp", "/dev/shm") if os.stat(place).st_mode & 0o001)
    place = above / f"metaflow-artifacts-{os.getpid()}"
    place.mkdir(mode=0o755)
    yield place
    shutil.rmtree(place)
