"""Arguments of `@checkpoint` from `--with`, and what a step keeps and hands on, in real runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from metaflow_artifacts.testing.flows import FlowRunner


def test_with_gives_the_same_as_the_source(runner: FlowRunner, flows: Path) -> None:
    given = "checkpoint:load_policy=None,temp_dir_root=scratch,show_card=False"
    result = runner.run(flows / "given_flow.py", "--with", given)
    assert result.fact("given") == [False, "scratch/metaflow", 1]


def test_a_mistake_on_the_command_line_stops_the_run_before_it_starts(runner: FlowRunner, flows: Path) -> None:
    result = runner.run(flows / "given_flow.py", "--with", "checkpoint:load_policy=newest", fails=True)
    assert "@checkpoint(load_policy='newest') does not exist; choose 'fresh', 'eager' or 'none'" in result.output
    assert "Workflow starting" not in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("either", ["runner", pytest.param("s3_runner", marks=pytest.mark.long)], indirect=True)
def test_what_a_step_keeps_and_what_workers_get(
    either: FlowRunner, flows: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    methods = ["spawn"] if "METAFLOW_DEFAULT_DATASTORE" in either.environment else ["spawn", "forkserver"]
    # A short path: a forkserver makes a socket below it, whose path has at most 107 bytes.
    either = FlowRunner(tmp_path_factory.mktemp("k"), either.environment)
    result = either.with_environment(METHODS=" ".join(methods)).run(flows / "kept_flow.py")
    assert result.facts("worker") == [[["content"], True, [1, 1]]] * len(methods)
    assert result.facts("parents") == [True] * len(methods)
    assert result.fact("directory") == ["content"]
    assert result.fact("info") == [True, {"epoch": 3}, "best"]
    assert result.fact("again") == [["content"], True]
    assert result.fact("undecorated") == []
    assert either.leftovers() == []
