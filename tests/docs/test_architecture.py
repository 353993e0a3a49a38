"""docs/architecture.md names every module of the four packages, and nothing that does not exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
PAGES = [PAGE, *sorted((ROOT / "docs" / "decisions").glob("*.md"))]

MAP = re.compile(r"^<!-- map: (\S+) -->\n(.*?)^<!-- end -->", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| `([^`]+\.py)` \| (.+) \|$", re.MULTILINE)
NAME_IN_FILE = re.compile(r"`([\w.]+)`\s+\(`([\w./-]+\.py)`")
FILE = re.compile(r"`([\w./-]+\.py)`")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def mapped() -> list[tuple[str, str]]:
    """The path of each module that the map has, and its line."""
    return [
        (f"{directory}/{name}", line)
        for directory, rows in MAP.findall(PAGE.read_text())
        for name, line in ROW.findall(rows)
    ]


def has_code(path: Path) -> bool:
    """Whether there is more in a module than a docstring."""
    body = ast.parse(path.read_text()).body
    return any(not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant)) for one in body)


def modules() -> set[str]:
    return {str(path.relative_to(ROOT)) for path in ROOT.glob("packages/*/src/**/*.py") if has_code(path)}


def names_in(path: Path) -> set[str]:
    """Every name that a module defines: functions, classes, methods, variables and attributes of classes."""
    tree = ast.parse(path.read_text())
    found = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assigned = (node for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    return found | {node.id for node in assigned}


def named(file: str) -> list[Path]:
    """The files that a page means by the end of a path."""
    folders = (ROOT / name for name in ("packages", "tests", "benchmarks", "examples"))
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    return [path for path in files if path.as_posix().endswith(f"/{file}") and "build" not in path.parts]


def test_the_map_has_every_module_once_and_no_other() -> None:
    paths = [path for path, _ in mapped()]
    assert len(paths) == len(set(paths))
    assert sorted(set(paths)) == sorted(modules())


def test_each_module_of_the_map_has_one_line_that_says_what_it_does() -> None:
    for path, line in mapped():
        assert line.strip(), path
        assert len(line) <= 160, path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_that_a_page_names_exist(page: Path) -> None:
    text = MAP.sub("", page.read_text())
    for file in FILE.findall(text):
        assert named(file), f"{page.name} names {file}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_names_that_a_page_places_in_a_file_are_defined_there(page: Path) -> None:
    for name, file in NAME_IN_FILE.findall(page.read_text()):
        paths = named(file)
        assert len(paths) == 1, f"{page.name}: {file} could be any of {paths}"
        missing = set(name.split(".")) - names_in(paths[0])
        assert not missing, f"{page.name}: {file} does not define {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_to_files(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_every_decision_is_in_the_list_and_has_the_same_parts() -> None:
    index = (ROOT / "docs" / "decisions" / "README.md").read_text()
    pages = sorted((ROOT / "docs" / "decisions").glob("0*.md"))
    assert re.findall(r"\((0[^)]+)\)", index) == [page.name for page in pages]
    for page in pages:
        text = page.read_text()
        title = re.match(rf"# {int(page.name[:4])}\. (.+)\n", text)
        assert title is not None, page.name
        assert f"[{title[1]}]({page.name})" in index
        parts = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert parts[:3] == ["Problem", "Decision", "Reasons"], page.name
        assert {"Measured", "Rejected"} <= set(parts), page.name
