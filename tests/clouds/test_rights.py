"""The rights that docs/clouds.md names are enough, on the servers here that can restrict them: Azurite and moto."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from metaflow_artifacts import StorageError, Store, open_store
from metaflow_artifacts._format.keys import CheckpointPlace
from metaflow_artifacts._storage.azure import AzureStorage
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._upkeep.check import check
from metaflow_artifacts._upkeep.gc import gc
from metaflow_artifacts.testing.azurite import ACCOUNT_KEY, AzuriteServer
from metaflow_artifacts.testing.moto_server import moto_server
from metaflow_artifacts.testing.servers import s3_client

PAGE = Path(__file__).parents[2] / "docs" / "clouds.md"


def limited(server: AzuriteServer, place: str, **rights: bool) -> Store:
    """A store that is reached with a signature for these rights alone."""
    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    signature = generate_container_sas(
        "devstoreaccount1",
        server.bucket,
        account_key=ACCOUNT_KEY,
        permission=ContainerSasPermissions(**rights),
        expiry=datetime.now(timezone.utc) + timedelta(hours=1),
    )
    storage = AzureStorage(f"{server.root}/{place}", lambda: signature, endpoint=server.endpoint, patience=5)
    return Store(storage, chunk_size=64 << 10)


@pytest.fixture
def azure(azurite: AzuriteServer) -> dict[str, Store]:
    """One root for somebody who loads, somebody who saves, and somebody who deletes; another for who copies from it."""
    place = uuid4().hex
    return {
        "copier": limited(azurite, uuid4().hex, read=True, list=True, write=True, add=True),
        "reader": limited(azurite, place, read=True, list=True),
        "saver": limited(azurite, place, read=True, list=True, write=True, add=True),
        "keeper": limited(azurite, place, read=True, list=True, write=True, delete=True),
    }


def policy_of_the_page(bucket: str, prefix: str) -> Any:
    """The policy for S3, without its condition on what may be listed, which moto does not know."""
    text = PAGE.read_text().split("## Amazon S3")[1]
    found = re.search(r"```json\n(.*?)```", text, re.DOTALL)
    assert found is not None
    policy = json.loads(found[1].replace("BUCKET", bucket).replace("PREFIX", prefix))
    del policy["Statement"][1]["Condition"]
    return policy


def client_of_moto(endpoint: str, access_key: str, secret_key: str) -> Any:
    """A client whose requests have moto keep the SHA-256 that they carry, as S3 does without being asked."""
    client = s3_client(endpoint, access_key, secret_key)
    client.meta.events.register("before-call.s3.PutObject", _ask_for_the_digest)
    return client


def _ask_for_the_digest(params: dict[str, Any], **_: Any) -> None:
    params["headers"]["x-amz-sdk-checksum-algorithm"] = "SHA256"


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[dict[str, Store]]:
    """The same in S3, with a server of its own, since it asks everybody for rights from then on."""
    import boto3
    import requests

    place = uuid4().hex
    with moto_server(tmp_path / "moto") as server:
        keys: dict[str, Any] = {"aws_access_key_id": server.access_key, "aws_secret_access_key": server.secret_key}
        iam = boto3.client("iam", endpoint_url=server.endpoint, region_name="us-east-1", **keys)
        stores = {}
        for name in ("reader", "saver", "keeper", "copier"):
            root = "copy" if name == "copier" else place
            policy = policy_of_the_page(server.bucket, root)
            objects = policy["Statement"][0]
            assert objects["Action"] == ["s3:GetObject", "s3:PutObject"]
            if name == "reader":
                objects["Action"] = ["s3:GetObject"]
            if name == "keeper":
                objects["Action"].append("s3:DeleteObject")
                # moto asks for this right on the bucket where several objects are deleted with one request.
                objects["Resource"].append(f"arn:aws:s3:::{server.bucket}")
            if name == "copier":
                source = f"arn:aws:s3:::{server.bucket}/{place}/*"
                policy["Statement"].append({"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": [source]})
            iam.create_user(UserName=name)
            iam.put_user_policy(UserName=name, PolicyName="page", PolicyDocument=json.dumps(policy))
            key = iam.create_access_key(UserName=name)["AccessKey"]
            client = functools.partial(client_of_moto, server.endpoint, key["AccessKeyId"], key["SecretAccessKey"])
            stores[name] = open_store(f"{server.root}/{root}", client=client)
        requests.post(f"{server.endpoint}/moto-api/reset-auth", data="0", timeout=10).raise_for_status()
        yield stores


@pytest.mark.parametrize("cloud", ["azure", "s3"])
def test_the_rights_of_the_page_are_enough(request: pytest.FixtureRequest, tmp_path: Path, cloud: str) -> None:
    stores: dict[str, Store] = request.getfixturevalue(cloud)
    reader, saver, keeper = stores["reader"], stores["saver"], stores["keeper"]
    source = tmp_path / "weights.bin"
    source.write_bytes(b"0123456789abcdef" * 20_000)

    model = saver.save_model(source)["key"]
    assert saver.save_model(source)["key"] != model
    chunk = next(saver.storage.list("mf.artifacts/chunks/"))
    assert saver.storage.touch(chunk.key, chunk.modified - 1)
    writer = CheckpointWriter(saver, CheckpointPlace("F", "s", "0" * 12, "1" * 12), "0" * 8, 0, "F/1/s/2")
    checkpoints = [writer.save(source, label="l", latest=latest)["key"] for latest in (True, False)]

    for number, key in enumerate([model, *checkpoints]):
        reader.load(key, tmp_path / str(number))
        assert (tmp_path / str(number) / "weights.bin").read_bytes() == source.read_bytes()
    assert check(reader, read=True).ok
    for refused in (lambda: reader.save_model(source), lambda: saver.delete(model), lambda: reader.delete(model)):
        with pytest.raises(StorageError, match="access denied; the credentials in use lack the permission"):
            refused()

    content = sum(info.size for info in reader.storage.list("mf.artifacts/chunks/"))
    result = reader.copy_to(stores["copier"], [model, *checkpoints])
    assert len(result.copied) == 3
    assert result.by_service == content > 0
    assert check(stores["copier"], read=True).ok

    for key in reader.list():
        keeper.delete(key)
    for key in checkpoints:
        keeper.delete(key)
    assert gc(keeper, grace=0, exclusive=True, dry_run=False).removed > 0
