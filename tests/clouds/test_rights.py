"""The rights that docs/clouds.md names are enough, on the server here that can restrict them: Azurite."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from uuid import uuid4

import pytest

from metaflow_artifacts import StorageError, Store
from metaflow_artifacts._format.keys import CheckpointPlace
from metaflow_artifacts._storage.azure import AzureStorage
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._upkeep.check import check
from metaflow_artifacts._upkeep.gc import gc
from metaflow_artifacts.testing.azurite import ACCOUNT_KEY, AzuriteServer


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


def test_the_rights_of_the_page_are_enough(azurite: AzuriteServer, tmp_path: Path) -> None:
    place = uuid4().hex
    reader = limited(azurite, place, read=True, list=True)
    saver = limited(azurite, place, read=True, list=True, write=True, add=True)
    keeper = limited(azurite, place, read=True, list=True, write=True, delete=True)
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

    for key in reader.list():
        keeper.delete(key)
    for key in checkpoints:
        keeper.delete(key)
    assert gc(keeper, grace=0, exclusive=True, dry_run=False).removed > 0
