"""The pages that name what the code has: every public name, every command, and error messages as they are raised."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import metaflow_artifacts
from metaflow_artifacts._cli import parser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("**/*.md")), ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md"))]
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
DIRECTIVE = re.compile(r"^::: (\S+)", re.MULTILINE)
MESSAGE = re.compile(r"`([^`]{15,})`")
ANY = "…"


def commands(page: Path) -> list[str]:
    """The lines of a page that call `metaflow-artifacts`, without the times of a crontab and without comments."""
    lines = (line for block in FENCE.findall(page.read_text()) for line in block.split("\n"))
    found = (re.match(r"(?:[\d*]+ +){0,5}(metaflow-artifacts [^#>|]+)", line) for line in lines)
    return [match[1].strip() for match in found if match]


def test_the_links_of_the_readme_lead_to_files() -> None:
    """mkdocs checks those of all other pages."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text())
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_flow_runs_when_it_is_pasted() -> None:
    flows = [(page.name, block) for page in PAGES for block in FENCE.findall(page.read_text()) if "FlowSpec" in block]
    assert flows
    assert [name for name, block in flows if "__main__" not in block] == []


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    for command in commands(page):
        try:
            parser().parse_args(shlex.split(command)[1:])
        except SystemExit:
            pytest.fail(f"{page.name}: {command}")


def test_the_reference_has_every_public_name_once() -> None:
    documented = DIRECTIVE.findall((DOCS / "reference" / "python.md").read_text())
    names = {name for name in metaflow_artifacts.__all__ if name not in metaflow_artifacts.errors.__all__}
    assert sorted(documented) == sorted(
        [*(f"metaflow_artifacts.{name}" for name in names), "metaflow_artifacts.errors"]
    )


def test_the_reference_has_every_method_of_a_store() -> None:
    """They are listed, because those that most readers need come first."""
    page = (DOCS / "reference" / "python.md").read_text()
    listed = re.search(r"metaflow_artifacts\.Store\n.*?members: \[([^\]]*)\]", page, re.DOTALL)
    assert listed is not None
    public = {
        name for name, of in inspect.getmembers(metaflow_artifacts.Store) if not name.startswith("_") and of.__doc__
    }
    assert sorted(re.findall(r"\w+", listed[1])) == sorted(public)


def text_of(node: ast.expr) -> str | None:
    """A text of the code as a page quotes it: with an ellipsis for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or ANY for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (text_of(node.left) or ANY) + (text_of(node.right) or ANY)
    return None


def texts() -> Iterator[str]:
    for path in ROOT.glob("packages/*/src/**/*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.expr) and id(node) not in docstrings and (text := text_of(node)):
                # Some are templates, which another module fills in.
                yield re.sub(r"\{[^{}]*\}", ANY, text).replace("`", "").replace("\n", " ")


def messages() -> list[str]:
    """What stands between backticks in the first column of the tables of the page about errors."""
    rows = re.findall(r"^\| (.+?) \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    return [message for row in rows for message in MESSAGE.findall(row)]


def pattern_of(message: str) -> str:
    """Finds a message in one text, which may say what the message leaves open."""
    return ".*".join(re.escape(part.strip(" ")) for part in message.split(ANY))


def test_the_error_messages_of_the_page_are_those_of_the_code() -> None:
    code = "\n".join(texts())
    quoted = messages()
    assert len(quoted) > 50
    missing = [message for message in quoted if not re.search(pattern_of(message), code)]
    assert missing == []
