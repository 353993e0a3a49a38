"""Decorators of the same names from another distribution, which do not find the data of ours."""

from __future__ import annotations

import functools
from importlib.metadata import distributions

from metaflow_artifacts.errors import UsageError

__all__ = ["refuse_foreign_decorators"]

_NAMES = ("model", "checkpoint", "huggingface_hub")
_OURS = "metaflow_extensions.artifacts_"


@functools.lru_cache(maxsize=1)
def refuse_foreign_decorators() -> None:
    """Raise UsageError where one of `@model`, `@checkpoint` and `@huggingface_hub` comes from somebody else.

    To be called where one of ours is used, not at import: flows that use none must go on working.
    """
    from metaflow.plugins import STEP_DECORATORS

    for decorator in STEP_DECORATORS:
        if decorator.name in _NAMES and not decorator.__module__.startswith(_OURS):
            raise UsageError(
                f"@{decorator.name} comes from {_origin(decorator.__module__)}, which is not built on "
                "metaflow-artifacts and stores in another format; uninstall it, or what is built on metaflow-artifacts"
            )


def _origin(module: str) -> str:
    folder = "/".join(module.split(".")[:2]) + "/"
    for distribution in distributions():
        if any(str(file).startswith(folder) for file in distribution.files or ()):
            return f"{distribution.metadata['Name']} {distribution.version} ({module})"
    return module
