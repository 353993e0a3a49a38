"""A config that cannot be used, in real flows."""

from __future__ import annotations

from pathlib import Path

import pytest

from metaflow_artifacts.testing.flows import FlowRunner

FLOW = Path(__file__).parent / "flows" / "config_flow.py"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            "key",
            "config has the unknown key 'rol_arn'; a store in s3 takes root, role_arn, session_vars, client_params",
        ),
        ("params", "no S3 client can be made for s3://bucket/x with client_params as given"),
        ("function", "the function that config= names raised KeyError: 'NO_SUCH_VARIABLE'"),
    ],
)
def test_a_run_with_a_config_that_cannot_be_used_does_not_start(config: str, said: str, tmp_path: Path) -> None:
    result = FlowRunner(tmp_path, {"CONFIG": config}).run(FLOW, fails=True)
    assert f"@with_artifact_store(type='s3'): {said}" in result.output
    assert "Traceback" not in result.output
    assert "run-id" not in result.output


def test_commands_that_only_look_do_not_call_the_function(tmp_path: Path) -> None:
    assert "start" in FlowRunner(tmp_path, {"CONFIG": "function"}).command(FLOW, "show").output
