"""`spin` runs our decorators beside those that the user and Metaflow allow."""

from __future__ import annotations

from pathlib import Path

import pytest
from metaflow import metaflow_config

from metaflow_artifacts._mf.spin import allow_in_spin
from metaflow_artifacts.testing.flows import FlowRunner

pytestmark = pytest.mark.skipif(
    not hasattr(metaflow_config, "SPIN_ALLOWED_DECORATORS"), reason="Metaflow before 2.19 has no spin"
)

PRINT_ALLOWED = """
from metaflow import decorators, metaflow_config, runtime
from metaflow.cli_components import step_cmd
from metaflow_artifacts.testing.flows import emit
for module in (metaflow_config, decorators, runtime, step_cmd):
    emit("allowed", module.SPIN_ALLOWED_DECORATORS)
"""


def test_our_decorators_join_those_of_metaflow_and_of_the_user(tmp_path: Path) -> None:
    runner = FlowRunner(tmp_path)
    for allowed in runner.python(PRINT_ALLOWED).facts("allowed"):
        assert {"card", "timeout", "model"} <= set(allowed)
    chosen = runner.with_environment(METAFLOW_SPIN_ALLOWED_DECORATORS='["mine", "model"]')
    for allowed in chosen.python(PRINT_ALLOWED).facts("allowed"):
        assert allowed[:2] == ["mine", "model"]
        assert "card" not in allowed
        assert allowed.count("model") == 1


def test_decorators_of_others_are_not_added(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: list[str] = []
    monkeypatch.setattr(metaflow_config, "SPIN_ALLOWED_DECORATORS", allowed)
    allow_in_spin()
    assert "model" in allowed
    assert set(allowed) <= {"model", "checkpoint", "huggingface_hub", "with_artifact_store"}


@pytest.mark.parametrize("value", [None, ("card",)])
def test_a_metaflow_that_has_no_such_list_is_left_alone(
    value: tuple[str, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Releases before 2.19 have no spin."""
    if value is None:
        monkeypatch.delattr(metaflow_config, "SPIN_ALLOWED_DECORATORS")
    else:
        monkeypatch.setattr(metaflow_config, "SPIN_ALLOWED_DECORATORS", value)
    allow_in_spin()
    assert getattr(metaflow_config, "SPIN_ALLOWED_DECORATORS", None) == value
