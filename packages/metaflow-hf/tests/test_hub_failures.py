"""Whatever the Hub answers, its client gives the right bytes or one clear error."""

from __future__ import annotations

import threading
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest
from hub import Hub as HubServer
from hub_client import BIG, big, client, contents, streams
from hub_repo import Repo

from metaflow_extensions.artifacts_hf.plugins.hf_deco import hub as module
from metaflow_extensions.artifacts_hf.plugins.hf_deco.errors import (
    HubDenied,
    HubError,
    HubUnavailable,
)


@pytest.mark.parametrize("what", ["auth", "tree", "xet"])
def test_no_question_waits_without_limit(hub: HubServer, repo: Repo, pauses: list[float], what: str) -> None:
    released = threading.Event()
    hub.fault(what, times=9, hold=released)
    asked = streams(hub, etag_timeout=0.05)
    url = f"{hub.endpoint}/api/models/org/name/xet-read-token/main"
    questions: dict[str, Callable[[], Any]] = {
        "auth": asked.hub.check_access,
        "tree": asked.files,
        "xet": lambda: asked._json(url),
    }
    try:
        with pytest.raises(HubUnavailable, match=rf"{hub.endpoint} cannot be reached \(\w*Timeout"):
            questions[what]()
    finally:
        released.set()
    assert len(pauses) == module.MAX_ATTEMPTS - 1


def test_a_download_resumes_where_its_connection_broke(hub: HubServer, repo: Repo, pauses: list[float]) -> None:
    hub.fault("cdn", cut=1_500_000)
    hub.fault("file", file="config.json", cut=1)
    warnings: list[str] = []
    asked = streams(hub, warnings)
    got = {file.path: b"".join(asked.open(file)) for file in asked.files()}
    assert got == repo.files
    starts = [
        int(request.range.split("=")[1][:-1]) for request in hub.requests if request.what == "cdn" and request.range
    ]
    assert len(starts) == 1
    assert 0 < starts[0] <= 1_500_000
    assert "trying again" in warnings[0]


def test_a_server_without_ranges_begins_at_the_front(hub: HubServer, repo: Repo, pauses: list[float]) -> None:
    hub.ranges = False
    hub.fault("cdn", cut=2_500_000)
    assert b"".join(streams(hub).open(big())) == BIG


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_failing_hub_is_asked_again(hub: HubServer, repo: Repo, pauses: list[float], status: int) -> None:
    for what in ("info", "tree", "file", "cdn"):
        hub.fault(what, status=status)
    assert contents(hub) == repo.files
    assert pauses == [module.FIRST_PAUSE_S] * 4


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("what", ["info", "file"])
def test_the_hub_says_how_long_to_wait(hub: HubServer, repo: Repo, pauses: list[float], status: int, what: str) -> None:
    hub.fault(what, status=status, headers={"Retry-After": "17"})
    assert contents(hub) == repo.files
    assert pauses == [17]


def test_each_form_of_retry_after_is_understood(hub: HubServer, repo: Repo, pauses: list[float]) -> None:
    hub.fault("info", status=429, headers={"RateLimit": '"api";r=0;t=55'})
    hub.fault("info", status=503, headers={"Retry-After": formatdate(usegmt=True)})
    hub.fault("info", status=503, headers={"Retry-After": "soon"})
    hub.fault("info", status=503, headers={"Retry-After": "²"})
    client(hub).resolve()
    # A pause is never shorter than without the header.
    assert pauses == [55, *(n * module.FIRST_PAUSE_S for n in (2, 4, 8))]


def test_the_log_says_how_long_a_pause_is(hub: HubServer, repo: Repo, pauses: list[float]) -> None:
    hub.fault("info", times=2, status=503, headers={"Retry-After": "0"})
    warnings: list[str] = []
    client(hub, warnings).resolve()
    assert pauses == [0.5, 1]
    assert [warning.rpartition("; ")[2] for warning in warnings] == [
        "trying again in 0.5 s",
        "trying again in 1 s",
    ]


def test_too_long_a_wait_is_an_error(hub: HubServer, repo: Repo, pauses: list[float]) -> None:
    hub.fault("info", times=9, status=429, headers={"Retry-After": "3600"})
    with pytest.raises(HubUnavailable, match=r"answers 429; it limits the rate.*asks to wait 3600 s"):
        client(hub).resolve()
    assert pauses == []
    assert hub.count() == 1


@pytest.mark.parametrize("what", ["info", "tree", "file", "cdn"])
def test_a_hub_that_goes_on_failing_is_one_error(hub: HubServer, repo: Repo, pauses: list[float], what: str) -> None:
    hub.fault(what, times=99, status=500)
    with pytest.raises(HubUnavailable, match="the Hub answers 500") as caught:
        contents(hub)
    assert "\n" not in str(caught.value)
    assert hub.count(what) == module.MAX_ATTEMPTS


