"""Refuses to work beside another distribution that has decorators of the same names.

The metaflow-checkpoint of other authors has `@model`, `@checkpoint` and `@huggingface_hub` too. If both are installed,
Metaflow uses for each name the distribution that it loads last, without a warning. It loads those first that need no
other extension, so that the last one is ours, which need core. Of other names, those of the other distribution stay.
"""

from __future__ import annotations

import functools
from importlib.metadata import Distribution, distributions
from typing import Any

__all__ = ["OUR_MODULES", "guard_decorators", "refuse_foreign_decorators"]

_DECORATORS = ("model", "checkpoint", "huggingface_hub")
OUR_MODULES = "metaflow_extensions.artifacts_"
"""The begin of the names of modules with our decorators."""
_OUR_DISTRIBUTIONS = ("metaflow-artifacts-model", "metaflow-artifacts-checkpoint", "metaflow-artifacts-hf")


@functools.lru_cache(maxsize=1)
def refuse_foreign_decorators() -> None:
    """Raise UsageError if `@model`, `@checkpoint` or `@huggingface_hub` comes from another distribution.

    The error says which command removes which distribution. To be called when one of our decorators or functions is
    used, not on import: flows that use none of them must still work.
    """
    from metaflow.extension_support import plugins

    from metaflow_artifacts.errors import UsageError

    # Metaflow has no public list of the decorators that others of the same name have replaced.
    replaced = [(name, path.rpartition(".")[0]) for name, path in getattr(plugins, "_all_step_decorators", ())]
    used = [(one.name, one.__module__) for one in _foreign_decorators()]
    for name, module in (*used, *replaced):
        if _is_foreign(name, module):
            raise UsageError(_message(name, module))


def guard_decorators() -> None:
    """Let every step with a foreign decorator of one of our names stop with the error of `refuse_foreign_decorators`.

    Our own decorators cannot raise it then: Metaflow never calls them. To be called when Metaflow loads the toplevel
    modules of its extensions, which is after all decorators.
    """
    for decorator in _foreign_decorators():
        decorator.step_init = _refuse_step


def _refuse_step(self: Any, *args: Any, **kwargs: Any) -> None:
    from metaflow_artifacts._mf.errors import shown
    from metaflow_artifacts.errors import UsageError

    with shown():
        raise UsageError(_message(self.name, type(self).__module__))


def _foreign_decorators() -> list[Any]:
    """The classes that Metaflow uses for our names, where they are not ours."""
    from metaflow.plugins import STEP_DECORATORS

    return [one for one in STEP_DECORATORS if _is_foreign(one.name, one.__module__)]


def _is_foreign(name: str, module: str) -> bool:
    return name in _DECORATORS and not module.startswith(OUR_MODULES)


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
