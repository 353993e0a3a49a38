"""Storages that another process uses: with the same settings, and with keys that it asks for."""

from __future__ import annotations

import functools
import pickle
import threading
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import pytest
from botocore.credentials import RefreshableCredentials
from botocore.session import Session

from metaflow_artifacts import Storage, StorageError, open_storage
from metaflow_artifacts._storage import handover
from metaflow_artifacts._storage.azure import AzureStorage
from metaflow_artifacts._storage.gcs import GcsStorage
from metaflow_artifacts._storage.handover import NotPortable, hand_over
from metaflow_artifacts._storage.local import LocalStorage
from metaflow_artifacts._storage.s3 import S3Storage
from metaflow_artifacts._storage.s3_client import client_config
from metaflow_artifacts.testing.azurite import ACCOUNT_KEY, AzuriteServer
from metaflow_artifacts.testing.fake_gcs import FakeGcsServer, anonymous
from metaflow_artifacts.testing.seaweedfs import SeaweedServer


def handed(storage: Storage) -> tuple[Storage, list[Any]]:
    """The storage as another process has it, and what it has asked for."""
    given = hand_over(storage)
    asked: list[Any] = []

    def ask(question: Any) -> Any:
        asked.append(question)
        return given.answer(question)

    return pickle.loads(pickle.dumps(given.portable)).open(ask), asked


def works(storage: Storage, again: Storage) -> None:
    """Both write and read the same objects."""
    again.put("a", b"1")
    assert storage.get("a") == b"1"
    assert not again.put_if_absent("a", b"2")
    assert [info.key for info in again.list("")] == ["a"]
    assert again.root == storage.root


