"""S3 servers and credentials that give less than the store needs: each is noticed, or done without."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest

from metaflow_artifacts import Store
from metaflow_artifacts._storage import open_storage, remote_requests
from metaflow_artifacts._storage import s3_client as client_module
from metaflow_artifacts._storage.s3 import S3Storage
from metaflow_artifacts.errors import CorruptArtifact, StorageError, TransientStorageError
from metaflow_artifacts.testing.faults import Answer, FaultProxy, Request
from metaflow_artifacts.testing.promises import (
    copies_without_renewing,
    forbids_deletes,
    ignores_conditions,
    lists_only_below,
    loses_conditional_answers,
    refuses_batches,
    takes_wrong_digests,
)
from metaflow_artifacts.testing.seaweedfs import SeaweedServer
from metaflow_artifacts.testing.servers import S3Server, s3_client

PROBE = "mf.artifacts/probe"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_requests, "_FIRST_PAUSE_S", 0.001)


@pytest.fixture
def proxy(s3_server: SeaweedServer) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint, (s3_server.access_key, s3_server.secret_key)) as proxy:
        yield proxy


@pytest.fixture
def root(s3_server: SeaweedServer) -> str:
    return f"{s3_server.root}/{uuid4().hex}/p"


def methods(proxy: FaultProxy) -> list[str]:
    return [request.method for request in proxy.requests]


def test_put_if_absent_is_tested_once(root: str, s3_server: SeaweedServer, proxy: FaultProxy) -> None:
    def opened() -> S3Storage:
        return S3Storage(root, functools.partial(s3_server.client, endpoint_url=proxy.endpoint))

    first = opened()
    for _ in range(3):
        first.require_put_if_absent()
    assert methods(proxy) == ["PUT", "PUT"]
    assert {urlsplit(request.path).path.partition("/p/")[2] for request in proxy.requests} == {PROBE}
    proxy.requests.clear()
    second = opened()
    barrier = threading.Barrier(8)

    def ask(_: int) -> None:
        barrier.wait()
        second.require_put_if_absent()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert methods(proxy) == ["PUT"]


def check_refused(storage: S3Storage, endpoint: str) -> None:
    storage.put("kept", b"content")
    for _ in range(2):
        with pytest.raises(
            StorageError, match=rf"{endpoint} ignores If-None-Match \(it wrote {PROBE} a second time.*Use a server"
        ) as caught:
            storage.require_put_if_absent()
        assert len(str(caught.value).splitlines()) == 1
        assert storage.root in str(caught.value)
    assert storage.get("kept") == b"content"
    assert {info.key for info in storage.list("")} == {"kept", PROBE}


def test_a_server_that_ignores_conditions_is_named(storage: S3Storage, proxy: FaultProxy) -> None:
    proxy.plan = ignores_conditions()
    check_refused(storage, proxy.endpoint)


def test_rclone_is_named(rclone: S3Server) -> None:
    check_refused(S3Storage(f"{rclone.root}/{uuid4().hex}", rclone.client), rclone.endpoint)


def test_a_server_that_no_longer_ignores_conditions_is_accepted(storage: S3Storage, proxy: FaultProxy) -> None:
    proxy.plan = ignores_conditions()
    with pytest.raises(StorageError, match="a second time"):
        storage.require_put_if_absent()
    proxy.plan = lambda request: None
    storage.require_put_if_absent()


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("times", [1, 2])
def test_the_test_of_put_if_absent_survives_lost_answers(
    storage: S3Storage, proxy: FaultProxy, times: int, after: int
) -> None:
    proxy.plan = loses_conditional_answers(times, after)
    storage.require_put_if_absent()
    assert len(proxy.requests) > 2


def test_a_probe_that_may_not_be_written_is_an_error(storage: S3Storage, proxy: FaultProxy) -> None:
    proxy.plan = lambda request: Answer(403, "AccessDenied") if request.method == "PUT" else None
    with pytest.raises(StorageError, match=f"cannot write {storage.root}/{PROBE}: access denied"):
        storage.require_put_if_absent()


def test_a_local_storage_is_not_tested(tmp_path: Path) -> None:
    open_storage(tmp_path / "root").require_put_if_absent()
    assert list(tmp_path.iterdir()) == []


def at(endpoint: str | None, region: str = "us-east-1") -> S3Storage:
    client = functools.partial(s3_client, "", "no-key", "no-key", endpoint_url=endpoint, region_name=region)
    return S3Storage("s3://bucket/x", client)


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1", "cn-north-1", "us-gov-west-1", "us-iso-east-1"])
def test_aws_is_not_tested(region: str) -> None:
    # A request would fail: the keys are none.
    at(None, region).require_put_if_absent()


@pytest.mark.parametrize(
    ("endpoint", "trusted"),
    [
        ("https://s3.us-west-2.amazonaws.com", True),
        ("http://s3.amazonaws.com:80", True),
        ("https://bucket.vpce-1a2b.s3.us-east-1.vpce.amazonaws.com", True),
        ("https://s3.cn-north-1.amazonaws.com.cn", True),
        ("https://S3.US-EAST-1.AMAZONAWS.COM", True),
        ("https://s3.amazonaws.com.example.org", False),
        ("https://amazonaws.com.example.org", False),
        ("https://notamazonaws.com", False),
        ("https://minio.internal/s3.amazonaws.com", False),
        ("http://127.0.0.1:9000", False),
    ],
)
def test_only_aws_own_hosts_are_trusted(endpoint: str, trusted: bool) -> None:
    assert at(endpoint).trusts_put_if_absent is trusted


@pytest.mark.parametrize("answered", ["2001-02-03T04:05:06.000Z", None])
def test_touch_is_false_where_a_copy_does_not_change_the_time(
    storage: S3Storage, proxy: FaultProxy, direct: S3Storage, answered: str | None
) -> None:
    storage.put("a", b"content")
    info = storage.stat("a")
    assert info is not None
    proxy.plan = copies_without_renewing(answered)
    assert storage.touch("a", info.modified) is False
    # Where the answer tells no time, the object does.
    assert methods(proxy)[2:] == (["PUT"] if answered else ["PUT", "HEAD"])
    assert direct.stat("a") == info
    if answered is None:
        assert storage.touch("b", 0.0) is False


@pytest.mark.parametrize(
    ("status", "code"),
    [(501, "NotImplemented"), (403, "AccessDenied"), (403, "InvalidObjectState"), (400, "KMS.DisabledException")],
)
def test_touch_is_false_where_the_object_may_not_be_copied(
    storage: S3Storage, proxy: FaultProxy, status: int, code: str
) -> None:
    """Without copies, under another's key or in an archive: the caller writes the object again."""
    storage.put("a", b"content")
    proxy.plan = lambda request: Answer(status, code) if "x-amz-copy-source" in request.headers else None
    assert storage.touch("a") is False


