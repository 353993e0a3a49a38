"""Pytest fixtures for tests that need a real storage server: `-p metaflow_artifacts.testing.pytest_plugin`, or the name
in `pytest_plugins` of the root conftest. Each server runs until the tests end, and they share its bucket: use a prefix
that no other test uses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from metaflow_artifacts.testing.azurite import AzuriteServer
from metaflow_artifacts.testing.azurite import azurite as run_azurite
from metaflow_artifacts.testing.fake_gcs import FakeGcsServer
from metaflow_artifacts.testing.fake_gcs import fake_gcs as run_fake_gcs
from metaflow_artifacts.testing.moto_server import moto_server
from metaflow_artifacts.testing.rclone import rclone_server
from metaflow_artifacts.testing.seaweedfs import SeaweedServer, seaweedfs
from metaflow_artifacts.testing.servers import S3Server

__all__ = ["azurite", "azurite_tls", "fake_gcs", "moto", "rclone", "s3_server"]

pytest.register_assert_rewrite(*(f"metaflow_artifacts.testing._suite_{part}" for part in ("objects", "names", "races")))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    """SeaweedFS, which offers all that docs/format.md requires of a storage."""
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """moto."""
    with moto_server(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """`rclone serve s3`, which ignores If-None-Match."""
    with rclone_server(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzuriteServer]:
    """Azurite, by plain http."""
    with run_azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture(scope="session")
def azurite_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzuriteServer]:
    """Azurite, by https and with tokens, as Metaflow needs it."""
    with run_azurite(tmp_path_factory.mktemp("azurite-tls"), tls=True) as server:
        yield server


@pytest.fixture(scope="session")
def fake_gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGcsServer]:
    """fake-gcs-server."""
    with run_fake_gcs(tmp_path_factory.mktemp("fake-gcs")) as server:
        yield server
