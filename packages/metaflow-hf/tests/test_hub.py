"""The client of the Hub gives the right bytes or one clear error, whatever the Hub answers."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from email.utils import formatdate
from importlib.metadata import version
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import requests
from hub import Hub as HubServer
from hub_repo import Blob, Repo, lfs
from huggingface_hub import HfApi, constants

from metaflow_artifacts import UsageError
from metaflow_extensions.artifacts_hf.plugins.hf_deco import hub as module
from metaflow_extensions.artifacts_hf.plugins.hf_deco.arguments import RepoRequest
from metaflow_extensions.artifacts_hf.plugins.hf_deco.errors import (
    CannotStream,
    HubDenied,
    HubError,
    HubUnavailable,
)
from metaflow_extensions.artifacts_hf.plugins.hf_deco.hub import Hub
from metaflow_extensions.artifacts_hf.plugins.hf_deco.streams import HubFile, HubStreams
from metaflow_extensions.artifacts_hf.toplevel import hf_toplevel

BIG = random.Random(1).randbytes(3_000_000)
FILES: dict[str, bytes | Blob] = {"config.json": b"{}", "empty": b"", "sub/ü x.txt": b"hello", "weights.bin": lfs(BIG)}


@pytest.fixture
def repo(hub: HubServer) -> Repo:
    return hub.repo("org/name", files=FILES)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses before retries, in seconds. The tests do not wait for them."""
    waited: list[float] = []
    monkeypatch.setattr(module, "pause", lambda seconds, cancelled: waited.append(seconds))
    return waited


def client(hub: HubServer, warnings: list[str] | None = None, **arguments: Any) -> Hub:
    request = RepoRequest.of({"repo_id": "org/name", "endpoint": hub.endpoint, "token": False, **arguments})
    return Hub(request, ([] if warnings is None else warnings).append)


def streams(hub: HubServer, warnings: list[str] | None = None, **arguments: Any) -> HubStreams:
    return HubStreams(client(hub, warnings, **arguments), "main")


def contents(hub: HubServer, repo: Repo, **arguments: Any) -> dict[str, bytes]:
    asked = client(hub, **arguments)
    files = HubStreams(asked, asked.resolve().commit)
    return {file.path: b"".join(files.open(file)) for file in files.files()}


def big(repo: Repo) -> HubFile:
    return HubFile("weights.bin", len(BIG), lfs(BIG).oid)


def test_every_file_is_downloaded_once_and_is_right(hub: HubServer, repo: Repo) -> None:
    assert contents(hub, repo) == repo.files
    # One request for the commit, one for the list, one a file; nothing for an empty one.
    assert hub.count("info") == hub.count("tree") == 1
    assert hub.fetched() == {"config.json": 1, "sub/ü x.txt": 1, "weights.bin": 1}
    assert hub.count() == 2 + 3 + hub.count("cdn")


def test_the_list_comes_in_pages_and_in_order(hub: HubServer) -> None:
    names = [f"{n:03}/f" for n in range(25)] + ["b", "a", "ä"]
    hub.repo("org/name", files={name: name.encode() for name in names})
    hub.page = 7
    listed = streams(hub).files()
    assert [file.path for file in listed] == sorted(names, key=str.encode)


def test_patterns_select_files(hub: HubServer, repo: Repo) -> None:
    def paths(**patterns: Any) -> list[str]:
        return [file.path for file in streams(hub, **patterns).files()]

    assert paths(allow_patterns="*.json") == ["config.json"]
    assert paths(ignore_patterns=["*.json", "sub/"]) == ["empty", "weights.bin"]
    assert paths(allow_patterns=["sub/*", "*.bin"], ignore_patterns=["*.bin"]) == ["sub/ü x.txt"]
    assert paths(allow_patterns=[]) == []


@pytest.mark.parametrize("kind", ["dataset", "space"])
def test_datasets_and_spaces_are_downloaded(hub: HubServer, kind: str) -> None:
    repo = hub.repo("org/name", kind, files=FILES)
    assert contents(hub, repo, repo_type=kind) == repo.files


def test_branches_tags_and_commits_are_resolved(hub: HubServer, repo: Repo) -> None:
    old = repo.refs["main"]
    repo.tag("v1")
    repo.commit({"config.json": b"{1}"}, branch="feature/x")
    new = repo.commit({"config.json": b"{2}"})
    assert client(hub).resolve().commit == new
    assert client(hub, revision="v1").resolve().commit == old
    assert client(hub, revision="feature/x").resolve().commit == repo.refs["feature/x"]
    with pytest.raises(HubDenied, match=r"org/name at v2: the Hub has this repo, but not this revision"):
        client(hub, revision="v2").resolve()


