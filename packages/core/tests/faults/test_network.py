"""Saves and loads through a proxy before S3 that resets, refuses, stalls, truncates and changes what it passes."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from faultlib.outcomes import RIGHT, Outcomes, content, failing, loading

from metaflow_artifacts import Store, TransientStorageError
from metaflow_artifacts._upkeep.check import check
from metaflow_artifacts.testing.faults import Answer, Cut, Damage, Fault, FaultProxy, Lose, Refuse, Request, Stall

CHUNK = 64 << 10
ONCE = "S3: requests that fail, and succeed in a later attempt"
ALWAYS = "S3: requests that fail in every attempt"

Plan = Callable[[Request], Fault | None]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "weights.bin").write_bytes(os.urandom(6 * CHUNK + 5))
    (root / "small.txt").write_bytes(b"small" * 100)
    return root


def first(fault: Fault, times: int) -> Plan:
    """So many requests of each method meet the fault."""
    left = dict.fromkeys(("GET", "PUT", "HEAD", "POST"), times)

    def plan(request: Request) -> Fault | None:
        left[request.method] -= 1
        return fault if left[request.method] >= 0 else None

    return plan


PASSING: list[tuple[str, Fault]] = [
    ("the connection is reset, the request was carried out", Lose()),
    ("the connection is reset before the request is read", Refuse()),
    ("the connection is reset at byte 1000 of what is sent", Refuse(1000)),
    ("the connection is reset at byte 0 of the answer", Cut(0)),
    ("the connection is reset at byte 1 of the answer", Cut(1)),
    ("the connection is reset at byte 40000 of the answer", Cut(40000)),
    ("the answer ends at byte 0, under its full Content-Length", Cut(0, reset=False)),
    ("the answer ends at byte 40000, under its full Content-Length", Cut(40000, reset=False)),
    ("500 InternalError", Answer(500, "InternalError")),
    ("503 SlowDown", Answer(503, "SlowDown")),
    ("503 ServiceUnavailable", Answer(503, "ServiceUnavailable")),
    ("429 TooManyRequests", Answer(429, "TooManyRequests")),
    ("400 RequestTimeout", Answer(400, "RequestTimeout")),
    ("no answer for longer than the time limit", Stall()),
    ("wrong bytes in the answer, under a right length", Damage(500)),
    ("wrong bytes in what is sent, under a right length", Damage(500, sent=True)),
]


@pytest.mark.parametrize(("case", "fault"), PASSING)
def test_a_fault_that_passes_is_not_noticed(
    remote: Store,
    direct: Store,
    proxy: FaultProxy,
    tree: Path,
    tmp_path: Path,
    outcomes: Outcomes,
    case: str,
    fault: Fault,
) -> None:
    times = 1 if isinstance(fault, (Stall, Damage)) else 3
    proxy.plan = first(fault, times)
    saved = remote.save_model(tree)
    assert loading(direct, saved["key"], tmp_path / "direct", content(tree)) == RIGHT
    proxy.plan = first(fault, times)
    outcome = loading(remote, saved["key"], tmp_path / "out", content(tree))
    assert outcome == RIGHT
    outcomes.record(ONCE, case, outcome)
    (tmp_path / "inline").write_bytes(b"x" * 2000)
    proxy.plan = first(fault, times)
    small = remote.save_model(tmp_path / "inline")
    assert loading(direct, small["key"], tmp_path / "small", {b"inline": b"x" * 2000}) == RIGHT
    assert list(direct.list()) == sorted([saved["key"], small["key"]])
    assert check(direct, read=True).ok


def test_random_faults_at_all_requests_are_not_noticed(
    remote: Store, direct: Store, proxy: FaultProxy, tmp_path: Path, outcomes: Outcomes
) -> None:
    """One request in twenty, in each way that there is."""
    rest = random.Random(7)
    faults = [fault for _, fault in PASSING if not isinstance(fault, Stall)]
    proxy.plan = lambda request: rest.choice(faults) if rest.random() < 0.05 else None
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "weights.bin").write_bytes(os.urandom(150 * CHUNK))
    for number in range(200):
        (tmp_path / "tree" / f"{number}.txt").write_bytes(os.urandom(number))
    expected = content(tmp_path / "tree")
    key = remote.save_model(tmp_path / "tree")["key"]
    assert loading(remote, key, tmp_path / "out", expected) == RIGHT
    assert loading(direct, key, tmp_path / "direct", expected) == RIGHT
    assert len(proxy.requests) > 450
    outcomes.record(ONCE, "5 % of all requests, each of the above at random", RIGHT)


def always(fault: Fault, *methods: str) -> Plan:
    return lambda request: fault if request.method in methods else None


REFUSED: list[tuple[str, Fault]] = [
    ("the connection is reset", Lose()),
    ("the connection is reset at byte 1000 of what is sent", Refuse(1000)),
    ("500 InternalError", Answer(500, "InternalError")),
    ("503 SlowDown", Answer(503, "SlowDown")),
    ("no answer at all", Stall()),
    ("403 AccessDenied", Answer(403, "AccessDenied")),
    ("403 ExpiredToken", Answer(403, "ExpiredToken")),
    ("403 InvalidAccessKeyId", Answer(403, "InvalidAccessKeyId")),
    ("403 RequestTimeTooSkewed", Answer(403, "RequestTimeTooSkewed")),
    ("507 InsufficientStorage", Answer(507, "InsufficientStorage")),
]
GARBLED: list[tuple[str, Fault]] = [
    ("the answer ends at byte 0, under its full Content-Length", Cut(0, reset=False)),
    ("the connection is reset at byte 0 of the answer", Cut(0)),
    ("wrong bytes in the answer, under a right length", Damage(500)),
]


@pytest.mark.parametrize(("case", "fault"), REFUSED)
def test_a_save_that_cannot_succeed_leaves_no_artifact(
    remote: Store,
    impatient: Store,
    direct: Store,
    proxy: FaultProxy,
    tree: Path,
    tmp_path: Path,
    outcomes: Outcomes,
    case: str,
    fault: Fault,
) -> None:
    proxy.plan = always(fault, "PUT")
    outcomes.record(ALWAYS, f"{case}: save", failing(lambda: impatient.save_model(tree), impatient))
    assert list(direct.list()) == []
    proxy.plan = lambda request: None
    key = remote.save_model(tree)["key"]
    assert loading(remote, key, tmp_path / "out", content(tree)) == RIGHT


@pytest.mark.parametrize(("case", "fault"), [*REFUSED[:1], *REFUSED[2:-1], *GARBLED])
def test_a_load_that_cannot_succeed_leaves_nothing(
    remote: Store,
    impatient: Store,
    direct: Store,
    proxy: FaultProxy,
    tree: Path,
    tmp_path: Path,
    outcomes: Outcomes,
    case: str,
    fault: Fault,
) -> None:
    key = direct.save_model(tree)["key"]
    proxy.plan = lambda request: fault if request.method == "GET" and "/chunks/" in request.path else None
    outcome = loading(impatient, key, tmp_path / "out", content(tree))
    assert outcome != RIGHT
    outcomes.record(ALWAYS, f"{case}: load of a chunk", outcome)
    proxy.plan = always(fault, "GET")
    outcomes.record(ALWAYS, f"{case}: load of a manifest", loading(impatient, key, tmp_path / "out", content(tree)))
    proxy.plan = lambda request: None
    assert loading(remote, key, tmp_path / "out", content(tree)) == RIGHT


def test_a_save_fails_where_bytes_always_change_in_transit(
    remote: Store, direct: Store, proxy: FaultProxy, tree: Path, outcomes: Outcomes
) -> None:
    proxy.plan = always(Damage(500, sent=True), "PUT")
    case = "wrong bytes in what is sent, under a right length: save"
    outcomes.record(ALWAYS, case, failing(lambda: remote.save_model(tree), remote))
    proxy.plan = lambda request: Damage(500, sent=True) if "/mf.models/" in request.path else None
    outcomes.record(ALWAYS, f"{case} of the manifest", failing(lambda: remote.save_model(tree), remote))
    assert list(direct.list()) == []


@pytest.mark.parametrize("after", [0, 1, 5, 12, 15])
def test_a_save_continues_after_expired_credentials_were_renewed(
    remote: Store, direct: Store, proxy: FaultProxy, tree: Path, tmp_path: Path, outcomes: Outcomes, after: int
) -> None:
    """Each request from one on is refused; with new credentials, the same save sends only the rest."""
    proxy.plan = lambda request: Answer(403, "ExpiredToken") if request.number >= after else None
    failing(lambda: remote.save_model(tree), remote)
    assert list(direct.list()) == []
    assert check(direct).ok
    sent = sum(info.size for info in direct.storage.list("mf.artifacts/chunks/"))
    proxy.plan = lambda request: None
    proxy.received = 0
    key = remote.save_model(tree)["key"]
    assert proxy.received < 6 * CHUNK + 1000 - sent + 4000
    assert loading(remote, key, tmp_path / "out", content(tree)) == RIGHT
    outcomes.record(ALWAYS, "credentials expire during a save, and are renewed", "the same save sends only the rest")


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_load_succeeds_after_expired_credentials_were_renewed(
    remote: Store, direct: Store, proxy: FaultProxy, tree: Path, tmp_path: Path, outcomes: Outcomes, after: int
) -> None:
    key = direct.save_model(tree)["key"]
    proxy.plan = lambda request: Answer(403, "ExpiredToken") if request.number >= after else None
    assert loading(remote, key, tmp_path / "out", content(tree)) != RIGHT
    proxy.plan = lambda request: None
    assert loading(remote, key, tmp_path / "out", content(tree)) == RIGHT


def test_a_save_whose_answer_is_lost_is_saved_once(remote: Store, direct: Store, proxy: FaultProxy, tree: Path) -> None:
    """Also where all answers to the commit are lost: then the save fails although the artifact is there, whole."""
    proxy.plan = lambda request: Lose() if "/mf.models/" in request.path else None
    with pytest.raises(TransientStorageError):
        remote.save_model(tree)
    assert len(list(direct.list())) == 1
    assert check(direct, read=True).ok


def test_an_endpoint_where_nobody_listens_is_named(
    remote: Store, proxy: FaultProxy, tree: Path, outcomes: Outcomes
) -> None:
    proxy.__exit__(None, None, None)
    key = "mf.models/models/artifacts/m_" + "0" * 32
    for what, call in (("save", lambda: remote.save_model(tree)), ("load", lambda: remote.load(key, tree))):
        outcomes.record(ALWAYS, f"nobody listens at the endpoint: {what}", failing(call, remote))
