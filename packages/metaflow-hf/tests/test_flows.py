"""`@huggingface_hub` in real runs, against the test Hub."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hub import Hub
from hub_repo import Repo, lfs

from metaflow_artifacts import open_store
from metaflow_artifacts._format.keys import HUB
from metaflow_artifacts.testing.flows import FlowRunner, Result
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

FLOWS = Path(__file__).parent / "flows"
WEIGHTS = random.Random(3).randbytes(2_000_000)
FILES: dict[str, Any] = {"config.json": b"{}", "sub/vocab.txt": b"words", "weights.bin": lfs(WEIGHTS)}
SIZES = {"config.json": 2, "sub/vocab.txt": 5, "weights.bin": 2_000_000}


def environment(hub: Hub) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.endpoint}


@pytest.fixture
def runner(tmp_path: Path, hub: Hub) -> FlowRunner:
    """Runs with the local datastore."""
    return FlowRunner(tmp_path, environment(hub))


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.long)])
def on_each(request: pytest.FixtureRequest, tmp_path: Path, hub: Hub) -> FlowRunner:
    """Runs with either datastore, of which S3 is tried seldom: it hardly matters to what depends on the Hub."""
    variables = environment(hub)
    if request.param == "s3":
        server: SeaweedServer = request.getfixturevalue("s3_server")
        variables.update(server.environment())
        variables["METAFLOW_DATASTORE_SYSROOT_S3"] = f"{server.root}/{uuid4().hex}"
        variables["METAFLOW_DEFAULT_DATASTORE"] = "s3"
    return FlowRunner(tmp_path, variables)


@pytest.fixture
def repo(hub: Hub) -> Repo:
    return hub.repo("org/name", files=FILES)


def snapshots(runner: FlowRunner) -> list[str]:
    """The keys of all snapshots in the local datastore."""
    return sorted(open_store(runner.local_root).list(f"{HUB}/checkpoints/artifacts/"))


def no_traceback(result: Result) -> bool:
    """Whether no frame of this package is in the output. On some Pythons, Metaflow prints a traceback of gzip."""
    return "hf_deco" not in result.output and "Internal error" not in result.output


def test_snapshots_are_kept_in_the_artifact_store_of_the_flow(runner: FlowRunner, repo: Repo, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    result = runner.with_environment(STORE=store).run(FLOWS / "store_flow.py")
    assert result.fact("loaded") == ["config.json", "sub", "weights.bin"]
    (key,) = open_store(store).list(f"{HUB}/checkpoints/artifacts/")
    assert result.fact("url") == f"{store}/{key}"
    assert [path.name for path in Path(runner.local_root).iterdir()] == ["StoreFlow"]


@pytest.mark.long
@pytest.mark.parametrize("scope", ["flow", "global"])
def test_a_wider_cache_scope_shares_snapshots_with_other_steps_and_flows(
    runner: FlowRunner, hub: Hub, repo: Repo, tmp_path: Path, scope: str
) -> None:
    runner = runner.with_environment(SCOPE=scope)
    first = runner.run(FLOWS / "reference_flow.py")
    other = tmp_path / "other_flow.py"
    other.write_text((FLOWS / "reference_flow.py").read_text().replace("ReferenceFlow", "OtherFlow"))
    key = first.fact("reference")["key"]

    someone = runner.with_environment(METAFLOW_USER="someone", USERNAME="someone", HF_HUB_OFFLINE="1")
    assert someone.run(FLOWS / "reference_flow.py").fact("reference")["key"] == key
    with hub.counting() as requests:
        second = runner.run(other)
    assert requests == {"info": 1}
    assert (second.fact("reference")["key"] == key) == (scope == "global")
    hub.down()
    assert someone.run(other).fact("reference")["key"] == second.fact("reference")["key"]


def test_each_form_of_load_gives_the_files(runner: FlowRunner, hub: Hub) -> None:
    for name in ("plain", "pair", "tagged"):
        hub.repo(f"org/{name}", files={"name.csv": name.encode(), "other.txt": b""}).tag("v1")
    hub.repos["model", "org/tagged"].commit({"name.csv": b"later"})
    hub.repo("org/data", "dataset", files={"name.csv": b"data", "name.parquet": lfs(WEIGHTS)})
    result = runner.run(FLOWS / "load_flow.py")
    paths = result.fact("paths")
    assert result.fact("contents") == {f"org/{name}": name for name in ("plain", "pair", "data", "tagged")}
    assert result.fact("listed") == ["name.csv"]
    assert set(result.fact("info").values()) == {"model", "dataset"}
    assert result.fact("mapping") == [True, False, 4]
    assert paths["org/pair"] == "here/pair"
    assert paths["org/tagged"] == "here/tagged"
    assert "/scratch/metaflow_hf_" in paths["org/plain"]
    assert result.fact("inside") == "plain"
    assert result.fact("gone") is True
    assert result.fact("kept path") == "here/kept"
    assert result.fact("kept") == result.fact("local") == "plain"
    assert result.fact("scratch gone") is True
    assert (runner.work / "here" / "tagged" / "name.csv").read_text() == "tagged"
    assert "name.parquet" not in hub.fetched()
    assert list((runner.work / "scratch").iterdir()) == []
    assert runner.leftovers() == []


def test_the_tasks_of_a_foreach_download_each_file_once(on_each: FlowRunner, hub: Hub, repo: Repo) -> None:
    result = on_each.with_environment(TASKS="5").run(FLOWS / "foreach_flow.py", "--max-workers", "5")
    assert hub.fetched() == dict.fromkeys(SIZES, 1)
    assert hub.count("tree") == 1
    assert len(set(result.facts("key"))) == 5
    assert result.facts("size") == [2_000_000] * 5


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        pytest.param(500, {}, "answers 500", marks=pytest.mark.long),
        pytest.param(
            *(429, {"Retry-After": "1000"}, "answers 429; it limits the rate of requests"), marks=pytest.mark.long
        ),
        (401, {}, "no such model, or it is private"),
        pytest.param(*(403, {}, "access is restricted; ask for it at"), marks=pytest.mark.long),
        pytest.param(
            *(404, {"X-Error-Code": "EntryNotFound"}, "a file that it lists is not there"), marks=pytest.mark.long
        ),
    ],
)
def test_a_failed_download_is_one_clear_error(
    runner: FlowRunner, hub: Hub, repo: Repo, status: int, headers: dict[str, str], words: str
) -> None:
    hub.fault("file", file="weights.bin", times=99, status=status, headers=headers)
    result = runner.run(FLOWS / "reference_flow.py", fails=True)
    assert no_traceback(result)
    [line] = [line for line in result.lines if words in line and "trying again" not in line]
    assert line.startswith("weights.bin of org/name at main: ")
    assert snapshots(runner) == []


def test_passing_failures_of_the_hub_are_retried(runner: FlowRunner, hub: Hub, repo: Repo) -> None:
    hub.fault("info", status=503)
    hub.fault("tree", status=429, headers={"Retry-After": "1"})
    hub.fault("file", file="config.json", status=500)
    hub.fault("cdn", cut=1_000_000)
    result = runner.run(FLOWS / "reference_flow.py")
    assert result.fact("files") == SIZES
    assert sum("trying again" in line for line in result.lines) == 4
    # A step without a card gets none.
    assert not list(runner.directory.rglob("*.html"))


def test_a_killed_download_leaves_no_snapshot_and_delays_nobody(runner: FlowRunner, hub: Hub, repo: Repo) -> None:
    """A big file that the killed task had completed is not downloaded again."""
    big = random.Random(4).randbytes(9_000_000)
    repo.commit({"big.bin": lfs(big)})
    storage = open_store(runner.local_root).storage
    released = threading.Event()
    hub.fault("cdn", file="weights.bin", times=99, hold=released)
    try:
        process = runner.start(FLOWS / "reference_flow.py", "run")
        while "weights.bin" not in hub.fetched() or not list(storage.list(f"{HUB}/files/")):
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    finally:
        released.set()
    assert snapshots(runner) == []
    assert list(storage.list(f"{HUB}/leases/"))
    hub.wait_until_unused()
    hub.clear()
    result = runner.run(FLOWS / "reference_flow.py")
    assert result.fact("files") == {**SIZES, "big.bin": 9_000_000}
    assert hub.fetched() == dict.fromkeys(SIZES, 1)
    assert not list(storage.list(f"{HUB}/leases/"))


def card_of(runner: FlowRunner, step: str) -> str:
    """The newest card of a step's repos."""
    cards = Path(runner.local_root, "mf.cards").rglob(f"{step}/**/huggingface_hub-*.html")
    return max(cards, key=lambda path: path.stat().st_mtime).read_text()


