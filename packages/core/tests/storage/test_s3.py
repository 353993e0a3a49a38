"""What is special to S3: faults on the way, errors in one line, one client for a process."""

from __future__ import annotations

import functools
import gc
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metaflow_artifacts import Store
from metaflow_artifacts._storage import open_storage, remote_requests
from metaflow_artifacts._storage.s3 import S3Storage, client_config
from metaflow_artifacts.errors import (
    ArtifactError,
    ArtifactNotFound,
    InvalidInput,
    StorageError,
    TransientStorageError,
)
from metaflow_artifacts.testing.faults import Answer, Cut, Damage, Fault, FaultProxy, Lose, Refuse, Request, Stall, once
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

MIB = 1 << 20
DATA = bytes(range(256)) * (2 * MIB // 256) + b"end"
BUSY = Answer(503, "SlowDown")


def always(fault: Fault, method: str) -> Callable[[Request], Fault | None]:
    return lambda request: fault if request.method == method else None


def read(storage: S3Storage, key: str, start: int = 0, block: int = MIB // 3) -> bytes:
    taken = bytearray()
    buffer = memoryview(bytearray(block))
    with storage.open(key, start) as reader:
        while count := reader.readinto(buffer):
            taken += buffer[:count]
    return bytes(taken)


def stage(storage: S3Storage, key: str, data: bytes) -> None:
    with storage.stage(len(data)) as staged:
        staged.write(memoryview(data))
        staged.commit(key, hashlib.sha256(data).digest())


PASSING = [
    BUSY,
    Answer(500, "InternalError"),
    Answer(503, "ServiceUnavailable"),
    Answer(429, "TooManyRequests"),
    Answer(400, "RequestTimeout"),
    Answer(409, "ConditionalRequestConflict"),
    Lose(),
    Refuse(),
]


@pytest.mark.parametrize("fault", PASSING, ids=str)
def test_failed_requests_are_retried(storage: S3Storage, proxy: FaultProxy, direct: S3Storage, fault: Fault) -> None:
    proxy.plan = once(fault, "PUT", 3)
    storage.put("a", DATA)
    assert direct.get("a") == DATA
    proxy.plan = once(fault, "PUT", 3)
    stage(storage, "b", DATA)
    assert direct.get("b") == DATA
    proxy.plan = once(fault, "GET", 3)
    assert storage.get("a") == DATA
    proxy.plan = once(fault, "GET", 3)
    assert read(storage, "a", 5) == DATA[5:]
    proxy.plan = once(fault, "GET", 3)
    assert {info.key for info in storage.list("")} == {"a", "b"}
    proxy.plan = once(fault, "HEAD")
    assert storage.stat("a") is not None
    proxy.plan = once(fault, "PUT", 3)
    assert storage.touch("a") is True
    proxy.plan = once(fault, "POST", 3)
    storage.delete(["a", "b"])
    assert list(direct.list("")) == []


def test_retries_end(storage: S3Storage, proxy: FaultProxy) -> None:
    proxy.plan = always(BUSY, "PUT")
    with pytest.raises(TransientStorageError, match=r"cannot write s3://.*/a: .* asks to slow down; try again"):
        storage.put("a", b"")
    assert 3 < len(proxy.requests) < 10


def test_refusals_are_not_retried(storage: S3Storage, proxy: FaultProxy) -> None:
    proxy.plan = always(Answer(403, "AccessDenied"), "PUT")
    with pytest.raises(StorageError, match=r"cannot write s3://.*/a: access denied") as caught:
        storage.put("a", b"")
    assert not isinstance(caught.value, TransientStorageError)
    assert len(proxy.requests) == 1


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("after", [0, 1, 100_000, len(DATA) - 1])
def test_a_body_that_breaks_off_is_read_to_its_end(
    storage: S3Storage, proxy: FaultProxy, direct: S3Storage, after: int, reset: bool
) -> None:
    direct.put("a", DATA)
    proxy.plan = once(Cut(after, reset), "GET")
    assert storage.get("a") == DATA
    proxy.plan = once(Cut(after, reset), "GET")
    assert read(storage, "a") == DATA
    proxy.plan = once(Cut(after // 2, reset), "GET", 3)
    assert read(storage, "a", 7) == DATA[7:]


def test_bodies_that_always_break_off_are_an_error(storage: S3Storage, proxy: FaultProxy, direct: S3Storage) -> None:
    direct.put("a", DATA)
    proxy.plan = always(Cut(0), "GET")
    with pytest.raises(TransientStorageError, match="try again"):
        storage.get("a")
    with pytest.raises(TransientStorageError, match="try again"):
        read(storage, "a")


def test_a_reader_requests_only_what_is_missing(storage: S3Storage, proxy: FaultProxy, direct: S3Storage) -> None:
    direct.put("a", DATA)
    proxy.plan = always(Cut(MIB, reset=False), "GET")
    assert read(storage, "a") == DATA
    assert [request.headers.get("range") for request in proxy.requests] == [
        None,
        f"bytes={MIB}-{len(DATA) - 1}",
        f"bytes={2 * MIB}-{len(DATA) - 1}",
    ]


def test_a_reader_never_mixes_two_objects(storage: S3Storage, proxy: FaultProxy, direct: S3Storage) -> None:
    direct.put("a", DATA)
    proxy.plan = once(Cut(MIB), "GET")
    with storage.open("a") as reader:
        direct.put("a", DATA[::-1])
        rest = iter(lambda: reader.readinto(memoryview(bytearray(MIB))), 0)
        with pytest.raises(TransientStorageError, match="it was replaced while it was read"):
            list(rest)


def test_connections_are_reused(storage: S3Storage, proxy: FaultProxy, s3_server: SeaweedServer) -> None:
    storage.put("a", DATA)
    for _ in range(5):
        assert read(storage, "a") == DATA
        assert storage.get("a", 3, 5) == DATA[3:8]
        stage(storage, "b", DATA)
        storage.touch("b")
    assert len(proxy.requests) == 21
    assert proxy.connections == 1


def test_bytes_that_change_in_transit_to_s3_are_sent_again(
    storage: S3Storage, proxy: FaultProxy, direct: S3Storage
) -> None:
    proxy.plan = once(Damage(12345, sent=True), "PUT")
    stage(storage, "a", DATA)
    assert direct.get("a") == DATA
    proxy.plan = always(Damage(12345, sent=True), "PUT")
    with pytest.raises(TransientStorageError, match="the content was changed in transit"):
        stage(storage, "b", DATA)
    assert direct.stat("b") is None


@pytest.mark.parametrize("data", [b"mine", b"", DATA], ids=len)
def test_a_conditional_put_whose_answer_is_lost_knows_its_object(
    storage: S3Storage, proxy: FaultProxy, direct: S3Storage, data: bytes
) -> None:
    """The repeated request finds the object of the first, and must not take it for another writer's."""
    proxy.plan = once(Lose(), "PUT")
    assert storage.put_if_absent("a", data) is True
    assert direct.get("a") == data
    proxy.plan = once(Lose(), "PUT")
    assert storage.put_if_absent("a", b"another") is False
    assert direct.get("a") == data


def test_a_server_that_stalls_is_an_error(
    root: str, direct: S3Storage, s3_server: SeaweedServer, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No new attempt begins when the storage's patience is at its end."""
    client = functools.partial(s3_server.client, endpoint_url=proxy.endpoint, config=client_config(read_timeout=0.3))
    # As if each attempt had taken as long as it may by default.
    clock = SimpleNamespace(monotonic=lambda: 18.0 * len(proxy.requests))
    direct.put("a", b"content")
    proxy.plan = always(Stall(), "GET")
    with monkeypatch.context() as patched:
        patched.setattr(remote_requests, "time", clock)
        with pytest.raises(TransientStorageError, match=r"no answer from http://.* in time"):
            open_storage(root, client=client).get("a")
    assert len(proxy.requests) == 3
    proxy.plan = once(Stall(), "GET")
    assert open_storage(root, client=client).get("a") == b"content"


def test_a_server_without_conditional_writes_is_named(storage: S3Storage, proxy: FaultProxy) -> None:
    proxy.plan = always(Answer(501, "NotImplemented"), "PUT")
    with pytest.raises(StorageError, match="does not support this request") as caught:
        storage.put_if_absent("a", b"")
    assert not isinstance(caught.value, TransientStorageError)


def test_a_server_without_ranges_is_named(storage: S3Storage, proxy: FaultProxy) -> None:
    proxy.plan = always(Answer(200, "", body="all of the object"), "GET")
    with pytest.raises(StorageError, match="does not serve byte ranges"):
        storage.get("a", 5, 10)
    with pytest.raises(StorageError, match="does not serve byte ranges"):
        read(storage, "a", 5)


PAGE = "<html><body>Sign in to the network</body></html>"


@pytest.mark.parametrize("answer", [Answer(200, "", body=PAGE), Answer(206, "", body="no <XML>")], ids=["page", "text"])
def test_what_a_proxy_answers_is_not_taken_for_s3(
    root: str, proxy: FaultProxy, storage: S3Storage, answer: Answer
) -> None:
    """Nothing is stored then, and the error is one of this project."""
    storage._requests.patience = 0.05
    proxy.plan = lambda request: answer
    calls: list[Callable[[], object]] = [
        lambda: storage.put("a", b"content"),
        lambda: storage.put_if_absent("b", b"content"),
        lambda: storage.touch("a"),
        lambda: storage.stat("a"),
        lambda: list(storage.list("")),
    ]
    for call in calls:
        with pytest.raises(TransientStorageError):
            call()


def test_a_delete_that_fails_for_some_keys_names_one(storage: S3Storage, proxy: FaultProxy, root: str) -> None:
    prefix = root.partition("//")[2].partition("/")[2]
    refusal = f"<Error><Key>{prefix}/b</Key><Code>AccessDenied</Code><Message>no</Message></Error>"
    proxy.plan = always(Answer(200, "", body=f"<DeleteResult>{refusal}</DeleteResult>"), "POST")
    with pytest.raises(StorageError, match=rf"cannot delete {root}/b: access denied"):
        storage.delete(["a", "b", "c"])


def operations(storage: S3Storage) -> dict[str, Callable[[], object]]:
    return {
        "put": lambda: storage.put("k", b""),
        "put_if_absent": lambda: storage.put_if_absent("k", b""),
        "stage": lambda: stage(storage, "k", b"x"),
        "get": lambda: storage.get("k"),
        "open": lambda: read(storage, "k"),
        "stat": lambda: storage.stat("k"),
        "list": lambda: list(storage.list("k")),
        "delete": lambda: storage.delete(["k"]),
        "touch": lambda: storage.touch("k"),
    }


WRONG = {
    "bucket": ("s3://no-such-bucket/root", {}, "the bucket 'no-such-bucket' does not exist at http://"),
    "bucket name": ("s3://a b/root", {}, "Invalid bucket name"),
    "access key": (None, {"aws_access_key_id": "unknown"}, "does not know the AWS access key; check AWS_ACCESS_KEY_ID"),
    "secret key": (None, {"aws_secret_access_key": "wrong"}, "refused the AWS secret key; check AWS_ACCESS_KEY_ID"),
    "port": (None, {"endpoint_url": "http://127.0.0.1:1"}, "cannot connect to http://127.0.0.1:1 "),
    "host": (None, {"endpoint_url": "http://no-such-host.invalid"}, "cannot connect to http://no-such-host.invalid "),
    "endpoint": (None, {"endpoint_url": "nonsense"}, "Invalid endpoint: nonsense"),
    "protocol": (None, {"endpoint_url": "https"}, r"cannot connect to https://.*SSL"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("operation", operations(S3Storage("s3://abc")))
def test_wrong_settings_are_named(
    s3_server: SeaweedServer, monkeypatch: pytest.MonkeyPatch, wrong: str, operation: str
) -> None:
    monkeypatch.setattr(remote_requests, "_FIRST_PAUSE_S", 0.001)
    root, options, message = WRONG[wrong]
    root = root or s3_server.root
    if options.get("endpoint_url") == "https":
        options = {"endpoint_url": s3_server.endpoint.replace("http:", "https:")}
    storage = S3Storage(root, functools.partial(s3_server.client, **options))
    with pytest.raises(ArtifactError, match=message) as caught:
        operations(storage)[operation]()
    assert isinstance(caught.value, InvalidInput if wrong == "bucket name" else StorageError)
    assert len(str(caught.value).splitlines()) == 1
    assert f"{root}/k" in str(caught.value)
    assert caught.value.__cause__ is not None


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a separate Python process, without the AWS configuration of this machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "METAFLOW_"))}
    isolated = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env={**kept, **isolated, "AWS_EC2_METADATA_DISABLED": "true", **environment},
        capture_output=True,
        text=True,
    )


PUT = """
import sys
from metaflow_artifacts.errors import ArtifactError
from metaflow_artifacts._storage import open_storage
storage = open_storage(sys.argv[1])
try:
    storage.put("a", b"content")
    print(storage.get("a"))
except ArtifactError as error:
    print(type(error).__name__, error)
"""


def test_the_default_client_is_configured_by_the_environment(root: str, s3_server: SeaweedServer) -> None:
    for name in ("METAFLOW_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        environment = s3_server.environment()
        keys = {key: environment[key] for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", name)}
        done = run_python(PUT, root, **keys)
        assert (done.stdout.strip(), done.stderr) == ("b'content'", "")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "no AWS credentials (Unable to locate credentials); check AWS_ACCESS_KEY_ID"),
        ({"AWS_PROFILE": "missing"}, "no AWS credentials (The config profile (missing) could not be found)"),
        ({"AWS_ACCESS_KEY_ID": "a"}, "no AWS credentials (Partial credentials found"),
    ],
)
def test_missing_credentials_are_named(
    root: str, s3_server: SeaweedServer, environment: dict[str, str], message: str
) -> None:
    done = run_python(PUT, root, **{"METAFLOW_S3_ENDPOINT_URL": s3_server.endpoint, **environment})
    assert done.stdout.startswith(f"StorageError cannot write {root}/a: {message}"), done
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("code", ["ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"])
def test_expired_credentials_are_named(storage: S3Storage, proxy: FaultProxy, code: str) -> None:
    storage.put("a", b"")
    proxy.plan = always(Answer(400, code), "PUT")
    with pytest.raises(StorageError, match="the AWS credentials have expired; renew them"):
        storage.put("b", b"")
    # HEAD has no body to tell the reason in.
    proxy.plan = lambda request: Answer(403, code) if request.method in {"HEAD", "GET"} else None
    with pytest.raises(StorageError, match="the AWS credentials have expired; renew them"):
        storage.stat("a")


def test_encryption_is_requested(root: str, s3_server: SeaweedServer, proxy: FaultProxy) -> None:
    client = functools.partial(s3_server.client, endpoint_url=proxy.endpoint)
    storage = S3Storage(root, client, sse="AES256")
    storage.put("a", b"content")
    storage.put_if_absent("b", b"content")
    stage(storage, "c", b"content")
    storage.touch("a")
    asked = [request.headers.get("x-amz-server-side-encryption") for request in proxy.requests]
    assert asked == ["AES256"] * 4
    place = {"Bucket": s3_server.bucket, "Key": storage.url("a").removeprefix(f"{s3_server.root}/")}
    assert s3_server.client().head_object(**place)["ServerSideEncryption"] == "AES256"
    assert storage.get("a") == b"content"
    proxy.plan = always(Answer(400, "KMS.NotFoundException", "no such key"), "PUT")
    storage = S3Storage(root, client, sse="aws:kms", sse_kms_key_id="alias/x")
    with pytest.raises(StorageError, match="the encryption key cannot be used: no such key"):
        storage.put("d", b"content")
    assert proxy.requests[-1].headers["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/x"


def test_the_payload_is_sent_unsigned_and_at_once(storage: S3Storage, proxy: FaultProxy) -> None:
    stage(storage, "a", DATA)
    headers = proxy.requests[0].headers
    assert headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert "x-amz-checksum-sha256" in headers
    assert not {"expect", "x-amz-checksum-crc32", "content-md5", "x-amz-trailer"} & set(headers)


FORK = """
import os, sys
from metaflow_artifacts._storage import open_storage
storage = open_storage(sys.argv[1])
storage.put("a", b"content")
pids = []
for child in range(3):
    pid = os.fork()
    if not pid:
        good = all(storage.put_if_absent(f"{child}/{n}", b"x") and storage.get("a") == b"content" for n in range(20))
        os._exit(0 if good else 1)
    pids.append(pid)
assert all(storage.get("a") == b"content" for n in range(50))
assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
print(len(list(storage.list(""))))
"""


def test_a_storage_outlives_a_fork(root: str, s3_server: SeaweedServer) -> None:
    done = run_python(FORK, root, **s3_server.environment())
    assert (done.stdout.strip(), done.stderr) == ("61", "")


FORK_DURING_AN_IMPORT = """
import os, signal, sys, threading, warnings
from metaflow_artifacts._storage import open_storage

class Slow:
    begun, goes_on = threading.Event(), threading.Event()

    def find_spec(self, name, path=None, target=None):
        if name == "botocore.config" and not self.begun.is_set():
            self.begun.set()
            self.goes_on.wait()

# Of Python 3.12 on, about a fork beside threads.
warnings.simplefilter("ignore", DeprecationWarning)
sys.meta_path.insert(0, Slow())
storage = open_storage(sys.argv[1])
threading.Thread(target=storage.connect).start()
Slow.begun.wait()
# The fork waits for the import, which begins to go on here.
threading.Timer(0.2, Slow.goes_on.set).start()
pid = os.fork()
if not pid:
    signal.alarm(30)
    storage.put("a", b"content")
    os._exit(0)
print(os.waitpid(pid, 0)[1], storage.get("a"))
"""


def test_a_process_may_fork_while_a_thread_imports_boto3(root: str, s3_server: SeaweedServer) -> None:
    done = run_python(FORK_DURING_AN_IMPORT, root, **s3_server.environment())
    assert (done.stdout.strip(), done.stderr) == ("0 b'content'", "")


def test_connecting_early_makes_the_one_client(root: str, s3_server: SeaweedServer) -> None:
    made = []

    def client() -> Any:
        made.append(1)
        if len(made) == 1:
            raise KeyError("a provider's fault")
        return s3_server.client()

    storage = S3Storage(root, client)
    storage.connect()
    assert len(made) == 1
    storage.connect()
    storage.put("a", b"content")
    assert (storage.get("a"), len(made)) == (b"content", 2)


def test_boto3_is_not_imported_before_it_is_needed(root: str) -> None:
    code = (
        "import sys\nfrom metaflow_artifacts._storage import open_storage\n"
        "open_storage(sys.argv[1]); open_storage('/x')\n"
        "print([name for name in sys.modules if name.startswith(('boto', 'urllib3'))])"
    )
    assert run_python(code, root).stdout.strip() == "[]"


def test_the_error_for_a_missing_key_names_it(direct: S3Storage, root: str) -> None:
    with pytest.raises(ArtifactNotFound, match=f"cannot read {root}/a: nothing is stored there"):
        direct.get("a")


def test_old_boto3_is_refused(root: str, s3_server: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import botocore

    monkeypatch.setattr(botocore, "__version__", "1.34.9")
    with pytest.raises(StorageError, match=r"boto3 1.34.9 is too old for the s3 datastore: install boto3>=1.36"):
        S3Storage(root, s3_server.client).put("a", b"")


def test_the_callers_config_takes_precedence() -> None:
    config: Any = client_config(read_timeout=5, s3={"addressing_style": "path"})
    assert (config.read_timeout, config.connect_timeout) == (5, 5)
    assert config.s3 == {"addressing_style": "path"}


def test_buffers_are_freed_after_a_save(direct: S3Storage, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(os.urandom(8 * MIB))

    def buffers() -> int:
        return sum(isinstance(thing, memoryview) for thing in gc.get_objects())

    gc.collect()
    before = buffers()
    gc.disable()
    try:
        Store(direct, chunk_size=MIB).save_model(tmp_path / "weights")
        assert buffers() == before
    finally:
        gc.enable()
