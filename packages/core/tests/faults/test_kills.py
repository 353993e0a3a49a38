"""SIGKILL at each moment of a save, load, gc…: the store stays whole, and the same action succeeds afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faultlib.outcomes import Outcomes

from metaflow_artifacts.testing.seaweedfs import SeaweedServer

SECTION = "kills"
PLACE = Path(__file__).parent

AFTER = {
    "save": "`check` finds the store whole; the artifact is there and loads right, or it is not there; the same save "
    "succeeds; `gc` removes all that the killed one left",
    "checkpoint": "as a save; the latest checkpoint is still the one before, since this one was saved with "
    "`latest=False`, whether its tombstone was written or not",
    "load": "each file in the target is the old one or the new one, whole; nothing else in it has changed but for a "
    "directory `.metaflow_artifacts_…`; the same load succeeds, with what is right in that directory, and removes it",
    "gc": "`check` finds the store whole; what was kept loads right; a save of what was half removed succeeds; the "
    "next `gc` removes the rest",
    "delete": "each checkpoint loads right and can be deleted, or is gone; its number is not given again",
    "copy": "`check` finds the store whole; of each attempt it holds the oldest artifacts, as many as were committed; "
    "the same copy completes it; the latest checkpoint is that of the source",
    "retain": "what was to be kept loads right; the rest is there and loads right, or is gone",
}


def campaign(work: Path, scenario: str, store: str, environment: dict[str, str], *options: str) -> Any:
    work.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "faultlib.kills", scenario, store, str(work), *options],
        env={**os.environ, **environment, "PYTHONPATH": str(PLACE)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("scenario", "moments"),
    [("save", 20), ("checkpoint", 4), ("load", 20), ("gc", 10), ("delete", 2), ("retain", 8), ("copy", 30)],
)
def test_a_kill_at_any_file_system_call_leaves_the_store_whole(
    scenario: str, moments: int, tmp_path: Path, outcomes: Outcomes
) -> None:
    result = campaign(tmp_path / "work", scenario, "local", {})
    assert result["kills"] >= moments
    assert result["finished"] > 0
    assert result["unfinished"] > 0
    outcomes.record(SECTION, f"{scenario}, at each file-system call or request to S3", AFTER[scenario])


@pytest.mark.parametrize("scenario", ["save", "load", "gc", "copy"])
def test_a_kill_at_a_random_moment_leaves_the_store_whole(scenario: str, tmp_path: Path, outcomes: Outcomes) -> None:
    assert campaign(tmp_path / "work", scenario, "local", {}, "--random", "15")["kills"] > 1
    outcomes.record(SECTION, f"{scenario}, at random moments", AFTER[scenario])


@pytest.mark.parametrize(
    ("scenario", "moments"),
    [
        ("save", 10),
        ("checkpoint", 4),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (("gc", 4), ("load", 4), ("delete", 8), ("retain", 5), ("copy", 4))
        ),
    ],
)
def test_a_kill_before_a_request_to_s3_leaves_the_store_whole(
    scenario: str, moments: int, tmp_path: Path, root: str, s3_server: SeaweedServer, outcomes: Outcomes
) -> None:
    # Every one takes minutes: `python -m faultlib.kills` does that.
    step = {"save": "2", "checkpoint": "3", "load": "1", "gc": "3", "delete": "1", "retain": "5", "copy": "6"}[scenario]
    result = campaign(tmp_path / "work", scenario, root, s3_server.environment(), "--step", step)
    assert result["kills"] >= moments
    assert result["finished"] > 0
    assert result["unfinished"] > 0
    outcomes.record(SECTION, f"{scenario}, at each file-system call or request to S3", AFTER[scenario])