def test_a_renamed_repo_is_followed(hub: HubServer, repo: Repo) -> None:
    hub.rename("old", "org/name")
    assert contents(hub, repo, repo_id="old") == repo.files


def test_an_endpoint_may_have_a_path(hub: HubServer, repo: Repo) -> None:
    hub.folder, hub.page = "/hub", 2
    assert contents(hub, repo) == repo.files
    assert contents(hub, repo, endpoint=f"{hub.endpoint}/") == repo.files
    assert hub.count("tree") == 6


def test_the_proxy_of_the_environment_is_used(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = hub.repo("org/name", files={"config.json": b"{}"})
    monkeypatch.setenv("HTTP_PROXY", hub.endpoint)
    monkeypatch.setenv("http_proxy", hub.endpoint)
    close: Any = getattr(huggingface_hub, "close_session", None) or huggingface_hub.utils.reset_sessions
    close()
    try:
        assert contents(hub, repo, endpoint="http://hub.invalid") == repo.files
    finally:
        close()
    assert {request.path.partition("/api")[0] for request in hub.requests if "/api" in request.path} == {
        "http://hub.invalid"
    }


def test_a_private_repo_opens_to_its_token_alone(hub: HubServer) -> None:
    repo = hub.repo("org/name", private=True, token="hf_right", files=FILES)
    assert contents(hub, repo, token="hf_right") == repo.files
    # The content of LFS files comes from another host, which must not see the token.
    assert {request.authorization for request in hub.requests if request.what == "cdn"} == {None}
    assert client(hub, token="hf_right").resolve().restricted
    for token in (False, "hf_wrong"):
        with pytest.raises(HubDenied, match="no such model, or it is private") as caught:
            client(hub, token=token).resolve()
        assert "hf_" not in str(caught.value)


def test_a_gated_repo_tells_where_to_ask(hub: HubServer) -> None:
    repo = hub.repo("org/name", gated=True, token="hf_right", files=FILES)
    assert contents(hub, repo, token="hf_right") == repo.files
    client(hub, token="hf_right").check_access()
    asked = client(hub)
    commit = asked.resolve()
    assert commit.restricted
    for access in (asked.check_access, lambda: list(HubStreams(asked, commit.commit).open(big(repo)))):
        with pytest.raises(HubDenied, match=rf"restricted; ask for it at {hub.endpoint}/org/name, then set HF_TOKEN"):
            access()


def test_tokens_come_from_the_settings_of_huggingface_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = hub.repo("org/name", private=True, token="hf_right", files=FILES)
    with pytest.raises(HubDenied, match="token=True, but there is no token"):
        client(hub, token=True).resolve()
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert contents(hub, repo, token=None) == repo.files
    assert contents(hub, repo, token=True) == repo.files
    with pytest.raises(HubDenied):
        client(hub, token=False).resolve()


def test_the_user_agent_has_the_version_of_the_distribution(hub: HubServer) -> None:
    agent = client(hub).headers()["user-agent"]
    assert agent.startswith(f"metaflow-artifacts-hf/{hf_toplevel.__version__}; ")
    assert hf_toplevel.__version__ == version("metaflow-artifacts-hf")


def test_the_program_that_the_request_names_is_in_the_user_agent(hub: HubServer) -> None:
    asked = client(hub, library_name="mine", library_version="3", user_agent={"job": "x"})
    agent = asked.headers()["user-agent"]
    assert agent.startswith("mine/3; ")
    assert agent.endswith("; job/x")


def test_no_request_is_made_for_the_user_agent(
    hub: HubServer, repo: Repo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """huggingface_hub would ask the Hub which programs there are that may have started this one."""
    _detect_agent = pytest.importorskip("huggingface_hub.utils._detect_agent")
    # Nothing is known, neither in this process nor on this disk.
    monkeypatch.setattr(_detect_agent, "_registry", None)
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "none.json"))
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    contents(hub, repo)
    client(hub).check_access()
    assert hub.count("other") == 0
    utils: Any = huggingface_hub.utils
    utils.build_hf_headers()
    assert hub.count("other") == 1