def test_a_listing_that_does_not_say_where_it_goes_on_is_an_error(storage: S3Storage, proxy: FaultProxy) -> None:
    page = "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"
    proxy.plan = lambda request: Answer(200, "", body=page) if "list-type" in request.path else None
    with pytest.raises(StorageError, match="a server with ListObjectsV2 is needed"):
        list(storage.list("a"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-01-01T00:00:00Z", 1767225600.0),
        ("2026-01-01T00:00:00.5Z", 1767225600.5),
        ("2026-01-01T00:00:00.1234567Z", 1767225600.1234567),
        ("2026-01-01T01:00:00+01:00", 1767225600.0),
        ("Thu, 01 Jan 2026 00:00:00 GMT", 1767225600.0),
    ],
)
def test_times_of_listings_are_read_in_every_form(text: str, seconds: float) -> None:
    assert client_module._timestamp(text) == pytest.approx(seconds, abs=1e-5)


@pytest.mark.parametrize("text", ["", "yesterday"])
def test_a_time_that_is_none_is_an_error(text: str) -> None:
    with pytest.raises(StorageError, match="for the time of an object"):
        client_module._timestamp(text)


UNSUPPORTED = [
    (400, "MissingContentMD5"),
    (400, "InvalidRequest"),
    (400, "MalformedXML"),
    (405, "MethodNotAllowed"),
    (501, "NotImplemented"),
]


@pytest.mark.parametrize(("status", "code"), UNSUPPORTED)
def test_a_server_without_batches_gets_one_request_a_key(
    storage: S3Storage, proxy: FaultProxy, direct: S3Storage, status: int, code: str
) -> None:
    keys = [f"a/{number}" for number in range(30)]
    for key in [*keys, "b"]:
        direct.put(key, b"")
    proxy.plan = refuses_batches(status, code)
    storage.delete([*keys, "never"])
    assert [info.key for info in direct.list("")] == ["b"]
    assert methods(proxy) == ["POST", *["DELETE"] * 31]
    # No further batch is sent to it.
    storage.delete(["b"])
    assert methods(proxy)[32:] == ["DELETE"]
    assert list(direct.list("")) == []


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (400, "ExpiredToken"), (503, "SlowDown")])
def test_other_refusals_of_batches_are_errors(storage: S3Storage, proxy: FaultProxy, status: int, code: str) -> None:
    proxy.plan = refuses_batches(status, code)
    with pytest.raises(StorageError, match=r"cannot delete s3://.*/a: "):
        storage.delete(["a", "b"])
    assert "DELETE" not in methods(proxy)
    proxy.plan = lambda request: None
    storage.delete(["a"])
    assert methods(proxy)[-1] == "POST"


def test_the_first_error_of_single_deletes_is_raised(storage: S3Storage, proxy: FaultProxy, direct: S3Storage) -> None:
    for number in range(100):
        direct.put(f"a/{number}", b"")
    refuse = refuses_batches()

    def plan(request: Request) -> Any:
        if request.method == "DELETE" and "/a/7?" in f"{request.path}?":
            return Answer(403, "AccessDenied")
        return refuse(request)

    proxy.plan = plan
    with pytest.raises(StorageError, match=rf"cannot delete {storage.root}/a/7: access denied"):
        storage.delete(f"a/{number}" for number in range(100))
    # No more begin after it.
    assert len(proxy.requests) < 60
    assert direct.stat("a/7") is not None


