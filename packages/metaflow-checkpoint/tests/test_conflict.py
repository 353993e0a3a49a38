"""Beside a distribution of other authors with a `@checkpoint`, a flow that uses one stops with one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest

from metaflow_artifacts.testing.flows import FlowRunner

DECORATOR = """
from metaflow.decorators import StepDecorator

class ForeignDecorator(StepDecorator):
    name = "checkpoint"
"""
PLAIN_FLOW = """
from metaflow import FlowSpec, step

class PlainFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    PlainFlow()
"""


@pytest.fixture
def beside_another(runner: FlowRunner, tmp_path: Path) -> FlowRunner:
    """Runs flows where a metaflow-checkpoint is installed too. Metaflow loads it before ours, whose names win."""
    site = tmp_path / "site"
    files = {
        "metaflow_checkpoint-0.2.14.dist-info/METADATA": (
            "Metadata-Version: 2.1\nName: metaflow-checkpoint\nVersion: 0.2.14\n"
        ),
        "metaflow_checkpoint-0.2.14.dist-info/top_level.txt": "metaflow_extensions\n",
        "metaflow_extensions/foreign/plugins/mfextinit_foreign.py": (
            'STEP_DECORATORS_DESC = [("checkpoint", ".deco.ForeignDecorator")]\n'
        ),
        "metaflow_extensions/foreign/plugins/deco.py": DECORATOR,
    }
    files["metaflow_checkpoint-0.2.14.dist-info/RECORD"] = "".join(f"{path},,\n" for path in files)
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    return runner.with_environment(PYTHONPATH=str(site))


def test_a_flow_with_the_decorator_stops_before_it_runs(beside_another: FlowRunner, flows: Path) -> None:
    result = beside_another.run(flows / "counter_flow.py", fails=True)
    assert "@checkpoint comes from metaflow-checkpoint 0.2.14, which cannot be installed together" in result.output
    assert "`pip uninstall metaflow-checkpoint`, or `pip uninstall metaflow-artifacts-" in result.output
    assert "Task is starting" not in result.output
    assert "Traceback" not in result.output


def test_a_flow_without_the_decorators_runs(beside_another: FlowRunner, tmp_path: Path) -> None:
    (tmp_path / "plain_flow.py").write_text(PLAIN_FLOW)
    assert "Done!" in beside_another.run(tmp_path / "plain_flow.py").output