class Clients:
    """A function that makes clients which settings and keys describe."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __call__(self) -> Any:
        return self._make()

    def makes_plain_clients(self) -> bool:
        return True


def test_a_directory(tmp_path: Any) -> None:
    storage = LocalStorage(tmp_path, sync=True)
    again, _ = handed(storage)
    works(storage, again)
    assert again._sync  # type: ignore[attr-defined]


def test_s3(s3_server: SeaweedServer) -> None:
    config = client_config(s3={"addressing_style": "path"}, read_timeout=7, user_agent_extra="mine")
    client = Clients(functools.partial(s3_server.client, config=config))
    storage = S3Storage(f"{s3_server.root}/{uuid4().hex}", client, sse="AES256", patience=3)
    again, asked = handed(storage)
    works(storage, again)
    assert asked == []
    made = again._requests.client("reach", "")  # type: ignore[attr-defined]
    before = storage._requests.client("reach", "")
    assert (made.meta.endpoint_url, made.meta.region_name) == (before.meta.endpoint_url, before.meta.region_name)
    assert made.meta.config.read_timeout == 7
    assert made.meta.config.s3 == before.meta.config.s3
    assert made.meta.config.user_agent_extra == "mine"
    assert again._written == storage._written  # type: ignore[attr-defined]
    assert again._requests.patience == 3  # type: ignore[attr-defined]


def test_s3_without_keys_and_at_its_own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore import UNSIGNED

    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    config = client_config(signature_version=UNSIGNED)
    make = Clients(lambda: Session().create_client("s3", region_name="eu-west-1", config=config))
    again, _ = handed(S3Storage("s3://bucket", make))
    made = again._requests.client("reach", "")  # type: ignore[attr-defined]
    assert made.meta.endpoint_url == "https://s3.eu-west-1.amazonaws.com"
    assert made.meta.config.signature_version is UNSIGNED
    # The name of the bucket is in the host, as it is where no endpoint is given.
    urls = [
        client.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "a"})
        for client in (made, make())
    ]
    assert urls[0] == urls[1]
    assert urls[0].startswith("https://bucket.")


def test_s3_keys_that_expire_are_asked_for_again(s3_server: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    renewed = 0

    def renew() -> dict[str, Any]:
        nonlocal renewed
        renewed += 1
        # In the next minute, so that they are renewed each time.
        expires = (datetime.now(timezone.utc) + timedelta(minutes=1)).isoformat()
        return {
            "access_key": s3_server.access_key,
            "secret_key": s3_server.secret_key,
            "token": None,
            "expiry_time": expires,
        }

    def make() -> Any:
        session: Any = Session()
        session._credentials = RefreshableCredentials.create_from_metadata(renew(), renew, method="test")
        return session.create_client(
            "s3", region_name="us-east-1", endpoint_url=s3_server.endpoint, config=client_config()
        )

    storage = S3Storage(f"{s3_server.root}/{uuid4().hex}", Clients(make))
    given = hand_over(storage)
    assert s3_server.secret_key.encode() not in pickle.dumps(given.portable)
    again, asked = handed(storage)
    works(storage, again)
    assert len(asked) == 1
    monkeypatch.setattr(handover, "_AGAIN_S", -1.0)
    again, asked = handed(storage)
    again.put("b", b"1")
    before = renewed
    again.get("b")
    assert len(asked) == 2
    assert renewed == before + 1


def test_s3_keys_that_cannot_be_renewed_are_an_error_of_the_request(s3_server: SeaweedServer) -> None:
    storage = S3Storage(f"{s3_server.root}/{uuid4().hex}", Clients(s3_server.client))
    signer = storage._requests.client("reach", "")._request_signer
    expires = datetime.now(timezone.utc) + timedelta(days=1)
    signer._credentials = RefreshableCredentials("key", "secret", "", expires, lambda: {}, "test")
    given = hand_over(storage)

    def ask(question: Any) -> Any:
        raise StorageError("the role cannot be assumed")

    again = pickle.loads(pickle.dumps(given.portable)).open(ask)
    with pytest.raises(StorageError, match="the role cannot be assumed"):
        again.put("a", b"1")


def _same(credential: Any) -> Any:
    return credential


def test_azure_by_key_signature_and_token(azurite: AzuriteServer, azurite_tls: AzuriteServer, monkeypatch: Any) -> None:
    from azure.core.credentials import AccessToken, AzureNamedKeyCredential, AzureSasCredential

    account = azurite.endpoint.rpartition("/")[2]
    for credential in (ACCOUNT_KEY, AzureNamedKeyCredential(account, ACCOUNT_KEY)):
        root = f"{azurite.root}/{uuid4().hex}"
        storage = AzureStorage(root, functools.partial(_same, credential), endpoint=azurite.endpoint)
        again, asked = handed(storage)
        works(storage, again)
        assert asked == []
    signed = AzureStorage(azurite.root, lambda: AzureSasCredential("sv=1&sig=2"), endpoint=azurite.endpoint)
    again, _ = handed(signed)
    assert again._credential().signature == "sv=1&sig=2"  # type: ignore[attr-defined]

    class Tokens:
        lock = threading.Lock()

        def get_token(self, *scopes: str, **options: Any) -> Any:
            return AccessToken("a token", 4_000_000_000)

    by_token = AzureStorage(azurite_tls.root, Tokens, endpoint=azurite_tls.endpoint)
    again, asked = handed(by_token)
    assert again._credential().get_token("scope", tenant_id="t") == ("a token", 4_000_000_000)  # type: ignore[attr-defined]
    assert asked == [(("scope",), {"tenant_id": "t"})]


def test_gcs(fake_gcs: FakeGcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = GcsStorage(f"{fake_gcs.root}/{uuid4().hex}", anonymous, endpoint=fake_gcs.endpoint)
    again, asked = handed(storage)
    works(storage, again)
    assert asked == []


def test_gcs_tokens_are_asked_for(fake_gcs: FakeGcsServer) -> None:
    from google.auth.credentials import Credentials

    class Numbered(Credentials):  # type: ignore[misc]
        count = 0

        def refresh(self, request: Any) -> None:
            self.count += 1
            self.token, self.expiry = f"token {self.count}", None

    found = Numbered()
    found._quota_project_id = "quota"
    root = f"{fake_gcs.root}/{uuid4().hex}"
    storage = GcsStorage(root, lambda: (found, "project"), endpoint=fake_gcs.endpoint)
    again, asked = handed(storage)
    works(storage, again)
    assert asked == [None]
    credentials, project = again._credentials()  # type: ignore[attr-defined]
    assert (project, credentials.quota_project_id) == ("project", "quota")
    credentials.refresh(None)
    assert credentials.token == "token 1"
    # That one was refused.
    credentials.refresh(None)
    assert credentials.token == "token 2"


def test_others_are_not_handed_over(s3_server: SeaweedServer, tmp_path: Any) -> None:
    class Mine(LocalStorage):
        pass

    with pytest.raises(NotPortable, match="Mine is not a storage of these packages"):
        hand_over(Mine(tmp_path))
    with pytest.raises(NotPortable, match="made by a function"):
        hand_over(open_storage(s3_server.root, client=s3_server.client))
