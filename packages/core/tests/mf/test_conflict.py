"""Decorators of the same names from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import metaflow.plugins
import pytest
from metaflow.decorators import StepDecorator

from metaflow_artifacts import UsageError
from metaflow_artifacts._mf.conflict import refuse_foreign_decorators


@pytest.fixture(autouse=True)
def not_remembered() -> Iterator[None]:
    refuse_foreign_decorators.cache_clear()
    yield
    refuse_foreign_decorators.cache_clear()


def decorator(name: str, module: str) -> type[StepDecorator]:
    return type("Decorator", (StepDecorator,), {"name": name, "__module__": module})


def test_ours_and_unrelated_ones_are_welcome(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = decorator("checkpoint", "metaflow_extensions.artifacts_checkpoint.plugins.x")
    unrelated = decorator("acme", "metaflow_extensions.acme.plugins.x")
    monkeypatch.setattr(metaflow.plugins, "STEP_DECORATORS", [*metaflow.plugins.STEP_DECORATORS, ours, unrelated])
    refuse_foreign_decorators()


@pytest.mark.parametrize("name", ["model", "checkpoint", "huggingface_hub"])
def test_one_of_the_same_name_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = decorator(name, "metaflow_extensions.foreign.plugins.x")
    monkeypatch.setattr(metaflow.plugins, "STEP_DECORATORS", [*metaflow.plugins.STEP_DECORATORS, foreign])
    with pytest.raises(UsageError, match=rf"^@{name} comes from metaflow_extensions\.foreign\.plugins\.x") as raised:
        refuse_foreign_decorators()
    assert "uninstall" in str(raised.value)
    assert "\n" not in str(raised.value)
