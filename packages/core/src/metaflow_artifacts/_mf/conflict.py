"""Refuses to work beside another distribution that has decorators of the same names.

The metaflow-checkpoint of other authors has `@model`, `@checkpoint` and `@huggingface_hub` too. If both are installed,
Metaflow takes some of these names from one and some from the other, without a warning.
"""

from __future__ import annotations

import functools
from importlib.metadata import Distribution, distributions

from metaflow_artifacts.errors import UsageError

__all__ = ["refuse_foreign_decorators"]

_DECORATORS = ("model", "checkpoint", "huggingface_hub")
_OUR_MODULES = "metaflow_extensions.artifacts_"
_OUR_DISTRIBUTIONS = ("metaflow-artifacts-model", "metaflow-artifacts-checkpoint", "metaflow-artifacts-hf")


@functools.lru_cache(maxsize=1)
def refuse_foreign_decorators() -> None:
    """Raise UsageError if `@model`, `@checkpoint` or `@huggingface_hub` comes from another distribution.

    The error says which command removes which distribution. To be called when one of our decorators or functions is
    used, not on import: flows that use none of them must still work.
    """
    from metaflow.plugins import STEP_DECORATORS

    for decorator in STEP_DECORATORS:
        if decorator.name in _DECORATORS and not decorator.__module__.startswith(_OUR_MODULES):
            raise UsageError(_message(decorator.name, decorator.__module__))


def _message(name: str, module: str) -> str:
    distribution = _distribution_of(module)
    if distribution is None:
        origin, remove_it = f"the module {module}", "the distribution that has this module"
    else:
        found: str = distribution.metadata["Name"]
        origin, remove_it = f"{found} {distribution.version}", f"`pip uninstall {found}`"
    installed = {one.metadata["Name"] for one in distributions()}
    ours = [one for one in _OUR_DISTRIBUTIONS if one in installed] or list(_OUR_DISTRIBUTIONS)
    return (
        f"@{name} comes from {origin}, which cannot be installed together with metaflow-artifacts: both have "
        f"decorators of the same names, and store in different formats. Remove one of them: {remove_it}, or "
        f"`pip uninstall {' '.join(ours)}`"
    )


def _distribution_of(module: str) -> Distribution | None:
    """The installed distribution that has a module below `metaflow_extensions`."""
    directory = "/".join(module.split(".")[:2]) + "/"
    for distribution in distributions():
        if any(str(file).startswith(directory) for file in distribution.files or ()):
            return distribution
    return None
