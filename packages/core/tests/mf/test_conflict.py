"""Decorators of the same names from another distribution are refused."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import metaflow.plugins
import pytest
from metaflow.decorators import StepDecorator
from metaflow.extension_support import plugins

from metaflow_artifacts import UsageError
from metaflow_artifacts._mf.conflict import refuse_foreign_decorators


@pytest.fixture(autouse=True)
def not_remembered() -> Iterator[None]:
    refuse_foreign_decorators.cache_clear()
    yield
    refuse_foreign_decorators.cache_clear()


def decorator(name: str, module: str) -> type[StepDecorator]:
    return type("Decorator", (StepDecorator,), {"name": name, "__module__": module})


def test_our_decorators_and_unrelated_ones_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = decorator("checkpoint", "metaflow_extensions.artifacts_checkpoint.plugins.x")
    unrelated = decorator("acme", "metaflow_extensions.acme.plugins.x")
    monkeypatch.setattr(metaflow.plugins, "STEP_DECORATORS", [*metaflow.plugins.STEP_DECORATORS, ours, unrelated])
    refuse_foreign_decorators()


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution metaflow-checkpoint of other authors, with the package `foreign`."""
    metadata = tmp_path / "metaflow_checkpoint-0.2.14.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: metaflow-checkpoint\nVersion: 0.2.14\n")
    (metadata / "RECORD").write_text("metaflow_extensions/foreign/plugins/x.py,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def installed() -> list[str]:
    """Our decorator distributions in this environment."""
    names = {one.metadata["Name"] for one in distributions()}
    return [name for name in (f"metaflow-artifacts-{part}" for part in ("model", "checkpoint", "hf")) if name in names]


@pytest.mark.parametrize("name", ["model", "checkpoint", "huggingface_hub"])
@pytest.mark.usefixtures("foreign")
def test_the_error_says_which_command_removes_which_distribution(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = decorator(name, "metaflow_extensions.foreign.plugins.x")
    monkeypatch.setattr(metaflow.plugins, "STEP_DECORATORS", [*metaflow.plugins.STEP_DECORATORS, one])
    with pytest.raises(UsageError) as raised:
        refuse_foreign_decorators()
    assert str(raised.value) == (
        f"@{name} comes from metaflow-checkpoint 0.2.14, which cannot be installed together with metaflow-artifacts: "
        "both have decorators of the same names, and store in different formats. Remove one of them: "
        "`pip uninstall metaflow-checkpoint`, or "
        f"`pip uninstall {' '.join(installed())}`"
    )


def test_a_decorator_that_ours_has_replaced_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metaflow loads distributions first that need no other extension: theirs before ours, which need core."""
    theirs = ("checkpoint", "metaflow_extensions.foreign.plugins.x.Decorator")
    monkeypatch.setattr(plugins, "_all_step_decorators", [*vars(plugins)["_all_step_decorators"], theirs])
    with pytest.raises(UsageError, match=r"^@checkpoint comes from the module metaflow_extensions\.foreign"):
        refuse_foreign_decorators()


def test_a_decorator_without_a_distribution_is_named_by_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    one = decorator("model", "metaflow_extensions.mine.plugins.x")
    monkeypatch.setattr(metaflow.plugins, "STEP_DECORATORS", [*metaflow.plugins.STEP_DECORATORS, one])
    with pytest.raises(UsageError, match=r"^@model comes from the module metaflow_extensions\.mine\.plugins\.x, which"):
        refuse_foreign_decorators()
