"""`spin` runs a step with `@checkpoint` on a store of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from metaflow import metaflow_config

from metaflow_artifacts.testing.flows import FlowRunner

pytestmark = pytest.mark.skipif(
    not hasattr(metaflow_config, "SPIN_ALLOWED_DECORATORS"), reason="Metaflow before 2.19 has no spin"
)


def files_below(root: str) -> dict[Path, int]:
    """Each file of artifacts, and when it was written."""
    return {path: path.stat().st_mtime_ns for path in Path(root).glob("mf.*/**/*") if path.is_file()}


def test_a_spun_step_has_its_own_checkpoints(runner: FlowRunner, flows: Path) -> None:
    flow = flows / "spin_flow.py"
    assert runner.run(flow).fact("began") == 0
    before = files_below(runner.local_root)
    assert len(before) == 4

    # Each spin is a task of its own, which begins anew.
    for _ in range(2):
        spun = runner.command(flow, "spin", "end")
        assert "Ignoring" not in spun.output
        assert spun.fact("began") == 0
        assert spun.fact("listed") == 3
        # What an earlier step of the run has saved.
        assert spun.fact("base") == ["base"]
        assert all(Path(one["url"]).is_relative_to(runner.work / ".metaflow_spin") for one in spun.facts("saved"))

    # Of any run at the same place: of the last spin, not of the run.
    eager = runner.with_environment(POLICY="eager").command(flow, "spin", "end")
    assert eager.fact("began") == 3
    assert files_below(runner.local_root) == before
