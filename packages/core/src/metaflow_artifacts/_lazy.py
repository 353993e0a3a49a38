"""Names of a module that are imported at their first use: every Metaflow process imports ours, and few need all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

__all__ = ["lazy_names"]


def lazy_names(
    module: dict[str, Any], where: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` for a module, given as its `globals()`.

    `where` maps each module of this package to the names that are taken from it. The modules directly below the package
    are names too.
    """
    homes = {name: home for home, names in where.items() for name in names}

    def getattribute(name: str) -> Any:
        if name in where:
            return import_module(f"metaflow_artifacts.{name}")
        if name not in homes:
            raise AttributeError(f"module {module['__name__']!r} has no attribute {name!r}")
        value = module[name] = getattr(import_module(f"metaflow_artifacts.{homes[name]}"), name)
        return value

    return getattribute, lambda: sorted({*module["__all__"], *(name for name in module if name.startswith("__"))})