def test_the_card_shows_what_was_downloaded_and_why_a_stored_snapshot_was_used(
    runner: FlowRunner, hub: Hub, repo: Repo
) -> None:
    runner.run(FLOWS / "reference_flow.py", "--with", "card")
    card = card_of(runner, "start")
    for text in ("org/name from the Hub", repo.refs["main"], "weights.bin", "1.9 MiB", "sub/vocab.txt", "done"):
        assert text in card
    hub.down()
    runner.run(FLOWS / "reference_flow.py", "--with", "card")
    card = card_of(runner, "start")
    assert "org/name from the datastore" in card
    assert "cannot be reached" in card


def test_a_step_that_fails_has_a_card(runner: FlowRunner, hub: Hub, repo: Repo) -> None:
    hub.fault("info", times=99, status=404)
    runner.run(FLOWS / "reference_flow.py", "--with", "card", "--revision", "none", fails=True)
    card = card_of(runner, "start")
    assert "failed" in card
    assert "No repo was asked for" in card
    assert '<div class="message">HubDenied: org/name at none: ' in card


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"cache_scope": "world"}, "@huggingface_hub(cache_scope='world'): expected one of checkpoint, flow, global"),
        ({"load": [3]}, "@huggingface_hub: load[0]: expected a repo id, a dict"),
        ({"load": [{"revision": "x"}]}, "@huggingface_hub: load[0]: repo_id is missing"),
        ({"load": ["a/b/c"]}, "@huggingface_hub: load[0]: repo_id 'a/b/c': expected"),
        ({"load": [{"repo_id": "a/b", "alow_patterns": "x"}]}, "load[0]: alow_patterns: not an argument of"),
    ],
)
def test_mistakes_stop_a_run_before_it_begins(runner: FlowRunner, arguments: Any, words: str) -> None:
    result = runner.with_environment(ARGUMENTS=json.dumps(arguments)).run(FLOWS / "mistake_flow.py", fails=True)
    assert words in result.output
    assert no_traceback(result)
    assert "Task is starting" not in result.output


