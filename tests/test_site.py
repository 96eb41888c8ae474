"""The built documentation: its links, its notebooks, and its pages in a browser."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import helixnb
import helixnb.testing
import helixnb.web
import helixnb.workload
import helixnb_kernels

DOCS = Path(__file__).parents[1] / "docs"
SITE = Path(os.environ.get("HELIXNB_TEST_SITE", "."))
PHONE, DESK = 390, 1_280

pytestmark = pytest.mark.skipif(
    "HELIXNB_TEST_SITE" not in os.environ, reason="`make docs` has these look at what it has built"
)


class Page(HTMLParser):
    """What a page links to, loads, and can be linked to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if name := given.get("id"):
            self.anchors.add(name)
        if tag == "a" and (link := given.get("href")):
            self.links.append(link)
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(given["href"] or "")
        elif source := given.get("src"):
            self.loads.append(source)


def site() -> dict[Path, Page]:
    """Return all pages that were built."""
    return {file: Page(file) for file in SITE.resolve().rglob("*.html")}


def test_no_link_is_broken() -> None:
    """Each leads to a file of the site, and to a place that there is in it."""
    pages = site()
    assert len(pages) > 40
    broken = []
    for file, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            to = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            place = unquote(parts.fragment)
            if not to.is_file() or (place and to in pages and place not in pages[to].anchors):
                broken.append(f"{file.name}: {link}")
    assert not broken


def test_nothing_is_loaded_from_elsewhere() -> None:
    """The site can be read without a network."""
    outside = {
        f"{file.name}: {source}"
        for file, page in site().items()
        for source in page.loads
        if urlsplit(source).netloc
    }
    assert not outside


def test_every_public_name_is_in_the_reference() -> None:
    anchors = {name for page in site().values() for name in page.anchors}
    for module in (helixnb, helixnb.testing, helixnb.web, helixnb.workload, helixnb_kernels):
        public: list[str] = module.__all__
        for name in public:
            home = helixnb if name in helixnb.__all__ else module
            assert f"{home.__name__}.{name}" in anchors, name


@pytest.mark.parametrize("source", sorted((DOCS / "notebooks").glob("*.md")), ids=lambda f: f.stem)
def test_every_cell_of_a_notebook_has_run(source: Path) -> None:
    """And what it has drawn is there."""
    text = source.read_text(encoding="utf-8")
    cells = len(re.findall(r"^```\{code-cell\}", text, re.MULTILINE))
    if source.stem == "index":
        assert not cells
        return
    html = (SITE / "notebooks" / f"{source.stem}.html").read_text(encoding="utf-8")
    assert len(re.findall(r'class="cell_input', html)) == cells > 0
    assert "Traceback" not in html
    drawn = re.findall(r'<img[^>]*src="\.\./(_images/[0-9a-f]+\.svg)"', html)
    assert len(set(drawn)) >= 2
    assert all((SITE / image).stat().st_size > 1_000 for image in drawn)
    assert (SITE / "notebooks" / f"{source.stem}.html").stat().st_size > 10_000


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_pages_fit_the_screen(browser: Any, width: int) -> None:
    """None is wider than its window, all pictures are there, and nothing complains."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    wide = []
    for file in sorted(site()):
        page.goto(file.as_uri())
        seen = page.evaluate(
            """() => [
                document.documentElement.scrollWidth,
                [...document.images].filter(image => image.offsetParent && !image.naturalWidth)
                    .map(image => image.src),
            ]"""
        )
        if seen[0] > width:
            wide.append(f"{file.name}: {seen[0]}")
        complaints += seen[1]
    assert not complaints
    assert not wide
