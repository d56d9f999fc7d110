"""The documentation's site: it has every page, leads where GitHub leads, and fetches nothing from elsewhere."""

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from docs.build_site import HOME, INDEX, REPOSITORY, ROOT, Broken, build, navigation

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "deploy/README.md")),
    ]
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of this checkout."""
    return build(ROOT, tmp_path_factory.mktemp("site") / "made")


def made_of(page: str) -> str:
    """A page's file in the site."""
    return re.sub(r"(^|/)README\.md$", r"\1index.md", page).removesuffix(".md") + ".html"


class Elements(HTMLParser):
    """Counts what a page's text is made of, and keeps its words and what it links to."""

    COUNTED = frozenset({"h1", "h2", "h3", "h4", "li", "ol", "ul", "pre", "tr", "td", "th", "img", "strong", "em"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag in self.COUNTED:
            self.counted[tag] += 1
        if tag == "a" and found.get("class") != "headerlink":
            self.links.append((found.get("href") or "").removeprefix("./"))


def article(site: Path, page: str) -> str:
    """A page's text in the site, without what is around it."""
    text = (site / made_of(page)).read_text(encoding="utf-8")
    found = re.search(r"<article\b.*?</article>", text, re.DOTALL)
    assert found is not None, page
    return found[0]


def test_the_site_has_every_page_and_the_navigation_too(site: Path) -> None:
    first = Elements((site / made_of(HOME)).read_text(encoding="utf-8"))
    for page in PAGES:
        assert (site / made_of(page)).exists(), page
        assert made_of(page) in first.links or page == HOME, page


def test_a_page_in_the_navigation_stands_under_its_question(site: Path) -> None:
    titles = {each.page: each.title for entries in navigation(ROOT).values() for each in entries}
    for page in (ROOT / "docs").glob("*.md"):
        name = page.relative_to(ROOT).as_posix()
        assert name == INDEX or titles[name].endswith(("?", "?)")), name


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_made_of_the_same_things_as_on_github(site: Path, page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    on_github = Elements(MarkdownIt("commonmark").enable("table").render(text))
    here = Elements(article(site, page))
    assert here.counted == on_github.counted
    assert len(here.links) >= len(on_github.links)


def test_code_that_a_page_links_to_is_the_repositorys(site: Path) -> None:
    assert f"{REPOSITORY}/blob/main/LICENSE" in Elements(article(site, HOME)).links


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    """By a judge of its own: whatever stands in a src, in a style sheet, or in a link that is no `a`."""
    remote = re.compile(
        r"""(?:src|srcset|poster|data)\s*=\s*["']?\s*(?:https?:)?//|url\(\s*["']?(?:https?:)?//|@import"""
    )
    links = re.compile(r"<(?:link|image|use)\b[^>]*href=[\"']?(?:https?:)?//")
    for path in [*site.rglob("*.html"), *site.rglob("*.svg"), *site.rglob("*.css")]:
        text = path.read_text(encoding="utf-8")
        assert remote.search(re.sub(r"<(pre|code)\b.*?</\1>", "", text, flags=re.DOTALL)) is None, path
        assert links.search(text) is None, path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout that is well."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (tmp_path / "README.md").write_text("# Small\n\n[All](docs/README.md)\n")
    (docs / "README.md").write_text(
        "# Documentation\n\n## Begin\n\n| a | b |\n| --- | --- |\n| [a.md](a.md) | What is it? |\n"
    )
    (docs / "a.md").write_text(
        "# A\n\n## Some words\n\n[there](#some-words), [picture.svg](picture.svg)\n\n![](picture.svg)\n"
    )
    (docs / "picture.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (docs / "site.toml").write_text((ROOT / "docs/site.toml").read_text(encoding="utf-8"))
    return tmp_path


def test_a_small_site_is_built(checkout: Path) -> None:
    assert (build(checkout, checkout / "build") / "docs" / "a.html").exists()


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("docs/a.md", "# A\n\n[b](b.md)\n", "docs/a.md: leads nowhere: b.md"),
        ("docs/a.md", "# A\n\n[b](README.md#nothing)\n", "anchor does not exist"),
        ("docs/a.md", "# A\n\n![b](b.png)\n", "docs/a.md: leads nowhere: b.png"),
        ("docs/b.md", "# B\n", "docs/b.md: stands in no index"),
        ("docs/a.md", "# A\n\n![b](https://example.com/b.png)\n", "comes from elsewhere: https://example.com/b.png"),
        (
            "docs/a.md",
            "# A\n\n<script src='//example.com/b.js'></script>\n",
            "comes from elsewhere: //example.com/b.js",
        ),
        ("docs/a.md", "# A\n\n<p style='background: url(http://example.com/b)'></p>\n", "http://example.com/b"),
        (
            "docs/picture.svg",
            "<svg><style>@import 'https://example.com/f.css';</style></svg>",
            "https://example.com/f.css",
        ),
        ("docs/picture.svg", "<svg><image xlink:href='https://example.com/i'/></svg>", "https://example.com/i"),
    ],
)
def test_a_site_that_is_not_well_is_not_built(checkout: Path, file: str, text: str, complaint: str) -> None:
    (checkout / file).write_text(text)
    with pytest.raises(Broken, match=re.escape(complaint)):
        build(checkout, checkout / "build")
