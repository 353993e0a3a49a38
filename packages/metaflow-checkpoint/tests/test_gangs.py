"""The nodes of a @parallel step resume in step, however late they start and whichever of them is killed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from metaflow_artifacts.testing.flows import FlowRunner

EPOCHS = 5


def deaths(seed: int, nodes: int, count: int) -> dict[str, list[int]]:
    """For the first `count` attempts: the node that is killed, and in which epoch."""
    chosen = random.Random(seed)
    # Node 0 may have saved the next epoch too. The second kill comes later than that.
    epochs = sorted(chosen.sample((1, 3, 5), count))
    return {str(attempt): [chosen.randrange(nodes), epoch] for attempt, epoch in enumerate(epochs)}


def records(runner: FlowRunner, kind: str) -> list[Any]:
    lines = [json.loads(line) for line in (runner.work / "record").read_text().splitlines()]
    return [line[1:] for line in lines if line[0] == kind]


def assert_in_step(runner: FlowRunner, nodes: int, kills: dict[str, list[int]]) -> None:
    begins = records(runner, "begins")
    for attempt in range(len(kills) + 1):
        of_attempt = [(epoch, key) for number, _, epoch, key in begins if number == attempt]
        assert len(of_attempt) == nodes, begins
        assert len(set(of_attempt)) == 1, begins
    for killed, (_, epoch) in kills.items():
        (after,) = {begin for number, _, begin, _ in begins if number == int(killed) + 1}
        # Node 0 had saved this epoch before the kill, and perhaps the next one before it noticed.
        assert after in (epoch, epoch + 1), begins
    listed = {tuple(keys) for _, _, keys in records(runner, "listed")}
    assert len(listed) == 1, listed
    assert len(listed.pop()) >= EPOCHS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(metafunc.config.getoption("--gangs")))


def test_gangs_stay_in_step(request: pytest.FixtureRequest, flows: Path, seed: int) -> None:
    runner: FlowRunner = request.getfixturevalue("s3_runner" if seed % 2 else "runner")
    kills = deaths(seed, 3, request.config.getoption("--deaths"))
    lateness = request.config.getoption("--lateness")
    late = runner.with_late_workers(lateness, seed).with_environment(DEATHS=json.dumps(kills))
    if seed % 3:
        late.run(flows / "gang_flow.py")
    else:
        late.with_environment(BARE="1").run(flows / "gang_flow.py", "--with", "checkpoint")
    assert_in_step(runner, 3, kills)


def test_resume_and_eager_keep_a_gang_in_step(runner: FlowRunner, flows: Path) -> None:
    runner = runner.with_late_workers(1).with_environment(DEATHS=json.dumps({"0": [1, 2]}), RETRIES="0")
    runner.run(flows / "gang_flow.py", fails=True)
    eager = runner.with_environment(DEATHS="{}", POLICY="eager")
    eager.command(flows / "gang_flow.py", "resume")
    begins = [(epoch, key) for _, _, epoch, key in records(runner, "begins")]
    assert begins[:3] == [(0, None)] * 3
    assert len(begins) == 6
    assert len(set(begins[3:])) == 1, begins
    assert begins[3][0] in (2, 3), begins


@pytest.mark.long
def test_gangs_that_end_by_timeout_or_are_caught(runner: FlowRunner, flows: Path) -> None:
    result = runner.run(flows / "gang_ends_flow.py")
    # Attempt, node, and what it resumed from: the second attempt times out, the third fails.
    assert sorted(result.facts("begins")) == [[0, 0, None], [0, 1, None], [1, 0, 0], [1, 1, 0], [2, 0, 1], [2, 1, 1]]
    assert result.fact("kept") == [2, 1, 0]
    assert result.fact("of the worker") == [True]
