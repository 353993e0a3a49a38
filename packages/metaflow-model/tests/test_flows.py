"""`@model` in the kinds of steps that Metaflow has, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from metaflow_artifacts import lineage, open_store
from metaflow_artifacts.testing.flows import FlowRunner, Result
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

FLOWS = Path(__file__).parent / "flows"


@pytest.fixture
def runner(tmp_path: Path) -> FlowRunner:
    return FlowRunner(tmp_path)


def shows_only_the_message(result: Result) -> bool:
    return "Internal error" not in result.output and f"{os.sep}artifacts_model{os.sep}" not in result.output


def test_retry_foreach_join_and_lineage(runner: FlowRunner) -> None:
    result = runner.run(FLOWS / "life_flow.py")

    # Each attempt loads what it saved, whatever became of the source since.
    assert result.facts("content") == ["base 0", "base 1"]
    assert all(path.startswith("scratch/metaflow_models_") for path in result.facts("scratch"))
    base = result.fact("base")
    assert (base["attempt"], base["metadata"], base["label"]) == (1, {"attempt": 1}, "LifeFlow_start")
    assert result.fact("plain") is True

    # Temporary directories are gone, after the failed attempt too.
    assert result.facts("scratch gone") == [True, True]
    assert runner.leftovers() == []

    tuned = {model["label"]: model for model in result.facts("tuned")}
    assert sorted(tuned) == ["a b", "c"]
    assert tuned["a b"]["key"].startswith("mf.models/models/artifacts/a%20b_")
    assert {model["parents"][0] for model in tuned.values()} == {base["key"]}

    assert result.fact("mapping") == [True, ["base"], 1, True, None]
    assert sorted(result.facts("joined")) == [["a b", "base 1 a b", True], ["c", "base 1 c", True]]
    assert result.fact("info") == base
    assert result.fact("again") == "base 1"

    merged = result.fact("merged")
    assert merged["parents"] == [base["key"], tuned["a b"]["key"], tuned["c"]["key"]]
    ancestors = [model["key"] for model in lineage(merged)]
    assert (ancestors[0], ancestors[-1], len(ancestors)) == (merged["key"], base["key"], 4)

    # A plain process, without Metaflow, loads by key from the root.
    target = open_store(runner.local_root).load(merged["key"], runner.work / "plain")
    assert (Path(target) / "content").read_text() == "vandalised"


def test_each_node_of_a_parallel_step_loads_and_saves(runner: FlowRunner) -> None:
    result = runner.run(FLOWS / "parallel_flow.py")
    nodes = dict(result.facts("node"))
    assert sorted(nodes) == [0, 1]
    assert [nodes[node]["label"] for node in (0, 1)] == ["node_0", "node_1"]
    assert nodes[1]["pathspec"].endswith("_node_1")
    assert result.fact("found") == ["node_0", "node_1"]
    assert runner.leftovers() == []


def test_a_resumed_run_loads_what_the_first_run_saved(runner: FlowRunner) -> None:
    failed = runner.with_environment(FAIL="1").run(FLOWS / "resume_flow.py", fails=True)
    assert runner.leftovers() == []
    resumed = runner.command(FLOWS / "resume_flow.py", "resume")
    assert resumed.fact("kept").startswith(f"ResumeFlow/{failed.run_id}/start/")
    after = resumed.fact("after").split("/")
    assert after[:1] + after[2:3] == ["ResumeFlow", "fragile"]
    assert after[1] != failed.run_id


def test_errors_of_calls_name_what_was_wrong(runner: FlowRunner) -> None:
    result = runner.run(FLOWS / "errors_flow.py", fails=True)
    good, files = result.fact("good")
    assert files == ["file"]
    assert (good["label"], good["metadata"], good["size"]) == ("a label/with ünicode..", {"n": 0.5}, 7)
    assert good["key"].startswith("mf.models/models/artifacts/a%20label%2Fwith%20%C3%BCnicode.._")
    assert result.fact("empty") == []

    errors = {name: (kind, message) for name, kind, message in result.facts("error")}
    assert {name: kind for name, (kind, _) in errors.items()} == {
        "no such path": "SourceNotFound",
        "label": "InvalidInput",
        "long label": "InvalidInput",
        "metadata": "InvalidInput",
        "no key": "InvalidReference",
        "climbs": "InvalidReference",
        "None": "InvalidReference",
        "number": "InvalidReference",
        "half a reference": "InvalidReference",
        "absent": "ArtifactNotFound",
        "target is a file": "TargetError",
    }
    assert all("\n" not in message for _, message in errors.values())
    assert "nowhere" in errors["no such path"][1]
    assert "expected a dict, found list" in errors["metadata"][1]
    assert result.fact("text") == {"outer": {"inner": "{1}"}}
    # The warning names the member and the user's line.
    (warning,) = [line for line in result.lines_of("start") if "ArtifactWarning" in line]
    assert re.search(r"errors_flow.py:\d+: ArtifactWarning: .*metadata\['outer'\]\['inner'\] \(set:", warning)
    assert "absent_000" in errors["absent"][1]
    assert result.fact("file") == "content"

    # The error that nobody caught: the message and the user's line, none of our frames.
    assert result.fact("kept")[0] == "ArtifactNotFound"
    assert "absent_000" in result.fact("kept")[1]
    assert shows_only_the_message(result)
    lines = result.lines_of("end")
    source = (FLOWS / "errors_flow.py").read_text().splitlines()
    line = max(number for number, text in enumerate(source, 1) if text.endswith("load(ABSENT)"))
    headline = next(text for text in lines if "Artifact not found" in text)
    assert headline.strip() == f"Artifact not found in file {FLOWS / 'errors_flow.py'} on line {line}:"
    assert lines[lines.index(headline) + 1].strip().startswith("nothing is stored at ")


def test_names_that_hold_nothing_to_load_stop_the_step(runner: FlowRunner) -> None:
    result = runner.run(FLOWS / "bad_loads_flow.py", fails=True)
    caught = {
        message.split(":")[0]: (kind, message) for kind, message, reached in result.facts("caught") if not reached
    }
    assert {step: kind.rsplit(".")[-1] for step, (kind, _) in caught.items()} == {
        "step missing": "InvalidReference",
        "step is_other": "InvalidReference",
        "step is_absent": "ArtifactNotFound",
    }
    for step, name, held in [
        ("missing", "'typo'", "is not an artifact or Parameter"),
        ("is_other", "'other'", "{'loss': 0.5} (dict)"),
        ("is_absent", "'absent'", "absent_000"),
    ]:
        message = caught[f"step {step}"][1]
        assert name in message
        assert held in message
        assert "\n" not in message
    assert result.fact("best effort") == []
    assert "[@model] Nothing to load for `typo`: the flow has no value for it" in result.lines_of("best_effort")
    assert not (runner.work / "somewhere").exists()

    # The join of branches that differ stops too, with the error that Metaflow shows.
    assert shows_only_the_message(result)
    assert "'mine' in @model(load=…) differs between the branches" in result.output


def test_a_load_of_no_known_form_is_refused_before_anything_runs(runner: FlowRunner) -> None:
    result = runner.run(FLOWS / "bad_form_flow.py", fails=True)
    assert shows_only_the_message(result)
    assert (
        "step start: @model(load=…) takes a name, or a list of names, (name, path) and (name, path, pattern); found "
        in result.output
    )
    assert "Workflow starting" not in result.output


def test_the_datastore_of_the_command_line_is_used(runner: FlowRunner, s3_server: SeaweedServer) -> None:
    """`--datastore s3` where local is the default; a local run loads from there by reference, and says by key
    where it looked."""
    runner = runner.with_environment(**s3_server.environment())
    model = runner.run(FLOWS / "s3_reference.py", top=("--datastore", "s3")).fact("saved")
    assert model["url"] == f"{s3_server.root}/metaflow/{model['key']}"
    stored = s3_server.client().list_objects_v2(Bucket=s3_server.bucket, Prefix="metaflow/mf.models/")
    assert f"metaflow/{model['key']}" in [entry["Key"] for entry in stored["Contents"]]
    assert not list(Path(runner.local_root).glob("mf.*"))

    result = runner.run(FLOWS / "s3_reference.py", "--reference", json.dumps(model))
    assert f"nothing is stored at {runner.local_root}/{model['key']}" in result.fact("by key")
    assert result.fact("loaded") == [["content"], ["content"]]
    # Saved below the local root, made of something below the other.
    assert result.fact("saved")["url"].startswith(runner.local_root)
    assert result.fact("saved")["parents"] == [model["key"]]


@pytest.mark.long
def test_the_second_task_of_a_node_loads_from_its_cache(
    runner: FlowRunner, s3_server: SeaweedServer, tmp_path: Path
) -> None:
    config = {"METAFLOW_ARTIFACTS_CACHE": str(tmp_path / "cache"), "METAFLOW_ARTIFACTS_CACHE_GB": "much"}
    (tmp_path / "home" / "config.json").write_text(json.dumps(config))
    runner = runner.with_environment(**s3_server.environment())
    refused = runner.run(FLOWS / "cached_flow.py", top=("--datastore", "s3"), fails=True)
    assert "METAFLOW_ARTIFACTS_CACHE_GB: expected a number of gigabytes above 0" in refused.output
    assert "Workflow starting" not in refused.output

    result = runner.with_environment(METAFLOW_ARTIFACTS_CACHE_GB="1").run(
        FLOWS / "cached_flow.py", top=("--datastore", "s3")
    )
    assert result.fact("size") == 1 << 20
    assert "cache" not in "".join(result.lines_of("first"))
    assert ", 1 MiB from the node's cache" in "".join(result.lines_of("second"))
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()) == 1 << 20


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"METAFLOW_DEFAULT_DATASTORE": "s3"}, "METAFLOW_DATASTORE_SYSROOT_S3"),
        ({"METAFLOW_DATASTORE_SYSROOT_LOCAL": None}, "no local datastore (a directory .metaflow) in "),
    ],
)
def test_outside_of_a_run_a_missing_datastore_is_named(
    runner: FlowRunner, variables: dict[str, str | None], says: str
) -> None:
    key = "mf.models/models/artifacts/x_" + "0" * 32
    runner = runner.with_environment(**variables)
    result = runner.python(f"from metaflow import load_model\nload_model({key!r}, 'x')", fails=True)
    assert "metaflow_artifacts.errors.StorageError: " in result.lines[-1]
    assert says in result.lines[-1]


def test_saves_in_the_background(runner: FlowRunner) -> None:
    result = runner.run(FLOWS / "background_flow.py")
    assert result.fact("before a plain one") == [True, True]
    assert result.fact("references") == ["first", "memory"]
    assert result.fact("kept") == ["dict", "dict"]
    assert [result.fact(name) for name in ("first", "memory", "plain")] == ["1" * 9, "in memory", "2"]
