"""Both backends under the conformance suite, S3 against a real server."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from metaflow_artifacts.storage import Storage, open_storage
from metaflow_artifacts.storage.s3 import S3Storage
from metaflow_artifacts.testing.conformance import StorageConformance
from metaflow_artifacts.testing.seaweedfs import SeaweedServer, s3_client


class TestLocalStorage(StorageConformance):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return open_storage(tmp_path / "root")

    def raw_put(self, storage: Storage, key: str, data: bytes) -> None:
        path = Path(storage.root, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def raw_get(self, storage: Storage, key: str) -> bytes | None:
        path = Path(storage.root, key)
        return path.read_bytes() if path.is_file() else None

    def raw_keys(self, storage: Storage) -> set[str]:
        root = Path(storage.root)
        return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}

    def reopen(self, storage: Storage) -> Callable[[], Storage]:
        return functools.partial(open_storage, storage.root)


class TestS3Storage(StorageConformance):
    # A page has a thousand.
    many = 2_500
    verifies_digests = True

    @pytest.fixture(autouse=True)
    def _connect(self, s3_server: SeaweedServer) -> None:
        keys = (s3_server.endpoint, s3_server.access_key, s3_server.secret_key)
        self.connect = functools.partial(s3_client, *keys)
        self.raw = s3_server.client()

    @pytest.fixture
    def storage(self, s3_server: SeaweedServer) -> Storage:
        return open_storage(f"{s3_server.root}/{uuid4().hex}/p", client=self.connect)

    def place(self, storage: Storage, key: str) -> dict[str, Any]:
        bucket, _, prefix = storage.root.removeprefix("s3://").partition("/")
        return {"Bucket": bucket, "Key": f"{prefix}/{key}"}

    def raw_put(self, storage: Storage, key: str, data: bytes) -> None:
        self.raw.put_object(**self.place(storage, key), Body=data)

    def raw_get(self, storage: Storage, key: str) -> bytes | None:
        try:
            answer = self.raw.get_object(**self.place(storage, key))
        except self.raw.exceptions.NoSuchKey:
            return None
        data: bytes = answer["Body"].read()
        return data

    def raw_keys(self, storage: Storage) -> set[str]:
        place = self.place(storage, "")
        pages = self.raw.get_paginator("list_objects_v2").paginate(Bucket=place["Bucket"], Prefix=place["Key"])
        return {entry["Key"].removeprefix(place["Key"]) for page in pages for entry in page.get("Contents", ())}

    def reopen(self, storage: Storage) -> Callable[[], Storage]:
        return functools.partial(open_storage, storage.root, client=self.connect)


def test_root_of_a_bucket(s3_server: SeaweedServer) -> None:
    """A bucket alone is a root too: no leading slash in the keys."""
    storage = open_storage(s3_server.root, client=s3_server.client)
    assert isinstance(storage, S3Storage)
    key = f"{uuid4().hex}/a"
    storage.put(key, b"content")
    assert s3_server.client().get_object(Bucket=s3_server.bucket, Key=key)["Body"].read() == b"content"
    assert [info.key for info in storage.list(key)] == [key]
    assert storage.url(key) == f"s3://{s3_server.bucket}/{key}"
    storage.delete([key])
