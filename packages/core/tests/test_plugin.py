"""`metaflow_artifacts.plugin` is all that the decorator packages use of core."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from metaflow_artifacts import plugin

PACKAGES = Path(__file__).parents[2]
SOURCES = sorted(PACKAGES.glob("metaflow-*/src/**/*.py"))


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Each module of core that is imported, with the name that is taken from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield node.module, alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ""


def used() -> dict[str, Path]:
    """Names that the decorator packages import of core, each with a file that does."""
    names = {}
    for path in SOURCES:
        for module, name in imported(ast.parse(path.read_text())):
            if module.split(".")[0] == "metaflow_artifacts":
                assert module == "metaflow_artifacts.plugin", f"{path} imports {module}"
                names[name] = path
    return names


def test_decorator_packages_import_exactly_the_names_of_plugin() -> None:
    assert len(SOURCES) > 30
    assert set(used()) == set(plugin.__all__)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(plugin.__file__).read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    assert {name for _, name in imported_below(guarded)} == set(plugin.__all__)


def imported_below(node: ast.If) -> Iterator[tuple[str, str]]:
    for one in node.body:
        assert isinstance(one, ast.ImportFrom)
        for alias in one.names:
            assert alias.asname == alias.name
            yield one.module or "", alias.name
