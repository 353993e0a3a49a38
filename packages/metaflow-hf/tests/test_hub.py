"""The client of the Hub gives the right files of the right repo, and tells its token to nobody else."""

from __future__ import annotations

import os
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import requests
from hub import Hub as HubServer
from hub_client import FILES, big, client, contents, streams
from hub_repo import Repo
from huggingface_hub import HfApi, constants

from metaflow_artifacts import UsageError
from metaflow_extensions.artifacts_hf.plugins.hf_deco.errors import (
    CannotStream,
    HubDenied,
    HubError,
    HubUnavailable,
)
from metaflow_extensions.artifacts_hf.plugins.hf_deco.streams import HubStreams
from metaflow_extensions.artifacts_hf.toplevel import hf_toplevel


def test_every_file_is_downloaded_once_and_is_right(hub: HubServer, repo: Repo) -> None:
    assert contents(hub) == repo.files
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
    assert contents(hub, repo_type=kind) == repo.files


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
    assert contents(hub, repo_id="old") == repo.files


def test_an_endpoint_may_have_a_path(hub: HubServer, repo: Repo) -> None:
    hub.folder, hub.page = "/hub", 2
    assert contents(hub) == repo.files
    assert contents(hub, endpoint=f"{hub.endpoint}/") == repo.files
    assert hub.count("tree") == 6


def test_the_proxy_of_the_environment_is_used(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = hub.repo("org/name", files={"config.json": b"{}"})
    monkeypatch.setenv("HTTP_PROXY", hub.endpoint)
    monkeypatch.setenv("http_proxy", hub.endpoint)
    close: Any = getattr(huggingface_hub, "close_session", None) or huggingface_hub.utils.reset_sessions
    close()
    try:
        assert contents(hub, endpoint="http://hub.invalid") == repo.files
    finally:
        close()
    assert {request.path.partition("/api")[0] for request in hub.requests if "/api" in request.path} == {
        "http://hub.invalid"
    }


def test_a_private_repo_opens_to_its_token_alone(hub: HubServer) -> None:
    repo = hub.repo("org/name", private=True, token="hf_right", files=FILES)
    assert contents(hub, token="hf_right") == repo.files
    # The content of LFS files comes from another host, which must not see the token.
    assert {request.authorization for request in hub.requests if request.what == "cdn"} == {None}
    assert client(hub, token="hf_right").resolve().restricted
    for token in (False, "hf_wrong"):
        with pytest.raises(HubDenied, match="no such model, or it is private") as caught:
            client(hub, token=token).resolve()
        assert "hf_" not in str(caught.value)


def test_a_gated_repo_tells_where_to_ask(hub: HubServer) -> None:
    repo = hub.repo("org/name", gated=True, token="hf_right", files=FILES)
    assert contents(hub, token="hf_right") == repo.files
    client(hub, token="hf_right").check_access()
    asked = client(hub)
    commit = asked.resolve()
    assert commit.restricted
    for access in (asked.check_access, lambda: list(HubStreams(asked, commit.commit).open(big()))):
        with pytest.raises(HubDenied, match=rf"restricted; ask for it at {hub.endpoint}/org/name, then set HF_TOKEN"):
            access()


def test_tokens_come_from_the_settings_of_huggingface_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = hub.repo("org/name", private=True, token="hf_right", files=FILES)
    with pytest.raises(HubDenied, match="token=True, but there is no token"):
        client(hub, token=True).resolve()
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert contents(hub, token=None) == repo.files
    assert contents(hub, token=True) == repo.files
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
    contents(hub)
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
        contents(hub, token="hf_x")


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
    assert contents(hub) == repo.files


def test_the_headers_of_the_request_are_sent(hub: HubServer) -> None:
    repo = hub.repo("org/name", private=True, token="hf_right", files=FILES)
    assert contents(hub, headers={"Authorization": "Bearer hf_right"}, token="hf_wrong") == repo.files


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
