"""`spin` runs a step with `@model`, which loads what the run has saved, and saves to a store of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from metaflow import metaflow_config

from metaflow_artifacts.testing.flows import FlowRunner

pytestmark = pytest.mark.skipif(
    not hasattr(metaflow_config, "SPIN_ALLOWED_DECORATORS"), reason="Metaflow before 2.19 has no spin"
)

FLOW = Path(__file__).parent / "flows" / "spin_flow.py"


def files_below(root: str) -> dict[Path, int]:
    """Each file of artifacts and cards, and when it was written."""
    return {path: path.stat().st_mtime_ns for path in Path(root).glob("mf.*/**/*") if path.is_file()}


def test_a_spun_step_loads_from_the_run_and_leaves_its_store_alone(tmp_path: Path) -> None:
    runner = FlowRunner(tmp_path)
    run = runner.run(FLOW)
    before = files_below(runner.local_root)
    assert before

    spun = runner.command(FLOW, "spin", "end")
    assert "Ignoring" not in spun.output
    assert "Warning" not in spun.output
    # The key alone does not say where it is stored.
    assert spun.fact("loaded") == {"base": ["weights"], "key": ["weights"]}
    assert spun.fact("again") == ["weights"]
    assert spun.fact("tuned")["parents"] == run.fact("tuned")["parents"]
    spin_store = runner.work / ".metaflow_spin"
    assert Path(spun.fact("tuned")["url"]).is_relative_to(spin_store)
    cards = sorted(path.name.split("-")[0] for path in (spin_store / "mf.cards").rglob("*.html"))
    assert cards == ["default", "model"]
    assert files_below(runner.local_root) == before
