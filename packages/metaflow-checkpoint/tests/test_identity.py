"""Every task finds its own checkpoints, and no others."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import pytest

from metaflow_artifacts.testing.flows import FlowRunner, Result


def test_each_value_of_nested_foreaches_resumes_from_its_own(runner: FlowRunner, flows: Path) -> None:
    places = [list(place) for place in itertools.product("ab", ["0.30000000000000004", "0.3"])]
    first = runner.run(flows / "places_flow.py")
    assert sorted(place for place, attempt in first.facts("nothing") if attempt == 0) == sorted(places)
    assert sorted(mine for mine, content, _, _ in first.facts("found") if mine == content) == sorted(places)
    assert len({identifier for _, _, identifier in first.facts("listed")}) == 4
    assert sorted(count for _, count, _ in first.facts("listed")) == [1] * 4 + [2] * 4

    # Another run, where the values come in another order, finds what the first one saved for the same values.
    again = runner.with_environment(POLICY="eager", STEADY="1", REORDERED="1").run(flows / "places_flow.py")
    assert sorted(mine for mine, content, _, _ in again.facts("found") if mine == content) == sorted(places)
    assert all(pathspec.split("/")[1] == first.run_id for _, _, _, pathspec in again.facts("found"))
    assert again.facts("nothing") == []


def test_with_per_node_each_node_of_a_gang_resumes_from_its_own(runner: FlowRunner, flows: Path) -> None:
    result = runner.run(flows / "nodes_flow.py")
    assert sorted(result.facts("node"), key=str) == [[0, 0, None], [0, 1, "node 0"], [1, 0, None], [1, 1, "node 1"]]
    assert sorted(result.facts("listed")) == [[0, 1], [0, 2], [1, 1], [1, 2]]


def test_checkpoints_of_caught_and_timed_out_tasks_are_kept(runner: FlowRunner, flows: Path) -> None:
    result = runner.run(flows / "ends_flow.py")
    assert result.facts("caught begins") == [0, 1]
    assert result.facts("slow begins") == [0, 1]
    assert result.fact("failure") == "always"
    assert result.fact("kept") == [1]
    assert result.fact("begins") == 0
    assert runner.leftovers() == []


def test_a_resumed_run_starts_from_the_beginning_unless_it_is_eager(runner: FlowRunner, flows: Path) -> None:
    failed = runner.with_environment(FAIL="1").run(flows / "resume_flow.py", fails=True)
    fresh = runner.with_environment(FAIL="1").command(flows / "resume_flow.py", "resume", fails=True)
    assert fresh.fact("loaded") is None
    told = [line for line in fresh.lines_of("train") if "load_policy='eager' resumes from" in line]
    assert len(told) == 1
    assert f"saved by ResumeFlow/{failed.run_id}/train/" in told[0]

    eager = runner.with_environment(POLICY="eager").command(
        flows / "resume_flow.py", "resume", "--origin-run-id", failed.run_id
    )
    pathspec, files = eager.fact("loaded")
    assert pathspec.startswith(f"ResumeFlow/{fresh.run_id}/train/")
    assert files == [f"of run {fresh.run_id}"]
    assert [one.split("/")[1] for one in eager.fact("taken over")] == [failed.run_id]

    none = runner.with_environment(POLICY="none").command(flows / "resume_flow.py", "resume")
    assert none.fact("loaded") is None
    assert "eager" not in none.output


def run_as(runner: FlowRunner, flows: Path, who: str, *arguments: str) -> Result:
    return runner.with_environment(METAFLOW_USER=who, WHO=who).run(flows / "shared_flow.py", *arguments)


@pytest.mark.long
def test_namespaces_are_separate_unless_a_tag_joins_them(runner: FlowRunner, flows: Path) -> None:
    assert run_as(runner, flows, "ann").fact("began with") == []
    assert run_as(runner, flows, "bob").fact("began with") == []
    ann = run_as(runner, flows, "ann")
    assert (ann.fact("began with"), ann.fact("own"), ann.fact("place")) == (["ann 0"], 1, 2)

    tag = ("--tag", "checkpoint:team")
    assert run_as(runner, flows, "ann", *tag).fact("began with") == []
    shared = run_as(runner, flows, "bob", *tag)
    assert (shared.fact("began with"), shared.fact("own"), shared.fact("place")) == (["ann 0"], 1, 2)


def test_runs_at_the_same_time_resume_from_their_own(runner: FlowRunner, flows: Path) -> None:
    both: list[subprocess.Popen[str]] = []
    for who, other in (("ann", "bob"), ("bob", "ann")):
        variables = {"WHO": who, "WAIT_FOR": f"saved by {other}"}
        both.append(runner.with_environment(**variables).start(flows / "shared_flow.py", "run"))
    outputs = [process.communicate()[0] for process in both]
    for who, process, output in zip(("ann", "bob"), both, outputs, strict=True):
        assert process.returncode == 0, output
        result = Result(0, output)
        assert result.facts("began with")[1] == sorted({*result.facts("began with")[0], f"{who} 0"})
        assert result.fact("own") == 2


def test_a_zombie_and_its_successor_overwrite_nothing(runner: FlowRunner, flows: Path) -> None:
    result = runner.run(flows / "zombie_flow.py")
    assert result.fact("loaded") == [0, ["zombie"]]
    assert result.fact("mine") == [4, 3, 2, 1, 0]
    assert result.facts("content") == [f"successor {number}" for number in (4, 3, 2, 1, 0)]
    # What a later attempt has saved is newer, whenever the zombie saved.
    assert result.fact("in order") == sorted(result.fact("in order"), reverse=True)
    order = "".join(map(str, result.fact("interleaved")))
    assert "1" in order.strip("0")
    assert "0" in order.strip("0").strip("1"), order
    of_zombie = result.facts("of the zombie")
    assert all(content == f"zombie {number}" for number, content in of_zombie)
    assert [number for number, _ in of_zombie] == list(range(len(of_zombie)))[::-1]
