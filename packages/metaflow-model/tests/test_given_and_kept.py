"""Arguments of `@model` from `--with` and Config, and what a step keeps and hands on, in real runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from metaflow_artifacts import open_store
from metaflow_artifacts.testing.flows import FlowRunner

FLOWS = Path(__file__).parent / "flows"


@pytest.fixture
def runner(tmp_path: Path) -> FlowRunner:
    return FlowRunner(tmp_path)


def test_with_and_config_give_the_same_as_the_source(runner: FlowRunner, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    saved = open_store(runner.local_root).save_model(tmp_path / "file")
    given = ("--a", saved["url"], "--b", saved["key"])
    result = runner.run(FLOWS / "given_flow.py", *given, "--with", 'model:load=["a", ["b", "./there", "fil?"]]')
    loaded = result.fact("with")
    assert list(loaded) == ["a", "b"]
    assert loaded["b"] == "there"
    assert (runner.work / "there" / "file").read_text() == "content"
    assert result.fact("listed") == [["a", "b"], "from config"]
    assert result.fact("text") == ["a"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("load=nope", "step start: 'nope' in @model(load=…) is not an artifact or Parameter of the flow here"),
        ("temp_dir_root=5", ": @model(temp_dir_root=5): expected a path (str or os.PathLike), found int"),
    ],
)
def test_a_mistake_on_the_command_line_stops_the_run_before_it_starts(
    runner: FlowRunner, given: str, words: str
) -> None:
    result = runner.run(FLOWS / "given_flow.py", "--with", f"model:{given}", fails=True)
    assert words in result.output
    assert "Workflow starting" not in result.output
    assert "Traceback" not in result.output
    assert "Internal error" not in result.output


def test_parameters_that_were_not_given_are_nothing_to_load(runner: FlowRunner) -> None:
    with_ = ("--with", 'model:load=["a", "b"],best_effort_load=True')
    result = runner.run(FLOWS / "given_flow.py", *with_, fails=True)
    assert result.fact("with") == {}
    assert "[@model] Nothing to load for `a`: the flow has no value for it" in result.lines_of("start")
    # Without best_effort_load, which the Config gives as the text "False", the step stops.
    assert "step listed: 'a' in @model(load=…) holds '' (str)" in result.output


def test_what_a_step_keeps_and_what_workers_get(tmp_path_factory: pytest.TempPathFactory) -> None:
    # A short path: a forkserver makes a socket below it, whose path has at most 107 bytes.
    runner = FlowRunner(tmp_path_factory.mktemp("k"))
    result = runner.run(FLOWS / "kept_flow.py")
    methods = ["fork", "spawn", "forkserver"]
    assert result.facts("worker") == [[["content"], ["content"], False, method] for method in methods]
    assert result.facts("same task") == [True] * 3
    assert result.facts("parents") == [True] * 3
    assert result.fact("own") == [["content"], True]
    assert result.fact("kept") == [True, True]
    assert result.fact("loaded") == [True, True]
    assert result.fact("again") == ["content"]
    assert runner.leftovers() == []
    assert list((runner.work / "scratch").iterdir()) == []
