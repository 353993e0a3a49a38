"""What a browser would ask for when it shows the site: nothing from elsewhere, and nothing that is not there.

`nox -s site` has built it. mkdocs has checked the links of the pages; this checks what theme and plugins have added.
"""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

SITE = Path(__file__).parents[2] / ".nox" / "html"
FETCHED = {"img": "src", "script": "src", "link": "href", "iframe": "src"}
"""What a browser fetches by itself, by the names of elements."""


class Page(HTMLParser):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag in FETCHED and FETCHED[tag] in found:
            self.fetched.append(found[FETCHED[tag]])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])


@pytest.fixture(scope="module")
def pages() -> dict[Path, Page]:
    # 404.html is for a server, and is written for its root.
    found = {path: Page(path) for path in SITE.rglob("*.html") if path.name != "404.html"}
    assert len(found) > 30, "nox -s site builds it"
    return found


def test_nothing_is_fetched_from_elsewhere(pages: dict[Path, Page]) -> None:
    assert {one for page in pages.values() for one in page.fetched if urlsplit(one).netloc} == set()


def test_all_links_lead_to_files_and_anchors(pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in (*page.links, *page.fetched):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            anchor = unquote(parts.fragment)
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].ids):
                broken.append(f"{path.relative_to(SITE)}: {link}")
    assert broken == []


def test_the_navigation_shows_every_page(pages: dict[Path, Page]) -> None:
    start = SITE / "index.html"
    shown = {(start.parent / urlsplit(link).path).resolve() for link in pages[start].links}
    hidden = {str(path.relative_to(SITE)) for path in pages if path.resolve() not in shown}
    # Programs are reached from the page that explains them.
    programs = {page for page in hidden if page.startswith("examples/") and not page.endswith("index.html")}
    assert hidden == programs
