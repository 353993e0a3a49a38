"""What the tests of the storages share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

OTHER_SERVERS = ("TestMoto", "TestRclone")
LONG = ("test_exactly_one_of_many_processes_wins", "test_list_and_delete_find_all_of_many_objects")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what takes long on the servers that are only here to show what they do not keep."""
    of_class = getattr(getattr(item, "cls", None), "__name__", "")
    if of_class in OTHER_SERVERS and getattr(item, "originalname", "") in LONG:
        item.add_marker(pytest.mark.long)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that all users can enter; pytest's own is closed to them, and on some machines all of /tmp."""
    above = next(Path(place) for place in ("/tmp", "/var/tmp", "/dev/shm") if os.stat(place).st_mode & 0o001)
    place = above / f"metaflow-artifacts-{os.getpid()}"
    place.mkdir(mode=0o755)
    yield place
    shutil.rmtree(place)
