"""Saves in the background, in real flows."""

from __future__ import annotations

from pathlib import Path

from metaflow_artifacts.testing.flows import FlowRunner


def test_saves_in_the_background(runner: FlowRunner, flows: Path) -> None:
    result = runner.run(flows / "background_flow.py")
    assert result.fact("done before a plain save") == [True] * 4
    assert result.fact("numbers") == [0, 1, 2, 3, 4]
    assert result.fact("subprocess") == "True"
    assert result.fact("listed") == ["subprocess", "plain", *["epoch"] * 4]
    assert result.fact("consumed") == [True, []]

    assert result.fact("kept") == ["dict"] * 5
    assert result.fact("loaded") == ["0", "1", "2", "3", "x", "x"]

    assert result.fact("resumes") == [2, 3]
    assert "the code fails" in result.output

    assert result.fact("seen") == "StorageError"
    assert "a file lies where a directory is needed" in result.fact("failure")
    assert "a save in the background of a subprocess failed: StorageError: " in result.fact("failure elsewhere")
    assert (runner.work / "end").exists()
    assert runner.leftovers(".metaflow_artifacts_") == []


def test_sigterm(runner: FlowRunner, flows: Path) -> None:
    result = runner.run(flows / "sigterm_flow.py")
    assert result.fact("grace resumes") == [7, 7]
    assert result.fact("grace ends") == [7, False]
    assert "SIGTERM was received: the step has 30 seconds to save and to leave" in result.output

    assert result.facts("handed over") == [0, 1, 2, 3]
    assert result.fact("stored") == [0, 1, 2, 3]
    assert result.facts("went on") == []

    assert result.fact("own handler") == [[True], 1, True]
    assert result.fact("late") == 1
    # start, pending, second and late.
    assert result.output.count("Task is starting (retry)") == 4
