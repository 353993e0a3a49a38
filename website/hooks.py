"""What mkdocs does not do by itself: pages from outside of docs/, links as the repository has them, the options of the
command line."""

from __future__ import annotations

import argparse
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from metaflow_artifacts._cli import parser

ROOT = Path(__file__).parents[1]
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "packages/*/README.md", "examples/*/README.md")
"""Pages outside of docs/. They have the same path on the site."""
PROGRAMS = "examples/*/*.py"
"""Programs that pages link to. Each gets a page."""
START = {"README.md": "index.md"}
"""Pages of the repository that have another one on the site."""
SEARCHED_FIRST = ("troubleshooting.md",)
"""Pages that the search shows before others: who pastes an error message looks for these."""
SEARCHED_LAST = ("architecture.md", "format.md", "reliability.md", "decisions/", "CHANGELOG.md", "CONTRIBUTING.md")
"""Pages that have many words of everything, and are not for who wants to do something."""

FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\[\]]*)\]\(([^()\s#]+)(#[^()\s]*)?\)")
ITEM = re.compile(r"( *)([-*]|\d+\.) ")
COMMANDS = "<!-- commands -->"


def on_files(files: Files, config: Any) -> Files:
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, str(path.relative_to(ROOT)), content=path.read_text()))
    for path in sorted(ROOT.glob(PROGRAMS)):
        text = f"# {path.name}\n\n```python\n{path.read_text()}```\n"
        files.append(File.generated(config, str(path.relative_to(ROOT).with_suffix(".md")), content=text))
    complete(config.nav, files)
    return files


def complete(nav: list[dict[str, Any]], files: Files) -> None:
    """Put all decisions into the navigation, and each page of docs/ that it lacks: under Tasks."""
    background = next(entry["Background"] for entry in nav if "Background" in entry)
    decisions = sorted(file.src_uri for file in files.documentation_pages() if file.src_uri.startswith("decisions/"))
    # README.md comes after the numbers.
    background[:] = [
        {"Decisions": [{"Overview": decisions[-1]}, *decisions[:-1]]} if "Decisions" in entry else entry
        for entry in background
    ]
    named = set(named_pages(nav))
    tasks = next(entry["Tasks"] for entry in nav if "Tasks" in entry)
    for file in files.documentation_pages():
        if file.src_uri not in named and (ROOT / "docs" / file.src_uri).exists():
            tasks.append(file.src_uri)
        elif file.src_uri not in named:
            # A program, which is reached from the page that explains it.
            file.inclusion = file.inclusion.__class__.NOT_IN_NAV


def named_pages(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from named_pages(entry)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    if page.file.src_uri in SEARCHED_FIRST:
        page.meta["search"] = {"boost": 4}
    elif page.file.src_uri.startswith(SEARCHED_LAST):
        page.meta["search"] = {"boost": 0.5}
    elif not (ROOT / "docs" / page.file.src_uri).exists() and not (ROOT / page.file.src_uri).exists():
        # A program: its words say little about what it is for.
        page.meta["search"] = {"exclude": True}
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, commands())
    rewritten: list[str] = []
    end = 0
    for fence in [*FENCE.finditer(markdown), None]:
        prose = markdown[end : fence.start()] if fence else markdown[end:]
        links = LINK.sub(lambda link: follow(link, page.file.src_uri, config.extra["repository"], files), prose)
        rewritten += [lists(links), fence[0] if fence else ""]
        end = fence.end() if fence else end
    return "".join(rewritten)


def follow(link: re.Match[str], source: str, repository: str, files: Files) -> str:
    """A link of a page, as it must be on the site. What leads to no file is left to mkdocs, which reports it."""
    text, address, anchor = link[1], link[2], link[3] or ""
    # READMEs have addresses where others have paths, for PyPI.
    written = re.match(rf"{re.escape(repository)}/(?:blob|tree)/main/(.+)", address)
    if written:
        target = written[1]
    elif ":" in address:
        return link[0]
    else:
        here = source if (ROOT / source).exists() else f"docs/{source}"
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), address))
    found = shown_at(target, files)
    if found is not None:
        return f"[{text}]({posixpath.relpath(found, posixpath.dirname(source) or '.')}{anchor})"
    if (ROOT / target).exists():
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"[{text}]({repository}/{kind}/main/{target}{anchor})"
    return f"[{text}]({target})" if written else link[0]


def shown_at(target: str, files: Files) -> str | None:
    """The page that shows a file or directory of the repository; None if there is none."""
    path = f"{target}/README.md" if (ROOT / target).is_dir() else target
    candidate = START.get(path, path.removeprefix("docs/"))
    pages = (candidate, posixpath.splitext(candidate)[0] + ".md")
    return next((page for page in pages if files.get_file_from_path(page) is not None), None)


def lists(text: str) -> str:
    """Lists as Python-Markdown wants them: a blank line before, and four spaces for each level."""
    lines: list[str] = []
    inside = False
    for line in text.split("\n"):
        item = ITEM.match(line)
        before = lines[-1] if lines else ""
        if item and not inside and before.strip():
            lines.append("")
        if item:
            inside = True
        elif line.strip() and not line.startswith(" ") and not before.strip():
            inside = False
        if inside and line.startswith("  "):
            stripped = line.lstrip(" ")
            # 2 to 4 spaces are one level, 5 to 8 are two.
            line = " " * (4 * -(-(len(line) - len(stripped)) // 4)) + stripped
        lines.append(line)
    return "\n".join(lines)


def commands() -> str:
    """The commands of `metaflow-artifacts`, from its parser."""
    top = parser()
    groups = next(action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    common = [action for action in next(iter(groups.choices.values()))._actions if action.dest in ("root", "json")]
    text = [table(common)]
    for name, command in groups.choices.items():
        formatter = argparse.HelpFormatter(command.prog, width=76)
        formatter.add_usage(command.usage, command._actions, command._mutually_exclusive_groups, prefix="")
        own = [action for action in command._actions if action.dest not in ("root", "json", "help")]
        text.append(f"## {name}\n\n{command.description}\n\n```\n{formatter.format_help().strip()}\n```\n")
        text.append(table(own) if own else "")
    return "\n".join(text)


def table(actions: list[argparse.Action]) -> str:
    rows = ["| | |", "| --- | --- |"]
    for action in actions:
        value = action.metavar or (" or ".join(action.choices) if action.choices else "")
        names = ", ".join(action.option_strings)
        takes = "" if action.nargs == 0 else f" {value}" if names else str(value)
        rows.append(f"| `{names}{takes}` | {(action.help or '').replace('*', '&#42;')} |")
    return "\n".join(rows) + "\n"
