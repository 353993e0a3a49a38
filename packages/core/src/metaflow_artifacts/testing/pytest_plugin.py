"""Pytest fixtures for tests that need a real S3 server: `-p metaflow_artifacts.testing.pytest_plugin`, or the name
in `pytest_plugins` of the root conftest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from metaflow_artifacts.testing.seaweedfs import SeaweedServer, seaweedfs

__all__ = ["s3_server"]

pytest.register_assert_rewrite(*(f"metaflow_artifacts.testing._suite_{part}" for part in ("objects", "names", "races")))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    """A SeaweedFS that runs as long as the tests do; use a prefix of your own in its bucket."""
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server
