"""What crosses the network, counted between the client and a real S3 server: 64 chunks, as 1 GiB has.

`benchmarks/traffic.py` shows the same at full size.
"""

from __future__ import annotations

import filecmp
import functools
import os
import random
import threading
from pathlib import Path
from uuid import uuid4

import pytest

from metaflow_artifacts import StorageError, Store
from metaflow_artifacts._format.keys import CheckpointPlace
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts._storage.s3 import S3Storage
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts.testing.faults import Answer, Fault, FaultProxy, Request
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

CHUNK = 64 << 10
SIZE = 64 * CHUNK
MIB = SIZE >> 10
"""What 1 MiB is to 1 GiB."""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(SIZE))
    return path


def test_the_first_save_asks_once_for_each_chunk(remote: Store, proxy: FaultProxy, weights: Path) -> None:
    """The first answers of a server say that something is missing. Each costs a round trip before content is sent."""
    remote.save_model(weights)
    methods = [request.method for request in proxy.requests]
    # One listing finds no gc marks, one PUT is the manifest.
    assert {method: methods.count(method) for method in methods} == {"HEAD": 64, "PUT": 65, "GET": 1}


def test_a_save_names_the_bucket_that_is_missing(proxy: FaultProxy, s3_server: SeaweedServer, weights: Path) -> None:
    client = functools.partial(s3_server.client, endpoint_url=proxy.endpoint)
    with pytest.raises(StorageError, match="the bucket 'no-such-bucket' does not exist at http://"):
        Store(open_storage("s3://no-such-bucket/root", client=client), chunk_size=CHUNK).save_model(weights)


def test_equal_chunks_are_sent_once(remote: Store, proxy: FaultProxy, tmp_path: Path) -> None:
    """Though many are hashed and sent at the same time."""
    (tmp_path / "zeros").write_bytes(bytes(SIZE))
    remote.save_model(tmp_path / "zeros")
    assert [request.method for request in proxy.requests if "/chunks/" in request.path].count("PUT") == 1


