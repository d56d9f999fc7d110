"""The documentation's site in a real browser, from its files: search, light and dark, and nothing from elsewhere."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from docs.build_site import ROOT, build
from tests.servers.browsers import chromium
from tests.servers.conftest import need

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    need("chromium", "playwright")
    with tempfile.TemporaryDirectory(prefix="duepost-browser-") as folder, chromium(Path(folder)) as browser:
        yield browser


@pytest.fixture(scope="module")
def site(browser: "Browser", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of this checkout; not built where no browser is asked for."""
    return build(ROOT, tmp_path_factory.mktemp("site") / "made")


class Reader:
    """A page, and what it asked for and complained of."""

    def __init__(self, page: "Page") -> None:
        self.page = page
        self.asked: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda told: self.complaints.append(told.text) if told.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    @property
    def elsewhere(self) -> list[str]:
        """What did not come from files."""
        return [url for url in self.asked if not url.startswith(("file:", "data:", "blob:", "about:"))]


def test_from_files_the_search_finds_a_page_and_a_heading(browser: "Browser", site: Path) -> None:
    reader = Reader(browser.new_page())
    reader.page.goto((site / "docs" / "sql.html").as_uri())
    reader.page.keyboard.press("/")
    field = reader.page.locator("input[aria-label=Search]")
    field.press_sequentially("greylisting")
    reader.page.locator("a[role=option][href*='docs/why.html'][href$='#honest-limits']").click()
    reader.page.wait_for_url("**/docs/why.html*")
    assert (reader.elsewhere, reader.complaints) == ([], [])
    reader.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_light_or_dark_as_the_system_is_and_shows_its_pictures(
    browser: "Browser", site: Path, scheme: str
) -> None:
    context = browser.new_context(color_scheme=scheme)
    reader = Reader(context.new_page())
    reader.page.goto((site / "index.html").as_uri())
    reader.page.wait_for_load_state("networkidle")
    colour = reader.page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, colour.partition("(")[2].rstrip(")").split(",")[:3]))
    assert (brightness > 3 * 128) == (scheme == "light"), colour
    pictures = reader.page.evaluate("[...document.querySelectorAll('article img')].map(i => i.naturalWidth)")
    assert len(pictures) >= 2
    assert all(pictures)
    assert (reader.elsewhere, reader.complaints) == ([], [])
    context.close()