def test_with_gives_the_same_as_the_source(runner: FlowRunner, repo: Repo) -> None:
    load = '[{"repo_id": "org/name", "token": false, "allow_patterns": "*.json"}]'
    given = f"huggingface_hub:load={load},cache_scope=global,show_card=False"
    result = runner.run(FLOWS / "given_flow.py", "--with", given)
    assert result.fact("listed") == {"org/name": ["config.json"]}
    assert result.fact("scope") == "global"
    kwargs = {"repo_id": "org/name", "repo_type": "model", "allow_patterns": ["*.json"]}
    assert result.fact("kept") == [True, kwargs]


def test_a_token_on_the_command_line_stops_a_run_before_it_begins(runner: FlowRunner) -> None:
    token = "hf_" + uuid4().hex
    given = f'huggingface_hub:load=[{{"repo_id": "org/name", "token": "{token}"}}]'
    result = runner.run(FLOWS / "given_flow.py", "--with", given, fails=True)
    assert "load= on the command line has 'token', which would be part of the command of every task" in result.output
    assert no_traceback(result)
    assert "Workflow starting" not in result.output
    assert token not in result.output
    assert [path for path in everything_below(runner.directory) if contains(path, token)] == []


def test_a_library_that_cannot_be_imported_is_one_clear_error(runner: FlowRunner, repo: Repo, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "huggingface_hub.py").write_text("raise OSError('wrong ELF class')")
    result = runner.with_environment(PYTHONPATH=str(tmp_path / "broken")).run(FLOWS / "reference_flow.py", fails=True)
    assert "huggingface_hub is installed here, but importing it fails (OSError: wrong ELF class)" in result.output
    assert no_traceback(result)


def test_a_token_is_in_no_output_and_no_file(runner: FlowRunner, hub: Hub) -> None:
    token = "hf_" + uuid4().hex
    private = hub.repo("org/private", private=True, token=token, files=FILES)
    private.tag("v1")
    hub.repo("org/gated", gated=True, token=token, files=FILES)
    hub.repo("org/other", private=True, token="hf_of_somebody_else", files=FILES)
    result = runner.with_environment(SECRET=token, HF_TOKEN=token).run(FLOWS / "token_flow.py", fails=True)
    assert result.fact("listed") == ["config.json"]
    assert "org/other: the Hub answers 404" in result.output
    assert token not in result.output
    assert [path for path in everything_below(runner.directory) if contains(path, token)] == []
    # The search finds other texts, so that finding no token means something.
    assert any(contains(path, private.refs["main"]) for path in everything_below(runner.directory))


def everything_below(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file())


def contains(path: Path, text: str) -> bool:
    """Whether a file contains a text, as it is or compressed with gzip or zlib."""
    data = path.read_bytes()
    openers: list[Callable[[bytes], bytes]] = [lambda data: data, gzip.decompress, zlib.decompress]
    for opener in openers:
        try:
            if text.encode() in opener(data):
                return True
        except (OSError, EOFError, zlib.error):
            continue
    return False