@pytest.mark.parametrize("size", [64 << 20, pytest.param(1 << 30, marks=pytest.mark.long)])
def test_a_copy_between_two_buckets_does_not_pass_the_client(
    s3_server: SeaweedServer, proxy: FaultProxy, tmp_path: Path, size: int
) -> None:
    """64 chunks, as 1 GiB has: the requests are the same for each size."""
    bucket = uuid4().hex
    s3_server.client().create_bucket(Bucket=bucket)
    proxied = functools.partial(s3_server.client, endpoint_url=proxy.endpoint)
    roots = f"{s3_server.root}/{uuid4().hex}", f"s3://{bucket}/copy"
    direct = [Store(open_storage(root, client=s3_server.client), chunk_size=size // 64) for root in roots]
    source, target = (Store(open_storage(root, client=proxied)) for root in roots)
    with (tmp_path / "weights").open("wb") as out:
        for _ in range(64):
            out.write(random.randbytes(size // 64))
    key = direct[0].save_model(tmp_path / "weights")["key"]
    assert not proxy.requests
    result = source.copy_to(target, [key])
    assert (result.sent, result.by_service) == (manifest_of(direct[0], key), size)
    headers = sum(len(name) + len(value) + 4 for one in proxy.requests for name, value in one.headers.items())
    print(f"{size >> 20} MiB: {proxy.received} bytes sent, {proxy.sent} received, {headers} of headers in", end=" ")
    print(f"{len(proxy.requests)} requests")
    assert proxy.received + proxy.sent + headers < 1 << 20
    direct[1].load(key, tmp_path / "loaded")
    assert filecmp.cmp(tmp_path / "weights", tmp_path / "loaded" / "weights", shallow=False)


def test_what_the_service_may_not_copy_passes_the_client(
    remote: Store, proxy: FaultProxy, s3_server: SeaweedServer, tmp_path: Path, weights: Path
) -> None:
    """As where the credentials for the target have no right to read the source."""
    key = remote.save_model(weights)["key"]
    client = functools.partial(s3_server.client, endpoint_url=proxy.endpoint)
    target = Store(open_storage(f"{s3_server.root}/{uuid4().hex}", client=client))
    denied = Answer(403, "AccessDenied")
    proxy.plan = lambda request: denied if "x-amz-copy-source" in request.headers else None
    result = remote.copy_to(target, [key])
    assert (result.sent, result.by_service) == (SIZE + manifest_of(remote, key), 0)
    target.load(key, tmp_path / "loaded")
    assert filecmp.cmp(weights, tmp_path / "loaded" / "weights", shallow=False)


def manifest_of(store: Store, reference: str) -> int:
    return len(store.storage.get(reference))


def test_unchanged_content_is_not_sent(remote: Store, proxy: FaultProxy, weights: Path) -> None:
    remote.save_model(weights)
    assert proxy.received > SIZE
    proxy.received = 0
    saved = remote.save_model(weights)
    # A row for each chunk is all that a second version costs.
    assert proxy.received <= manifest_of(remote, saved["key"]) + MIB


def test_a_change_in_the_last_tenth_sends_less_than_a_fifth(remote: Store, proxy: FaultProxy, weights: Path) -> None:
    remote.save_model(weights)
    proxy.received = 0
    with weights.open("r+b") as file:
        file.seek(SIZE - SIZE // 10)
        file.write(os.urandom(SIZE // 10))
    remote.save_model(weights)
    assert SIZE // 10 < proxy.received < SIZE // 5


def test_a_repeated_save_sends_only_what_is_missing(remote: Store, proxy: FaultProxy, weights: Path) -> None:
    sent = 0
    lock = threading.Lock()

    def plan(request: Request) -> Fault | None:
        nonlocal sent
        if request.method == "PUT" and "/chunks/" in request.path:
            with lock:
                sent += 1
                if sent > 50:
                    return Answer(403, "AccessDenied")
        return None

    proxy.plan = plan
    with pytest.raises(StorageError, match=r"AccessDenied|denied"):
        remote.save_model(weights)
    assert list(remote.list()) == []
    proxy.plan = lambda request: None
    proxy.received = 0
    remote.save_model(weights)
    assert proxy.received < 20 * CHUNK


def test_loading_one_small_file_reads_little_more_than_it(remote: Store, proxy: FaultProxy, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_bytes(b"{}" * 100)
    (model / "tokenizer.json").write_bytes(os.urandom(CHUNK // 4))
    (model / "weights").write_bytes(os.urandom(SIZE))
    saved = remote.save_model(model)
    proxy.sent = 0
    assert remote.read_file(saved, "config.json") == b"{}" * 100
    assert proxy.sent < 200 + manifest_of(remote, saved["key"]) + MIB


@pytest.mark.parametrize("metadata", [4_000, 200_000])
def test_the_head_of_a_large_manifest_is_read_alone(
    remote: Store, proxy: FaultProxy, tmp_path: Path, metadata: int
) -> None:
    """However long it is, in at most two requests, and without the rows of 1,000 files."""
    saved = remote.save_model({f"{number:04}": b"1" for number in range(1000)}, metadata={"notes": "x" * metadata})
    rows = manifest_of(remote, saved["key"]) - metadata
    proxy.requests.clear()
    proxy.sent = 0
    assert len(remote.head(saved).artifact["metadata"]["notes"]) == metadata
    assert [request.method for request in proxy.requests] == ["GET", "GET"]
    assert proxy.sent < metadata + rows / 2


PLACE = CheckpointPlace("F", "train", "a" * 12, "b" * 12)


def checkpoints(store: Store) -> CheckpointWriter:
    """The checkpoints of an attempt that has saved nothing yet, as a task knows."""
    return CheckpointWriter(store, PLACE, "0123abcd", 0, "F/1/train/2", start=0)


def test_a_small_model_is_one_request(remote: Store, proxy: FaultProxy, tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(os.urandom(4096))
    remote.save_model(tmp_path / "state")
    assert [request.method for request in proxy.requests] == ["PUT"]


def test_a_small_checkpoint_is_one_request_where_the_server_is_trusted(
    remote: Store, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at AWS' own addresses."""
    monkeypatch.setattr(S3Storage, "trusts_put_if_absent", True)
    (tmp_path / "state").write_bytes(os.urandom(4096))
    writer = checkpoints(remote)
    for saved in (1, 2, 3):
        writer.save(tmp_path / "state", label="l")
        assert [request.method for request in proxy.requests] == ["PUT"] * saved


def test_a_small_checkpoint_is_one_request_more_once_where_the_server_is_asked(
    remote: Store, proxy: FaultProxy, tmp_path: Path
) -> None:
    (tmp_path / "state").write_bytes(os.urandom(4096))
    writer = checkpoints(remote)
    # The first process of all: it must see that its own object is not overwritten.
    writer.save(tmp_path / "state", label="l")
    assert [request.method for request in proxy.requests] == ["PUT"] * 3
    # Another process, for which the object of the first one is there.
    del remote.storage._refuses_existing_keys
    proxy.requests.clear()
    for saved in (1, 2, 3):
        writer.save(tmp_path / "state", label="l")
        assert [request.method for request in proxy.requests] == ["PUT"] * (1 + saved)


def bytes_of_new_objects(root: Path, known: set[Path]) -> int:
    """Of all files below the root that are not known; then they are."""
    new = {path for path in root.rglob("*") if path.is_file()} - known
    known |= new
    return sum(path.stat().st_size for path in new)


@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_small_file_beside_weights_costs_little(
    request: pytest.FixtureRequest, tmp_path: Path, proxy: FaultProxy, remote: Store, where: str
) -> None:
    """At full chunk size: what a training loop saves again and again."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights.bin").write_bytes(os.urandom(7 << 20))
    root = tmp_path / "store"
    store = Store(open_storage(root) if where == "local" else remote.storage)
    known: set[Path] = set()
    for step in range(4):
        (model / "state.json").write_bytes(b"%-100d" % step)
        proxy.received = 0
        store.save_model(model)
        stored = bytes_of_new_objects(root, known) if where == "local" else proxy.received
        assert stored > 7 << 20 if step == 0 else 0 < stored < 64 << 10


def test_one_of_many_small_files_costs_a_pack(tmp_path: Path) -> None:
    """2,000 files of 16 kB: a pack has at most 4 MiB."""
    model = tmp_path / "model"
    model.mkdir()
    content = random.Random(1)
    for number in range(2000):
        (model / f"{number}.npy").write_bytes(content.randbytes(16_000))
    store = Store(open_storage(tmp_path / "store"))
    chunks = {chunk.sha256 for chunk in store.manifest(store.save_model(model)).chunks}
    for number in (0, 999, 1999):
        (model / f"{number}.npy").write_bytes(content.randbytes(16_000))
        new = {chunk for chunk in store.manifest(store.save_model(model)).chunks if chunk.sha256 not in chunks}
        assert 0 < sum(chunk.size for chunk in new) <= 4 << 20
        chunks |= {chunk.sha256 for chunk in new}