def test_telemetry_is_restored_after_an_error_and_in_a_forked_child(
    hub: HubServer, repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    with pytest.raises(HubDenied):
        client(hub, repo_id="no/such").resolve()
    assert constants.HF_HUB_DISABLE_TELEMETRY is False
    asked, released = client(hub), threading.Event()
    held = hub.fault("info", hold=released)
    thread = threading.Thread(target=asked.resolve)
    thread.start()
    try:
        # Before that, the thread may be within an import, which the child could not make any more.
        while held.times:
            assert thread.is_alive()
        assert constants.HF_HUB_DISABLE_TELEMETRY is True
        child = os.fork()
        if not child:
            asked.headers()
            os._exit(int(constants.HF_HUB_DISABLE_TELEMETRY))
        assert os.waitpid(child, 0)[1] == 0
    finally:
        released.set()
        thread.join()
    assert constants.HF_HUB_DISABLE_TELEMETRY is False


def test_an_endpoint_that_only_some_of_huggingface_hub_knows_gets_no_token(
    hub: HubServer, repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    with pytest.raises(HubError, match=f"its address is not at {hub.endpoint}; set HF_ENDPOINT"):
        contents(hub, repo, token="hf_x")


@pytest.mark.parametrize("kind", [{"private": True}, {"gated": True}])
def test_access_is_checked_by_versions_that_have_no_function_for_it(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, kind: dict[str, Any]
) -> None:
    hub.repo("org/name", token="hf_right", files=FILES, **kind)
    monkeypatch.delattr(HfApi, "auth_check")

    # Nor can they be told another endpoint than HF_ENDPOINT.
    def hf_hub_url(repo_id: str, filename: str, *, repo_type: str, revision: str) -> str:
        return f"{hub.endpoint}/{repo_id}/resolve/{revision}/{filename}"

    monkeypatch.setattr(huggingface_hub, "hf_hub_url", hf_hub_url)
    with pytest.raises(UsageError, match=r"does not know the argument endpoint=.*or set HF_ENDPOINT"):
        client(hub, token="hf_right").check_access()
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    client(hub, token="hf_right").check_access()
    with pytest.raises(HubDenied):
        client(hub).check_access()


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


def test_the_token_goes_to_no_other_host_for_the_next_page(hub: HubServer, repo: Repo) -> None:
    """A mirror may give the address of the Hub behind it."""
    for n in range(20):
        repo.commit({f"{n}": b"x"})
    hub.page, hub.next_at = 7, "http://elsewhere.invalid"
    assert len(streams(hub, token="hf_right").files()) == len(repo.files)
    assert hub.count("tree") == 4


@pytest.mark.parametrize("link", ["?cursor=7", "tree?cursor=7", "/api/models/org/name/tree/main?cursor=7"])
def test_a_next_page_may_have_a_relative_address(
    hub: HubServer, repo: Repo, monkeypatch: pytest.MonkeyPatch, link: str
) -> None:
    answer = requests.Response()
    answer.url = f"{hub.endpoint}/api/models/org/name/tree/main?recursive=true"
    answer.headers["Link"] = f'<{link}>; rel="next"'
    address = streams(hub)._next_page(answer)
    assert address is not None
    assert address.startswith(f"{hub.endpoint}/api/models/org/name/tree")
    assert address.endswith("?cursor=7")


def test_a_list_whose_next_page_is_nowhere_is_an_error(hub: HubServer, repo: Repo) -> None:
    hub.fault("tree", answer=b"[]", headers={"Link": '<http://elsewhere.invalid/x>; rel="next"'})
    with pytest.raises(HubError, match="whose next page is not at a Hub"):
        streams(hub).files()


def test_a_list_without_an_end_is_an_error(hub: HubServer, repo: Repo) -> None:
    link = f'<{hub.endpoint}/api/models/org/name/tree/main?cursor=1>; rel="next"'
    hub.fault("tree", times=9, answer=b"[]", headers={"Link": link})
    with pytest.raises(HubError, match="a file list of org/name that has no end"):
        streams(hub).files()
    assert hub.count("tree") == 2


def test_the_path_of_an_endpoint_may_have_api_in_it(hub: HubServer) -> None:
    """As that of a remote repository in JFrog Artifactory has."""
    hub.folder, hub.page = "/artifactory/api/huggingfaceml/remote", 2
    repo = hub.repo("org/name", files=FILES)
    assert contents(hub, repo) == repo.files


def test_the_headers_of_the_request_are_sent(hub: HubServer) -> None:
    repo = hub.repo("org/name", private=True, token="hf_right", files=FILES)
    assert contents(hub, repo, headers={"Authorization": "Bearer hf_right"}, token="hf_wrong") == repo.files


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
    assert b"".join(streams(hub).open(big(repo))) == BIG


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_failing_hub_is_asked_again(hub: HubServer, repo: Repo, pauses: list[float], status: int) -> None:
    for what in ("info", "tree", "file", "cdn"):
        hub.fault(what, status=status)
    assert contents(hub, repo) == repo.files
    assert pauses == [module.FIRST_PAUSE_S] * 4


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("what", ["info", "file"])
def test_the_hub_says_how_long_to_wait(hub: HubServer, repo: Repo, pauses: list[float], status: int, what: str) -> None:
    hub.fault(what, status=status, headers={"Retry-After": "17"})
    assert contents(hub, repo) == repo.files
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
        contents(hub, repo)
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
        contents(hub, repo)
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
    assert b"".join(streams(hub).open(big(repo))) == BIG


def test_fewer_bytes_than_listed_are_an_error(hub: HubServer, repo: Repo, pauses: list[float]) -> None:
    hub.fault("cdn", times=99, body=lambda data: data[:1_000_000])
    with pytest.raises(HubError, match=r"weights.bin of org/name: the Hub has fewer bytes than it lists"):
        list(streams(hub).open(big(repo)))


def test_fewer_bytes_from_a_server_without_ranges(hub: HubServer, repo: Repo, pauses: list[float]) -> None:
    hub.ranges = False
    hub.fault("cdn", times=99, body=lambda data: data[:1_000_000])
    with pytest.raises(HubUnavailable, match="received 1000000 bytes instead of 3000000"):
        list(streams(hub).open(big(repo)))
    assert hub.count("cdn") == module.MAX_ATTEMPTS


def test_more_bytes_than_listed_are_an_error(hub: HubServer, repo: Repo) -> None:
    hub.fault("cdn", body=lambda data: data + b"x")
    with pytest.raises(HubError, match="sends more than the 3000000 bytes"):
        list(streams(hub).open(big(repo)))


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


def test_offline_no_request_is_made(hub: HubServer, repo: Repo, pauses: list[float]) -> None:
    asked = client(hub, local_files_only=True)
    assert asked.offline
    with pytest.raises(HubUnavailable, match="HF_HUB_OFFLINE is set, or local_files_only was passed"):
        asked.resolve()
    assert hub.count() == 0
    assert pauses == []


ROW = {"type": "file", "path": "a", "size": 1, "oid": "a" * 40}
BAD: tuple[dict[str, Any], ...] = (
    {"path": 3},
    {"size": -1},
    {"size": "1"},
    {"size": True},
    {"oid": "x"},
    {"type": 1},
    *({"lfs": {"oid": "a" * 64, "size": size}} for size in ("1", -1, None)),
)


@pytest.mark.parametrize("answer", [{"error": "x"}, [None], *([{**ROW, **bad}] for bad in BAD)])
def test_a_file_list_of_another_kind_cannot_be_streamed(
    hub: HubServer, repo: Repo, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    monkeypatch.setattr(HubStreams, "_json", lambda *_: (answer, None))
    with pytest.raises(CannotStream, match="cannot be read"):
        streams(hub).files()


@pytest.mark.parametrize("path", ["../x", "/x", "a/./b", "a/", "", "a\0b", "\ud800"])
def test_a_listed_file_that_leads_out_is_an_error(
    hub: HubServer, repo: Repo, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(HubStreams, "_json", lambda *_: ([{**ROW, "path": path}], None))
    with pytest.raises(HubError, match="which is not below it"):
        streams(hub).files()


def test_a_path_that_is_a_file_and_a_directory_is_an_error(
    hub: HubServer, repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**ROW, "path": path} for path in ("a/b/c", "a")]
    monkeypatch.setattr(HubStreams, "_json", lambda *_: (rows, None))
    with pytest.raises(HubError, match="lists 'a' of org/name as a file and as a directory"):
        streams(hub).files()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b'{"id": "org/name"}', "does not tell the commit of org/name: is it a Hugging Face Hub"),
        (b'{"id": "org/name", "sha": "main"}', "does not tell the commit of org/name: is it a Hugging Face Hub"),
        (b"<html>", r"answers about org/name with something that cannot be read \(JSONDecodeError"),
        (b"{}", r"answers about org/name with something that cannot be read \(KeyError"),
        (b"[]", r"huggingface_hub \S+ works in an unknown way \(TypeError"),
    ],
)
def test_a_server_that_is_not_a_hub_is_an_error(
    hub: HubServer, repo: Repo, pauses: list[float], answer: bytes, words: str
) -> None:
    hub.fault("info", answer=answer)
    with pytest.raises(HubError, match=words):
        client(hub).resolve()
    assert pauses == []