@pytest.mark.parametrize(
    ("status", "headers", "error", "words"),
    [
        (401, {}, HubDenied, "no such model, or it is private"),
        (403, {}, HubDenied, "access is restricted"),
        (404, {}, HubDenied, "no such model, or it is private"),
        (404, {"X-Error-Code": "EntryNotFound"}, HubDenied, "a file that it lists is not there"),
        (400, {"X-Error-Message": "very\tbad"}, HubError, r"answers 400 \(very bad\)"),
    ],
)
@pytest.mark.parametrize("what", ["info", "file"])
def test_refusals_are_not_asked_again(
    hub: HubServer, repo: Repo, what: str, status: int, headers: dict[str, str], error: type[Exception], words: str
) -> None:
    hub.fault(what, times=99, status=status, headers=headers)
    with pytest.raises(error, match=words):
        contents(hub)
    assert hub.count(what) == 1


def test_a_hub_that_is_down_is_one_error(hub: HubServer, repo: Repo, pauses: list[float]) -> None:
    hub.down()
    with pytest.raises(HubUnavailable, match=rf"org/name: {hub.endpoint} cannot be reached \(Connect"):
        client(hub).resolve()
    assert len(pauses) == module.MAX_ATTEMPTS - 1


def test_a_hub_that_does_not_answer_is_an_error(hub: HubServer, repo: Repo) -> None:
    released = threading.Event()
    hub.fault("info", hold=released)
    asked = client(hub, etag_timeout=0.1)
    try:
        with pytest.raises(HubUnavailable, match="cannot be reached"):
            asked.resolve(attempts=1)
    finally:
        released.set()


def test_missing_bytes_are_requested_again(hub: HubServer, repo: Repo, pauses: list[float]) -> None:
    hub.fault("cdn", body=lambda data: data[:1_000_000])
    assert b"".join(streams(hub).open(big())) == BIG


def test_fewer_bytes_than_listed_are_an_error(hub: HubServer, repo: Repo, pauses: list[float]) -> None:
    hub.fault("cdn", times=99, body=lambda data: data[:1_000_000])
    with pytest.raises(HubError, match=r"weights.bin of org/name: the Hub has fewer bytes than it lists"):
        list(streams(hub).open(big()))


def test_fewer_bytes_from_a_server_without_ranges(hub: HubServer, repo: Repo, pauses: list[float]) -> None:
    hub.ranges = False
    hub.fault("cdn", times=99, body=lambda data: data[:1_000_000])
    with pytest.raises(HubUnavailable, match="received 1000000 bytes instead of 3000000"):
        list(streams(hub).open(big()))
    assert hub.count("cdn") == module.MAX_ATTEMPTS


def test_more_bytes_than_listed_are_an_error(hub: HubServer, repo: Repo) -> None:
    hub.fault("cdn", body=lambda data: data + b"x")
    with pytest.raises(HubError, match="sends more than the 3000000 bytes"):
        list(streams(hub).open(big()))


@pytest.mark.parametrize("file", ["config.json", "weights.bin"])
def test_other_bytes_than_listed_are_an_error(hub: HubServer, repo: Repo, file: str) -> None:
    hub.fault("cdn" if file == "weights.bin" else "file", body=lambda data: b"x" * len(data))
    asked = streams(hub, allow_patterns=file)
    [listed] = asked.files()
    with pytest.raises(HubError, match=f"{file} of org/name: the content is not what the Hub lists"):
        list(asked.open(listed))


def test_content_that_changes_during_its_download_is_an_error(hub: HubServer, pauses: list[float]) -> None:
    """Also where the ids of a server do not tell what the content is."""
    hub.own_ids = True
    repo = hub.repo("org/name", files={"plain.bin": BIG})

    def change(data: bytes) -> bytes:
        repo.commit({"plain.bin": b"x" * len(data)})
        return data

    hub.fault("file", cut=2_400_000, body=change)
    asked = streams(hub)
    with pytest.raises(HubError, match=r"plain.bin of org/name: the content has changed while it was downloaded"):
        list(asked.open(asked.files()[0]))


def test_another_part_than_was_asked_for_is_an_error(hub: HubServer, pauses: list[float]) -> None:
    hub.own_ids = True
    hub.repo("org/name", files={"plain.bin": BIG})
    hub.fault("file", cut=2_400_000)
    hub.fault("file", status=206, answer=BIG[:1_000_000], headers={"Content-Range": "bytes 0-999999/3000000"})
    asked = streams(hub)
    with pytest.raises(HubError, match=r"the Hub sends the bytes from 0 on instead of from \d+ on"):
        list(asked.open(asked.files()[0]))
