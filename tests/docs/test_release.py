"""What PyPI shows of the four distributions, and that they are released together."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
README_LINES = 210
"""How many lines the READMEs of the packages may have together."""
VERSION = re.compile(r'^__version__ = "(.*)"$', re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def project(package: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    return found


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as the site of the repository makes them."""
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_all_packages_have_one_version_and_one_address() -> None:
    versions = {text for path in ROOT.glob("packages/*/src/**/*.py") for text in VERSION.findall(path.read_text())}
    assert len(versions) == 1
    (version,) = versions
    assert len({tuple(sorted(project(package)["urls"].items())) for package in PACKAGES}) == 1
    major, minor, _ = version.split(".")
    for package in PACKAGES:
        for requirement in project(package)["dependencies"]:
            if requirement.startswith("metaflow-artifacts"):
                assert requirement == f"metaflow-artifacts>={major}.{minor},<{major}.{int(minor) + 1}"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_links_of_readmes_work_on_pypi(package: Path) -> None:
    """PyPI does not know where a relative link leads."""
    page = (package / "README.md").read_text()
    source = project(package)["urls"]["Source"]
    for link in [*LINK.findall(page), *project(package)["urls"].values()]:
        address, _, anchor = link.partition("#")
        if not address:
            assert anchor in anchors(page), link
            continue
        assert address.startswith("https://"), link
        if address.startswith(f"{source}/") and address != f"{source}/issues":
            kind, branch, path = address.removeprefix(f"{source}/").split("/", 2)
            target = ROOT / path
            assert (kind, branch) == ("tree" if target.is_dir() else "blob", "main"), link
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_readmes_begin_with_pip_install_and_something_that_runs(package: Path) -> None:
    (_, install), (language, program), *_ = FENCE.findall((package / "README.md").read_text())
    assert install.splitlines()[0] == f"pip install {project(package)['name']}"
    assert language == "python"
    assert "import" in program


def test_readmes_are_short() -> None:
    """A README is a part of the METADATA of its wheel, and each process of Metaflow parses the METADATA of every
    installed extension three times, line by line. What explains more is in docs/."""
    lines = {package.name: len((package / "README.md").read_text().splitlines()) for package in PACKAGES}
    assert len(lines) == 4
    assert sum(lines.values()) <= README_LINES, lines


def test_every_extra_that_is_named_is_defined() -> None:
    """pip only warns about an extra that does not exist, and installs nothing for it."""
    defined = {project(package)["name"]: set(project(package).get("optional-dependencies", {})) for package in PACKAGES}
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("packages/*/README.md")]
    texts = [path.read_text() for path in (*pages, *(package / "pyproject.toml" for package in PACKAGES))]
    named = {found for text in texts for found in re.findall(r"(metaflow-artifacts(?:-\w+)?)\[([\w,]+)\]", text)}
    assert ("metaflow-artifacts", "azure") in named
    for name, extras in named:
        assert set(extras.split(",")) <= defined[name], f"{name}[{extras}]"
