"""Saves and loads through a proxy before Azurite and fake-gcs-server that resets, refuses, truncates and stalls.

Bytes that change on their way to the server are left out: both clouds are reached by TLS, which notices them, and the
servers here compare no digests. What is read is always verified.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from metaflow_artifacts import ArtifactError, ArtifactNotFound, StorageError, Store, TransientStorageError
from metaflow_artifacts._format.keys import CheckpointPlace
from metaflow_artifacts._storage import Storage, remote_requests
from metaflow_artifacts._storage.azure import AzureStorage
from metaflow_artifacts._storage.gcs import GcsStorage
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._transfer import chunks
from metaflow_artifacts._upkeep.check import check
from metaflow_artifacts.testing.azurite import AzuriteServer, account_key
from metaflow_artifacts.testing.fake_gcs import FakeGcsServer, anonymous
from metaflow_artifacts.testing.faults import Answer, Cut, Damage, Fault, FaultProxy, Lose, Refuse, Request, Stall

CHUNK = 64 << 10
Plan = Callable[[Request], Fault | None]


class Cloud:
    """A root in a cloud, reached through a proxy and without it."""

    def __init__(self, proxy: FaultProxy, open_at: Callable[[str, float], Storage], endpoint: str) -> None:
        self.proxy = proxy
        self.direct = Store(open_at(endpoint, 40), chunk_size=CHUNK)
        self.remote = Store(open_at(proxy.endpoint, 30), chunk_size=CHUNK)

    def plan(self, plan: Plan) -> None:
        self.proxy.plan = plan

    def heal(self) -> None:
        self.proxy.plan = lambda request: None


@pytest.fixture(params=["azure", "gcs"])
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    monkeypatch.setattr(remote_requests, "_FIRST_PAUSE_S", 0.005)
    monkeypatch.setattr(chunks, "RETRY_WINDOW_S", 0.2)
    place = uuid4().hex
    server: AzuriteServer | FakeGcsServer
    if request.param == "azure":
        server = request.getfixturevalue("azurite")
        open_at: Callable[[str, float], Storage] = functools.partial(_open_azure, f"{server.bucket}/{place}")
    else:
        server = request.getfixturevalue("fake_gcs")
        open_at = functools.partial(_open_gcs, f"{server.root}/{place}")
    with FaultProxy(server.endpoint) as proxy:
        yield Cloud(proxy, open_at, server.endpoint)


def _open_azure(below: str, endpoint: str, patience: float) -> Storage:
    account = endpoint if endpoint.endswith("/devstoreaccount1") else f"{endpoint}/devstoreaccount1"
    return AzureStorage(f"{account}/{below}", account_key, endpoint=account, patience=patience)


def _open_gcs(root: str, endpoint: str, patience: float) -> Storage:
    return GcsStorage(root, anonymous, endpoint=endpoint, patience=patience)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "weights.bin").write_bytes(os.urandom(6 * CHUNK + 5))
    (root / "small.txt").write_bytes(b"small" * 100)
    return root


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def failing(call: Callable[[], object], kind: type[ArtifactError] = StorageError) -> str:
    """The message of a call that must not succeed: one line."""
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def first(fault: Fault, times: int) -> Plan:
    """So many requests of each method meet the fault."""
    left: dict[str, int] = {}

    def plan(request: Request) -> Fault | None:
        left[request.method] = left.get(request.method, times) - 1
        return fault if left[request.method] >= 0 else None

    return plan


PASSING: dict[str, Fault] = {
    "answer lost": Lose(),
    "reset at once": Refuse(),
    "reset while sending": Refuse(1000),
    "reset before the answer": Cut(0),
    "reset in the answer": Cut(40000),
    "short answer": Cut(40000, reset=False),
    "500": Answer(500, "InternalError"),
    "503": Answer(503, "ServerBusy"),
    "429": Answer(429, "TooManyRequests"),
    "no answer": Stall(),
    "changed answer": Damage(500),
}


@pytest.mark.parametrize("case", PASSING)
def test_a_fault_that_passes_is_not_noticed(cloud: Cloud, tree: Path, tmp_path: Path, case: str) -> None:
    fault = PASSING[case]
    times = 1 if isinstance(fault, (Stall, Damage)) else 3
    cloud.plan(first(fault, times))
    saved = cloud.remote.save_model(tree)
    cloud.direct.load(saved["key"], tmp_path / "direct")
    assert content(tmp_path / "direct") == content(tree)
    cloud.plan(first(fault, times))
    cloud.remote.load(saved["key"], tmp_path / "out")
    assert content(tmp_path / "out") == content(tree)
    assert check(cloud.direct, read=True).ok


def test_random_faults_are_not_noticed(cloud: Cloud, tmp_path: Path) -> None:
    """One request in twenty, in each way that there is."""
    rest = random.Random(7)
    faults = [fault for fault in PASSING.values() if not isinstance(fault, Stall)]
    cloud.plan(lambda request: rest.choice(faults) if rest.random() < 0.05 else None)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "weights.bin").write_bytes(os.urandom(60 * CHUNK))
    key = cloud.remote.save_model(tmp_path / "tree")["key"]
    cloud.remote.load(key, tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "tree")
    assert list(cloud.remote.list()) == [key]


@pytest.mark.parametrize("times", [1, 2])
def test_a_checkpoint_whose_answer_is_lost_is_saved_once(cloud: Cloud, tree: Path, times: int) -> None:
    left = [Lose()] * times

    def plan(request: Request) -> Fault | None:
        conditional = "if-none-match" in request.headers or "ifGenerationMatch=0" in request.path
        return left.pop() if conditional and left else None

    writer = CheckpointWriter(cloud.remote, CheckpointPlace("F", "s", "0" * 12, "1" * 12), "0" * 8, 0, "F/1/s/2")
    cloud.remote.storage.require_put_if_absent()
    cloud.plan(plan)
    saved = writer.save(tree, label="l")
    assert not left
    assert saved["key"].endswith(".0")
    assert cloud.direct.info(saved["key"])["uuid"] == saved["uuid"]
    report = check(cloud.direct, read=True)
    assert (report.ok, report.artifacts) == (True, 1)


REFUSED: dict[str, tuple[Fault, type[ArtifactError], str]] = {
    "reset": (Lose(), TransientStorageError, "the connection to .* broke"),
    "500": (Answer(500, "InternalError"), TransientStorageError, "the server at .* answered"),
    "503": (Answer(503, "ServerBusy"), TransientStorageError, "asks to slow down"),
    "403": (Answer(403, "AuthorizationPermissionMismatch"), StorageError, "access denied"),
    "401": (Answer(401, "AuthenticationFailed"), StorageError, "credentials"),
    "507": (Answer(507, "Full"), StorageError, ""),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_succeed_says_why_and_leaves_nothing(
    cloud: Cloud, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(remote_requests, "_ATTEMPTS", 3)
    fault, kind, said = REFUSED[case]
    cloud.plan(lambda request: fault if request.method in {"PUT", "POST"} else None)
    message = failing(lambda: cloud.remote.save_model(tree), kind)
    assert cloud.remote.root in message
    assert re.search(said, message), message
    assert list(cloud.direct.list()) == []
    cloud.heal()
    key = cloud.remote.save_model(tree)["key"]
    cloud.plan(lambda request: fault if request.method == "GET" else None)
    failing(lambda: cloud.remote.load(key, tmp_path / "out"), kind)
    assert not (tmp_path / "out").exists()
    cloud.heal()
    cloud.remote.load(key, tmp_path / "out")
    assert content(tmp_path / "out") == content(tree)


def test_what_is_not_there_is_named(cloud: Cloud, tmp_path: Path) -> None:
    key = "mf.models/models/artifacts/m_" + "0" * 32
    message = failing(lambda: cloud.remote.load(key, tmp_path / "out"), ArtifactNotFound)
    assert f"{cloud.remote.root}/{key}" in message or key in message


def test_an_endpoint_where_nobody_listens_is_named(cloud: Cloud, tree: Path) -> None:
    endpoint = cloud.proxy.endpoint
    cloud.proxy.__exit__(None, None, None)
    message = failing(lambda: cloud.remote.save_model(tree), TransientStorageError)
    assert f"cannot connect to {endpoint}" in message


def test_an_object_that_is_replaced_while_it_is_read_is_never_mixed(cloud: Cloud) -> None:
    storage, direct = cloud.remote.storage, cloud.direct.storage
    direct.put("a", b"x" * 200_000)
    cut = [Cut(40_000)]
    cloud.plan(lambda request: cut.pop() if request.method == "GET" and cut else None)
    with storage.open("a") as reader:
        buffer = memoryview(bytearray(10_000))
        assert reader.readinto(buffer) == 10_000
        direct.put("a", b"y" * 200_000)
        rest = memoryview(bytearray(190_000))
        with pytest.raises(TransientStorageError, match="it was replaced while it was read"):
            reader.readinto(rest)


def test_a_client_is_made_anew_after_a_fork(cloud: Cloud) -> None:
    storage = cloud.remote.storage
    storage.put("a", b"content")
    before = cloud.proxy.connections
    child = os.fork()
    if child == 0:
        # Only the kernel's status tells what the child found.
        os._exit(0 if storage.get("a") == b"content" else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert cloud.proxy.connections == before + 1
    assert storage.get("a") == b"content"


def test_a_token_that_is_refused_is_renewed_once(fake_gcs: FakeGcsServer) -> None:
    """What was sent in vain is sent again, from its first byte."""
    from google.auth.credentials import AnonymousCredentials

    class Renewable(AnonymousCredentials):  # type: ignore[misc]
        renewals = 0

        def refresh(self, request: object) -> None:
            self.renewals += 1

    credentials, data = Renewable(), os.urandom(1 << 20)
    with FaultProxy(fake_gcs.endpoint) as proxy:
        storage = GcsStorage(
            f"{fake_gcs.root}/{uuid4().hex}", lambda: (credentials, None), endpoint=proxy.endpoint, patience=3
        )
        proxy.plan = lambda request: Answer(401, "expired") if request.number in {0, 3} else None
        storage.put("a", data)
        assert credentials.renewals == 1
        assert storage.get("a") == data
        assert storage.get("a") == data
        assert credentials.renewals == 2
        proxy.plan = lambda request: Answer(401, "revoked")
        assert "refused the credentials" in failing(lambda: storage.get("a"))


def test_what_the_sdk_sends_again_is_sent_whole(azurite: AzuriteServer) -> None:
    """After a redirection, as after a challenge for a token of another tenant, it sends the same request once more."""
    data = os.urandom(1 << 20)
    with FaultProxy(azurite.endpoint) as proxy:
        account = f"{proxy.endpoint}/devstoreaccount1"
        storage = AzureStorage(f"{account}/{azurite.bucket}/{uuid4().hex}", account_key, endpoint=account, patience=3)
        again = ("Location", f"{proxy.endpoint}/elsewhere")
        proxy.plan = lambda request: (
            Answer(201, "", body="") if request.path == "/elsewhere" else Answer(307, "", headers=(again,))
        )
        storage.put("a", data)
        storage.send("b", len(data), hashlib.sha256(data).digest(), lambda: (block for block in [memoryview(data)]))
        assert [request.size for request in proxy.requests] == [len(data)] * 4


PAGE = "<html><body>Sign in to the network</body></html>"


@pytest.mark.parametrize(
    "answer",
    [Answer(200, "", body=PAGE), Answer(200, "", body="[]"), Answer(204, "", body=""), Answer(301, "", body="")],
    ids=["page", "list", "empty", "moved"],
)
def test_what_a_proxy_answers_is_not_taken_for_the_service(cloud: Cloud, answer: Answer) -> None:
    """Nothing is stored then, and the error is one of this project."""
    storage = cloud.remote.storage
    storage._requests.patience = 0.05  # type: ignore[attr-defined]
    cloud.plan(lambda request: answer)
    calls: list[Callable[[], object]] = [
        lambda: storage.put("a", b"content"),
        lambda: storage.put_if_absent("b", b"content"),
        lambda: storage.touch("a"),
        lambda: storage.stat("a"),
        lambda: list(storage.list("")),
    ]
    for call in calls:
        failing(call)