def test_a_missing_permission_to_delete_is_named(storage: S3Storage, proxy: FaultProxy, direct: S3Storage) -> None:
    direct.put("a", b"content")
    proxy.plan = forbids_deletes()
    with pytest.raises(StorageError, match=rf"cannot delete {storage.root}/a: access denied"):
        storage.delete(["a"])
    assert direct.get("a") == b"content"


def test_no_request_leaves_the_root(storage: S3Storage, proxy: FaultProxy, tmp_path: Path) -> None:
    """Credentials that may list below the root only."""
    prefix = storage.root.partition("//")[2].partition("/")[2] + "/"
    proxy.plan = lists_only_below(prefix)
    assert storage.stat("mf.artifacts/chunks/sha256/00/00") is None
    (tmp_path / "weights").write_bytes(bytes(range(256)) * 1024)
    store = Store(storage, chunk_size=64 << 10)
    saved = store.save_model(tmp_path / "weights")
    store.load(saved, tmp_path / "loaded")
    assert (tmp_path / "loaded" / "weights").read_bytes() == bytes(range(256)) * 1024
    bucket = f"/{storage.bucket}"
    for request in proxy.requests:
        parts = urlsplit(request.path)
        wanted = parse_qs(parts.query).get("prefix", [parts.path.removeprefix(f"{bucket}/")])[0]
        assert wanted.startswith(prefix) or (request.method == "POST" and parts.path == bucket), request


def test_credentials_that_may_not_list_can_save(storage: S3Storage, proxy: FaultProxy) -> None:
    proxy.plan = lists_only_below("nowhere")
    assert storage.stat("a") is None
    storage.put("a", b"content")
    assert storage.stat("a") is not None


def test_a_digest_that_no_server_compares_is_compared_by_the_reader(
    storage: S3Storage, proxy: FaultProxy, direct: S3Storage, tmp_path: Path
) -> None:
    (tmp_path / "weights").write_bytes(bytes(range(256)) * 1024)
    chunks = takes_wrong_digests(1234)
    proxy.plan = lambda request: chunks(request) if "/chunks/" in request.path else None
    saved = Store(storage, chunk_size=64 << 10).save_model(tmp_path / "weights")
    with pytest.raises(CorruptArtifact):
        Store(direct, chunk_size=64 << 10).load(saved, tmp_path / "loaded")
    assert not (tmp_path / "loaded" / "weights").exists()


def test_a_versioned_bucket_is_recognised(moto: S3Server, s3_server: SeaweedServer) -> None:
    client = moto.client()
    for name, status in (("enabled-bucket", "Enabled"), ("suspended-bucket", "Suspended"), ("plain-bucket", None)):
        client.create_bucket(Bucket=name)
        if status:
            client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": status})
        storage = S3Storage(f"s3://{name}/x", moto.client)
        assert storage.keeps_versions() is (status == "Enabled")
    assert S3Storage(f"{s3_server.root}/x", s3_server.client).keeps_versions() is False


@pytest.mark.parametrize(
    ("status", "code"), [(403, "AccessDenied"), (501, "NotImplemented"), (405, "MethodNotAllowed")]
)
def test_a_bucket_whose_versioning_is_secret_counts_as_unversioned(
    storage: S3Storage, proxy: FaultProxy, status: int, code: str
) -> None:
    proxy.plan = lambda request: Answer(status, code)
    assert storage.keeps_versions() is False
    assert len(proxy.requests) == 1


def test_a_prefix_with_an_empty_part_is_literal(moto: S3Server) -> None:
    prefix = f"{uuid4().hex}//c"
    storage = S3Storage(f"{moto.root}/{prefix}/", moto.client)
    storage.put("a/k", b"content")
    assert moto.client().get_object(Bucket=moto.bucket, Key=f"{prefix}/a/k")["Body"].read() == b"content"
    assert [info.key for info in storage.list("a/")] == ["a/k"]
    assert storage.touch("a/k")
    storage.delete(["a/k"])
    assert list(storage.list("")) == []


@pytest.mark.parametrize("patience", [0.0, 0.5])
def test_no_attempt_begins_after_the_patience(
    root: str, s3_server: SeaweedServer, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    monkeypatch.setattr(remote_requests, "_FIRST_PAUSE_S", 1.0)
    client = functools.partial(s3_server.client, endpoint_url=proxy.endpoint)
    storage = open_storage(root, client=client, patience=patience)
    proxy.plan = lambda request: Answer(503, "SlowDown")
    with pytest.raises(TransientStorageError, match="asks to slow down"):
        storage.get("a")
    # The shortest pause is half a second.
    assert len(proxy.requests) == 1
