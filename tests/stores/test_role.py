"""A store whose config names a role."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from metaflow_artifacts import open_store
from metaflow_artifacts._mf.datastore import s3_client
from metaflow_artifacts._mf.store_config import StoreConfig, kind_of
from metaflow_artifacts.testing.servers import S3Server


def test_a_role_is_assumed_and_assumed_again_before_it_expires(
    moto: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in moto.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", moto.endpoint)
    role = "arn:aws:iam::123456789012:role/artifacts"
    root = f"{moto.root}/{tmp_path.name}"
    params = {"endpoint_url": moto.endpoint, "region_name": "us-east-1"}
    config = StoreConfig.read(kind_of("s3", ""), {"root": root, "role_arn": role, "client_params": params}, "here")
    client = s3_client(None, config)
    credentials = client._request_signer._credentials
    store = open_store(root, client=lambda: client)
    saved = store.save_model({"content": b"x"})
    first = credentials.get_frozen_credentials().access_key
    assert first.startswith("ASIA")
    # As time does: these expire in the next minute.
    expiry = datetime.now(timezone.utc) + timedelta(minutes=1)
    credentials._expiry_time = expiry
    for answer in credentials._refresh_using.__self__._cache.values():
        answer["Credentials"]["Expiration"] = expiry.isoformat()
    assert Path(store.load(saved, tmp_path / "out"), "content").read_text() == "x"
    second = credentials.get_frozen_credentials().access_key
    assert second.startswith("ASIA")
    assert second != first
