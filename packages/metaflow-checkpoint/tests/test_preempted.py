"""The patterns that the documentation of metaflow-checkpoint shows, where each process is killed half-way.

What a killed task had saved is what its retry goes on from, and the content in the end is that of a training that
nobody killed, byte for byte. `nox -s rare` runs each on the datastore that is left out otherwise.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from metaflow_artifacts.testing.flows import FlowRunner


def weights_after(epochs: int, seed: str) -> str:
    """The digest of what training.py makes."""
    weights = seed.encode()
    for epoch in range(epochs):
        weights = hashlib.sha256(weights + epoch.to_bytes(2, "big")).digest() * 2000
    return hashlib.sha256(weights).hexdigest()


def digest(path: Path) -> str:
    # pytest takes minutes to compare contents of this size that differ.
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("either", ["runner", pytest.param("s3_runner", marks=pytest.mark.long)], indirect=True)
def test_trainings_in_a_subprocess_and_in_a_foreach_survive_kills(either: FlowRunner, flows: Path) -> None:
    result = either.run(flows / "sweep_flow.py")
    assert result.output.count("Task is starting (retry)") == 3
    # What the killed attempts had left, too.
    assert either.leftovers() == either.leftovers(".metaflow_artifacts_") == []

    assert result.facts("trainer resumes") == [None, 2]
    assert result.fact("trainer saved") == [5, 4, 3, 2, 1, 0]
    assert result.fact("trainer") == ["epochs", "weights"]

    # Killed after epoch 4, of which only the best was saved: it goes on after epoch 3.
    assert sorted(result.facts("resumes")) == [[rate, 4, 0, "mfchckpt", True] for rate in ("0.1", "0.2")]
    assert sorted(result.facts("of this attempt")) == [["0.1", 2, 7], ["0.2", 2, 7]]
    assert result.fact("nothing is loaded") == [False, []]
    assert result.facts("best") == [[rate, 1 / 5, [1 / 5, 1 / 3, 1.0]] for rate in ("0.1", "0.2")]

    assert digest(either.work / "latest of trainer") == weights_after(6, "trainer")
    for rate in ("0.1", "0.2"):
        assert digest(either.work / f"latest of {rate}") == weights_after(6, rate)
        assert digest(either.work / f"best of {rate}" / "best weights") == weights_after(5, rate)


@pytest.mark.parametrize("either", ["runner", pytest.param("s3_runner", marks=pytest.mark.long)], indirect=True)
def test_the_next_run_goes_on_where_a_killed_one_was(either: FlowRunner, flows: Path) -> None:
    preempted = either.with_environment(PREEMPTED="1").run(flows / "nightly_flow.py", fails=True)
    [[epochs, attempt, pathspec]] = preempted.facts("resumes")
    assert [epochs, attempt] == [2, 0]

    resumed = either.command(flows / "nightly_flow.py", "resume")
    assert resumed.fact("resumes") == [5, 1, pathspec]
    assert pathspec.startswith(f"NightlyFlow/{preempted.run_id}/train/")
    assert resumed.fact("of the killed task") == [5, 4, 3]
    assert digest(either.work / "weights of the killed task") == weights_after(5, "nightly")
    assert digest(either.work / "finished" / "weights") == weights_after(7, "nightly")
