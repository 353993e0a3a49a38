"""The name of a request depends on what decides the content, and on nothing else; errors name the wrong argument."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from metaflow_artifacts import InvalidInput
from metaflow_extensions.artifacts_hf.plugins.hf_deco.arguments import RepoRequest, parse_load, without_secrets


def request(**arguments: Any) -> RepoRequest:
    return RepoRequest.of({"repo_id": "org/name", **arguments})


@pytest.mark.parametrize(
    "arguments",
    [
        {"repo_id": "org/other"},
        {"repo_type": "dataset"},
        {"revision": "v1"},
        {"revision": "a" * 40},
        {"allow_patterns": "*.json"},
        {"allow_patterns": []},
        {"ignore_patterns": ["*.json"]},
    ],
)
def test_what_decides_the_content_is_in_the_name(arguments: dict[str, Any]) -> None:
    assert request(**arguments).name != request().name


@pytest.mark.parametrize(
    "arguments",
    [
        {"repo_type": None},
        {"repo_type": "model"},
        {"revision": "main"},
        {"revision": None},
        {"ignore_patterns": []},
        {"token": "secret"},
        {"token": True},
        {"use_auth_token": "secret"},
        {"headers": {"authorization": "secret"}},
        {"endpoint": "http://mirror"},
        {"force_download": True},
        {"max_workers": 1, "etag_timeout": 1, "cache_dir": None, "tqdm_class": None, "resume_download": True},
        {"local_dir": "somewhere", "local_dir_use_symlinks": False, "local_files_only": True},
        {"library_name": "x", "library_version": "1", "user_agent": "x", "proxies": {}},
    ],
)
def test_what_does_not_decide_the_content_is_not(arguments: dict[str, Any]) -> None:
    assert request(**arguments).name == request().name
    assert request(**arguments).metadata("c") == request().metadata("c")


def test_patterns_have_no_order() -> None:
    first, second = request(allow_patterns=["a", "b"]), request(allow_patterns=["b", "a", "b"])
    assert first.name == second.name
    assert request(allow_patterns="a").name == request(allow_patterns=["a"]).name
    assert request(allow_patterns="a").name != request(ignore_patterns="a").name


def test_a_name_is_ten_hex_digits() -> None:
    assert request().name == RepoRequest.of({"repo_id": "org/name"}).name
    assert len(request().name) == 10
    int(request().name, 16)


def test_a_commit_id_never_moves() -> None:
    assert request(revision="a" * 40).commit == "a" * 40
    assert request(revision="a" * 39).commit is None
    assert request().commit is None


def test_a_revision_that_was_resolved_is_its_commit() -> None:
    class Resolved(str):
        resolved = "b" * 40

    assert request(revision=Resolved("main")).commit == "b" * 40


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"repo_id": "a", "cache_dir": "/x"}, "cache_dir: files are kept in the datastore.*local_dir="),
        ({"repo_id": "a", "proxies": {"https": "http://proxy"}}, "proxies: set HTTPS_PROXY"),
        ({"repo_id": "a", "tqdm_class": object}, "tqdm_class: there is no progress bar"),
        ({"repo_id": "a", "resume_download": False}, "resume_download: downloads always resume.*force_download=True"),
        ({"repo_id": "a", "local_dir_use_symlinks": True}, "local_dir_use_symlinks: files are copied"),
        ({"repo_id": "a", "user_agent": 3}, "user_agent: has the wrong type, int"),
        ({"repo_id": "a", "library_name": 3}, "library_name: has the wrong type, int"),
        ({}, "repo_id is missing"),
        ({"repo_id": 3}, "repo_id 3"),
        ({"repo_id": "a/b/c"}, "a/b/c"),
        ({"repo_id": "../x"}, r"\.\./x"),
        ({"repo_id": "./x"}, r"\./x"),
        ({"repo_id": "a/.x"}, r"a/\.x"),
        ({"repo_id": "a", "repo_type": "kernel"}, "expected one of model, dataset, space"),
        ({"repo_id": "a", "revision": ""}, "revision"),
        ({"repo_id": "a", "allow_patterns": 3}, "allow_patterns 3"),
        ({"repo_id": "a", "dry_run": True}, "dry_run"),
        ({"repo_id": "a", "max_workers": "8"}, "max_workers: has the wrong type, str"),
        ({"repo_id": "a", "etag_timeout": "8"}, "etag_timeout: has the wrong type, str"),
        ({"repo_id": "a", "token": ["hf_x"]}, "token: has the wrong type, list"),
        ({"repo_id": "a", "headers": "x"}, "headers: has the wrong type, str"),
        ({"repo_id": "a", "endpoint": 3}, "endpoint: has the wrong type, int"),
        ({"repo_id": "a", "alow_patterns": "x"}, "alow_patterns: not an argument"),
        ({"repo_id": "a", "allow_pattern": "x"}, r"snapshot_download; did you mean allow_patterns\?$"),
        ({"repo_id": "a", "colour": "x"}, "colour: not an argument of huggingface_hub.snapshot_download$"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        RepoRequest.of(arguments)


def test_secrets_do_not_show() -> None:
    secret = request(token="hf_secret", headers={"authorization": "hf_secret"})
    assert "secret" not in repr(secret)
    assert "secret" not in str(secret)
    load = [{"repo_id": "a", "token": "hf_secret"}, ({"repo_id": "b", "headers": {"x": "hf_secret"}}, "path"), "c"]
    clean = without_secrets(load)
    assert "secret" not in repr(clean)
    assert parse_load(clean)[0].request.repo_id == "a"
    assert parse_load(clean)[1].path == "path"
    assert pickle.loads(pickle.dumps(secret)).token == "hf_secret"


def test_the_forms_of_load() -> None:
    load = ["a", ("b", "path"), {"repo_id": "c", "revision": "v1"}, ({"repo_id": "d"}, "path"), ["e", "path"]]
    specs = parse_load(load)
    assert [(spec.request.repo_id, spec.path) for spec in specs] == [
        ("a", None),
        ("b", "path"),
        ("c", None),
        ("d", "path"),
        ("e", "path"),
    ]
    assert specs[2].request.revision == "v1"
    assert parse_load(None) == []
    assert parse_load("a") == parse_load(["a"])
    assert parse_load({"repo_id": "a", "local_dir": "there"})[0].path == "there"


@pytest.mark.parametrize("entry", [3, ("a",), ("a", "b", "c"), ("a", 3), {"revision": "x"}, (3, "path"), None])
def test_what_is_no_form_of_load_is_named(entry: Any) -> None:
    with pytest.raises(InvalidInput, match=r"load\[1\]"):
        parse_load(["a", entry])
