"""Callbacks for training libraries: each saves checkpoints in the background, and a retry resumes by itself.

`KerasCheckpoint`, `LightningCheckpoint`, `TrainerCheckpoint` (for transformers) and `XGBoostCheckpoint`. Each imports
its library when it is first used, and raises UsageError if that is not installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._keras import KerasCheckpoint as KerasCheckpoint
    from ._lightning import LightningCheckpoint as LightningCheckpoint
    from ._transformers import TrainerCheckpoint as TrainerCheckpoint
    from ._xgboost import XGBoostCheckpoint as XGBoostCheckpoint

__all__ = ["KerasCheckpoint", "LightningCheckpoint", "TrainerCheckpoint", "XGBoostCheckpoint"]

# Metaflow reads this name and puts the package into the code package of every flow, so that remote tasks have it.
METAFLOW_PACKAGE_POLICY = "include"

_WHERE = {
    "KerasCheckpoint": ("_keras", "keras"),
    "LightningCheckpoint": ("_lightning", "lightning"),
    "TrainerCheckpoint": ("_transformers", "transformers[torch]"),
    "XGBoostCheckpoint": ("_xgboost", "xgboost"),
}
"""The module of each callback, and what to install for it."""


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, distribution = _WHERE[name]
    try:
        value = getattr(import_module(f"{__name__}.{module}"), name)
    except ImportError as error:
        from metaflow_artifacts.plugin import UsageError

        raise UsageError(
            f"{name} needs a library that cannot be imported here ({error}); pip install '{distribution}', or in a "
            "remote task, add it to the image or to @pypi or @conda"
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
