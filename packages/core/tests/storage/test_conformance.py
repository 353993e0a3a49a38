"""All backends under the conformance suite, those of the clouds against servers on loopback."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote
from uuid import uuid4

import pytest
import requests

from metaflow_artifacts._storage import Storage, open_storage, remote
from metaflow_artifacts._storage.azure import AzureStorage
from metaflow_artifacts._storage.gcs import GcsStorage
from metaflow_artifacts._storage.s3 import S3Storage
from metaflow_artifacts.errors import InvalidReference
from metaflow_artifacts.testing._suite import Suite
from metaflow_artifacts.testing.azurite import AzuriteServer, account_key
from metaflow_artifacts.testing.conformance import ServerConformance, StorageConformance
from metaflow_artifacts.testing.fake_gcs import FakeGcsServer, anonymous
from metaflow_artifacts.testing.seaweedfs import SeaweedServer
from metaflow_artifacts.testing.servers import S3Server, s3_client


class TestLocalStorage(StorageConformance):
    broken: ClassVar[dict[str, str]] = {"test_wrong_digests_are_refused": "the writer has hashed what it wrote"}

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return open_storage(tmp_path / "root")

    def beside(self, storage: Storage) -> Storage:
        return open_storage(storage.root + "-beside")

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


@functools.cache
def shared_client(purpose: str, endpoint: str, access_key: str, secret_key: str) -> Any:
    """One client a purpose and server: making one takes longer than most of these tests."""
    return s3_client(endpoint, access_key, secret_key)


class S3Hooks(Suite):
    # A page has a thousand.
    many = 1_100

    @pytest.fixture
    def server(self) -> S3Server:
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _connect(self, server: S3Server) -> None:
        self.keys = (server.endpoint, server.access_key, server.secret_key)
        self.raw = shared_client("raw", *self.keys)

    @pytest.fixture
    def storage(self, server: S3Server) -> Storage:
        connect = functools.partial(shared_client, "storage", *self.keys)
        return open_storage(f"{server.root}/{uuid4().hex}/p", client=connect, patience=5)

    def beside(self, storage: Storage) -> Storage:
        connect = functools.partial(shared_client, "storage", *self.keys)
        return open_storage(f"{storage.root}-beside", client=connect, patience=5)

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
        return functools.partial(open_storage, storage.root, client=functools.partial(s3_client, *self.keys))


class AnyNames:
    """Objects of other programs, whose names no key has."""

    def test_they_are_read_and_deleted(self, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
        names = ["d/modèle é.bin", "d/é?b#c%41+d&e", "d/" + "/".join(["n" * 200] * 4)]
        with monkeypatch.context() as patch:
            patch.setattr(remote, "check_key", lambda *_, **__: None)
            for name in names:
                storage.put(name, name.encode())
        storage.put("d/key", b"key")
        assert sorted(info.key for info in storage.list_any("d/")) == sorted([*names, "d/key"])
        assert [info.key for info in storage.list("d/")] == ["d/key"]
        for name in names:
            block = memoryview(bytearray(1000))
            with storage.open_any(name, 2) as reader:
                assert bytes(block[: reader.readinto(block)]) == name.encode()[2:]
            with pytest.raises(InvalidReference):
                storage.get(name)
            with pytest.raises(InvalidReference):
                storage.delete([name])
        storage.delete_any(names)
        assert [info.key for info in storage.list_any("d/")] == ["d/key"]


class TestSeaweedFS(AnyNames, S3Hooks, StorageConformance):
    many = 2_500

    @pytest.fixture
    def server(self, s3_server: SeaweedServer) -> S3Server:
        return s3_server


class TestMoto(S3Hooks, ServerConformance):
    no_sha256 = "moto keeps no SHA-256 of what is put, so it is not asked to copy"
    broken: ClassVar[dict[str, str]] = {
        "test_wrong_digests_are_refused": "moto takes any digest",
        "test_a_copy_is_the_object": no_sha256,
        "test_a_copy_has_the_time_of_the_copying": no_sha256,
        "test_a_renewal_leaves_the_time_of_a_copy_alone": no_sha256,
        "test_a_copy_replaces_nothing": no_sha256,
    }

    @pytest.fixture
    def server(self, moto: S3Server) -> S3Server:
        return moto


class TestRclone(S3Hooks, ServerConformance):
    ignores_conditions = "rclone ignores If-None-Match"
    broken: ClassVar[dict[str, str]] = {
        "test_wrong_digests_are_refused": "rclone takes any digest",
        "test_put_if_absent_refuses_a_key_that_exists": ignores_conditions,
        "test_put_if_absent_refuses_a_large_object_that_exists": ignores_conditions,
        "test_put_if_absent_refuses_odd_keys_that_exist": ignores_conditions,
        "test_require_put_if_absent_accepts_this_storage": ignores_conditions,
        "test_exactly_one_of_many_threads_wins": ignores_conditions,
        "test_exactly_one_of_many_processes_wins": ignores_conditions,
        "test_a_copy_replaces_nothing": ignores_conditions,
        "test_delete_removes_what_exists": "rclone answers 500 to the delete of a directory, which no key is",
    }
    unreliable: ClassVar[dict[str, str]] = {
        "test_readers_see_whole_objects": "rclone writes a new version into the old one's file",
    }

    @pytest.fixture
    def server(self, rclone: S3Server) -> S3Server:
        return rclone


class TestAzurite(AnyNames, StorageConformance):
    many = 600
    broken: ClassVar[dict[str, str]] = {"test_wrong_digests_are_refused": "no digest is sent: Azure compares MD5 only"}

    @pytest.fixture(autouse=True)
    def _connect(self, azurite: AzuriteServer) -> Iterator[None]:
        with azurite.container() as self.raw:
            yield

    @pytest.fixture
    def storage(self, azurite: AzuriteServer, monkeypatch: pytest.MonkeyPatch) -> Storage:
        # Azure's own are of five thousand, which Azurite needs long to write.
        monkeypatch.setattr(AzureStorage, "page", 250)
        root = f"{azurite.root}/{uuid4().hex}/p"
        return AzureStorage(root, account_key, endpoint=azurite.endpoint)

    def beside(self, storage: Storage) -> Storage:
        assert isinstance(storage, AzureStorage)
        return AzureStorage(f"{storage.root}-beside", account_key, endpoint=storage.address.endpoint)

    def name(self, storage: Storage, key: str) -> str:
        assert isinstance(storage, AzureStorage)
        return storage.address.prefix + key

    def raw_put(self, storage: Storage, key: str, data: bytes) -> None:
        self.raw.upload_blob(self.name(storage, key), data, overwrite=True)

    def raw_get(self, storage: Storage, key: str) -> bytes | None:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            data: bytes = self.raw.download_blob(self.name(storage, key)).readall()
        except ResourceNotFoundError:
            return None
        return data

    def raw_keys(self, storage: Storage) -> set[str]:
        prefix = self.name(storage, "")
        return {name.removeprefix(prefix) for name in self.raw.list_blob_names(name_starts_with=prefix)}

    def reopen(self, storage: Storage) -> Callable[[], Storage]:
        assert isinstance(storage, AzureStorage)
        return functools.partial(AzureStorage, storage.root, account_key, endpoint=storage.address.endpoint)


class TestFakeGcs(AnyNames, StorageConformance):
    # A page has a thousand.
    many = 1_100
    broken: ClassVar[dict[str, str]] = {
        "test_wrong_digests_are_refused": "no digest is sent: GCS compares CRC and MD5",
        "test_a_copy_replaces_nothing": "fake-gcs-server ignores ifGenerationMatch of rewrites",
    }

    @pytest.fixture(autouse=True)
    def _connect(self, fake_gcs: FakeGcsServer) -> None:
        self.endpoint = fake_gcs.endpoint
        self.objects = f"{fake_gcs.endpoint}/storage/v1/b/{fake_gcs.bucket}/o"
        self.uploads = f"{fake_gcs.endpoint}/upload/storage/v1/b/{fake_gcs.bucket}/o"

    @pytest.fixture
    def storage(self, fake_gcs: FakeGcsServer) -> Storage:
        root = f"{fake_gcs.root}/{uuid4().hex}/p"
        return GcsStorage(root, anonymous, endpoint=fake_gcs.endpoint)

    def beside(self, storage: Storage) -> Storage:
        return GcsStorage(f"{storage.root}-beside", anonymous, endpoint=self.endpoint)

    def name(self, storage: Storage, key: str) -> str:
        return f"{storage.root.removeprefix('gs://').partition('/')[2]}/{key}"

    def raw_put(self, storage: Storage, key: str, data: bytes) -> None:
        about = {"uploadType": "media", "name": self.name(storage, key)}
        requests.post(self.uploads, params=about, data=data, timeout=20).raise_for_status()

    def raw_get(self, storage: Storage, key: str) -> bytes | None:
        url = f"{self.objects}/{quote(self.name(storage, key), safe='')}"
        answer = requests.get(url, params={"alt": "media"}, timeout=20)
        return answer.content if answer.ok else None

    def raw_keys(self, storage: Storage) -> set[str]:
        prefix = self.name(storage, "")
        answer = requests.get(self.objects, params={"prefix": prefix, "maxResults": "100000"}, timeout=20)
        return {item["name"].removeprefix(prefix) for item in answer.json().get("items", ())}

    def reopen(self, storage: Storage) -> Callable[[], Storage]:
        return functools.partial(GcsStorage, storage.root, anonymous, endpoint=self.endpoint)


def test_a_bucket_without_a_prefix_is_a_root(s3_server: SeaweedServer) -> None:
    """A bucket alone is a root too: no leading slash in the keys."""
    storage = open_storage(s3_server.root, client=s3_server.client)
    assert isinstance(storage, S3Storage)
    key = f"{uuid4().hex}/a"
    storage.put(key, b"content")
    assert s3_server.client().get_object(Bucket=s3_server.bucket, Key=key)["Body"].read() == b"content"
    assert [info.key for info in storage.list(key)] == [key]
    assert storage.url(key) == f"s3://{s3_server.bucket}/{key}"
    storage.delete([key])
