"""Builds the documentation's site: `make docs`, or `python docs/build_site.py FOLDER`.

The site has the repository's folders, so that a link between two pages is the same on GitHub and in the site.
docs/README.md is the index: its headings and questions are the navigation. What a page links to and is no page, such as
code, leads to the repository.

It fails, and says all that is wrong, where a link or an anchor leads nowhere, a page is in no index, the generator
warns, or a browser would fetch something from elsewhere.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from posixpath import dirname, join, normpath
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[1]

#: Where the code lies that pages link to.
REPOSITORY = "https://github.com/duepost/duepost"

#: The first page, and the index of all others.
HOME = "README.md"
INDEX = "docs/README.md"

#: The generator's configuration, but for the navigation, which is made of the index.
CONFIGURATION = "docs/site.toml"

PICTURES = frozenset({".png", ".svg"})

#: A link of Markdown, or a picture: its target, and the anchor.
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")

#: A row of an index: a page, and its question.
ROW = re.compile(r"^\| \[[^\]]*\]\(([^)\s]+)\) \| (.+?) \|", re.MULTILINE)

#: What the generator has fetched from elsewhere, so that search works where the site is opened from files; and ours.
FOREIGN_SHIM = '<script src="https://unpkg.com/iframe-worker/shim" type="text/javascript"></script>'
SHIM = "file_worker.js"

#: What a style sheet or a picture has fetched.
STYLE_FETCH = re.compile(r"""url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)""")

#: Attributes that a browser fetches at once. Of links, only those that do so: an `href` of `a` is followed by people.
FETCHED = {
    "script": "src", "img": "src", "source": "src", "iframe": "src", "video": "src", "audio": "src", "embed": "src",
    "track": "src", "input": "src", "object": "data", "image": "href", "use": "href",
}  # fmt: skip

#: What a `link` is that makes a browser do nothing.
IDLE_LINKS = frozenset({"canonical", "next", "prev", "alternate", "edit", "author", "license", "help"})


class Broken(Exception):
    """The site cannot be built: a line for each thing that is wrong."""


@dataclass(frozen=True)
class Entry:
    """A place in the navigation: a page, as a path of the repository, under a title; and what stands below it."""

    title: str
    page: str
    below: tuple["Entry", ...] = ()


#: Entries by the headings that they stand under.
Navigation = Mapping[str, Sequence[Entry]]


def main() -> None:
    """Builds the site of this checkout; what is wrong is on stderr, with status 1."""
    try:
        site = build(ROOT, Path(sys.argv[1]))
    except Broken as error:
        raise SystemExit(f"The site was not built:\n{error}") from None
    print(f"Built: {site / 'index.html'}")


def build(root: Path, folder: Path) -> Path:
    """Builds the site of a checkout into the folder `site` of `folder`, which is emptied first; returns where.

    Raises:
        Broken: something is wrong with the pages, or with what was made of them.
    """
    shutil.rmtree(folder, ignore_errors=True)
    index = navigation(root)
    pages = [each.page for entries in index.values() for entry in entries for each in (entry, *entry.below)]
    fail_on([f"{page}: stands in no index" for page in unlisted(root, pages)])
    fail_on([fault for page in pages for fault in stage(root, page, pages, folder / "pages")])
    text = (root / CONFIGURATION).read_text(encoding="utf-8")
    (folder / "site.toml").write_text(text.replace("nav = []", f"nav = {as_toml(index)}"), encoding="utf-8")
    generate(folder)
    use_own_shim(folder / "site")
    fail_on(list(faults(folder / "site")))
    return folder / "site"


def fail_on(wrong: Sequence[str]) -> None:
    """Fails where anything is wrong.

    Raises:
        Broken: it is.
    """
    if wrong:
        raise Broken("\n".join(wrong))


def navigation(root: Path) -> Navigation:
    """What the index names: a section for each heading, in its order, after the first page."""
    sections = re.split(r"^## (.+)$", (root / INDEX).read_text(encoding="utf-8"), flags=re.MULTILINE)
    first: dict[str, Sequence[Entry]] = {"": [Entry("Duepost", HOME), Entry("All questions", INDEX)]}
    named = {
        heading: [
            entry(root, normpath(join(dirname(INDEX), target)), plain(question))
            for target, question in ROW.findall(text)
            if normpath(join(dirname(INDEX), target)) != HOME
        ]
        for heading, text in zip(sections[1::2], sections[2::2], strict=True)
    }
    return {**first, **{heading: entries for heading, entries in named.items() if entries}}


def entry(root: Path, page: str, title: str) -> Entry:
    """A page; the index of a folder of docs/ has that folder's other pages below it."""
    if not page.startswith("docs/") or not page.endswith("/README.md"):
        return Entry(title, page)
    others = sorted(path for path in (root / page).parent.glob("*.md") if path.name != "README.md")
    below = (Entry(heading(path), path.relative_to(root).as_posix()) for path in others)
    return Entry(title, page, tuple(below))


def heading(page: Path) -> str:
    """A page's first heading."""
    return plain(page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# "))


def plain(text: str) -> str:
    """Words without the marks of Markdown."""
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("`", "")


def unlisted(root: Path, pages: Sequence[str]) -> list[str]:
    """Pages of docs/ that the navigation does not have."""
    return sorted({path.relative_to(root).as_posix() for path in (root / "docs").rglob("*.md")} - set(pages))


def stage(root: Path, page: str, pages: Sequence[str], folder: Path) -> list[str]:
    """Puts a page, as the generator wants it, and its pictures into a folder; returns what is wrong with its links."""
    wrong: list[str] = []

    def led(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        if not target or urlsplit(target).scheme:
            return match[0]
        goal = normpath(join(dirname(page), target))
        if not (root / goal).exists():
            wrong.append(f"{page}: leads nowhere: {target}")
        elif Path(goal).suffix in PICTURES:
            copy(root / goal, folder / goal)
        elif goal not in pages:
            kind = "tree" if (root / goal).is_dir() else "blob"
            return f"]({REPOSITORY}/{kind}/main/{goal}{anchor})"
        return match[0]

    lines = []
    fence = ""
    for line in (root / page).read_text(encoding="utf-8").splitlines():
        mark = re.match(r"\s*(```+)(\w*)", line)
        if mark:
            # GitHub takes the first word behind the mark for the language; the generator takes no more than that.
            lines.append(line if fence else mark[0])
            fence = "" if fence else mark[1]
        else:
            lines.append(line if fence else outside_code(led, line))
    copy(root / page, folder / page)
    (folder / page).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return wrong


def outside_code(led: Callable[[re.Match[str]], str], line: str) -> str:
    """A line with its links led; what stands between backticks is left as it is."""
    parts = re.split(r"(`+[^`]*`+)", line)
    # A link's text may be code: what decides is where its target stands.
    return "".join(part if number % 2 else LINK.sub(led, part) for number, part in enumerate(parts))


def copy(source: Path, target: Path) -> None:
    """Copies a file into a folder that may not be there yet."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def as_toml(index: Navigation) -> str:
    """The navigation, as the generator's configuration has it: JSON's strings are TOML's."""

    def item(title: str, value: str) -> str:
        return f"{{ {json.dumps(title, ensure_ascii=False)} = {value} }}"

    def tree(entry: Entry) -> str:
        page = json.dumps(entry.page)
        if not entry.below:
            return item(entry.title, page)
        return item(entry.title, f"[{', '.join([page, *map(tree, entry.below)])}]")

    return (
        "["
        + ",\n  ".join(
            ",\n  ".join(map(tree, entries)) if not heading else item(heading, f"[{', '.join(map(tree, entries))}]")
            for heading, entries in index.items()
        )
        + "]"
    )


def generate(folder: Path) -> None:
    """Runs the generator.

    Raises:
        Broken: it fails, or warns.
    """
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", "site.toml"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0 or "warning" in done.stdout.lower():
        raise Broken(done.stdout)


def use_own_shim(site: Path) -> None:
    """Has a script of ours loaded instead of the generator's, which comes from elsewhere."""
    copy(Path(__file__).with_name(SHIM), site / "assets" / SHIM)
    for path in site.rglob("*.html"):
        up = "../" * (len(path.relative_to(site).parts) - 1)
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(FOREIGN_SHIM, f'<script src="{up}assets/{SHIM}"></script>'), encoding="utf-8")
    # It is for a server that has the site at its root, and this one is read from files.
    (site / "404.html").unlink(missing_ok=True)


class Page(HTMLParser):
    """What a page of the site has: anchors, links, and what a browser fetches."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self._in_style = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Takes an element's attributes."""
        found = {name.removeprefix("xlink:"): value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        self._in_style = tag == "style"
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "link" and not IDLE_LINKS & set(found.get("rel", "").split()):
            self.fetched.append(found.get("href", ""))
        if FETCHED.get(tag) in found:
            self.fetched.append(found[FETCHED[tag]])
        self.fetched += [each.split()[0] for each in found.get("srcset", "").split(",") if each.strip()]
        self.fetched += [found[name] for name in ("poster", "background") if name in found]
        self.fetched += fetched_by_style(found.get("style", ""))

    def handle_data(self, data: str) -> None:
        """Takes text: that of a style sheet fetches, too."""
        if self._in_style:
            self.fetched += fetched_by_style(data)


def fetched_by_style(text: str) -> list[str]:
    """What a style sheet has a browser fetch."""
    return [first or second for first, second in STYLE_FETCH.findall(text)]


def faults(site: Path) -> Iterator[str]:
    """What is wrong with a site that was built: a line for each dead link, and for each thing from elsewhere."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        for url in page.links:
            yield from (f"{path.relative_to(site)}: {fault}" for fault in dead(url, path, pages))
    for path, url in fetched(site, pages):
        parts = urlsplit(url)
        if parts.netloc or parts.scheme not in {"", "data"}:
            yield f"{path.relative_to(site)}: comes from elsewhere: {url}"
        elif parts.path and not parts.scheme and not (path.parent / unquote(parts.path)).exists():
            yield f"{path.relative_to(site)}: is not there: {url}"


def fetched(site: Path, pages: Mapping[Path, Page]) -> Iterator[tuple[Path, str]]:
    """What a browser fetches for each file of a site."""
    for path, page in pages.items():
        yield from ((path, url) for url in page.fetched)
    for path in sorted(site.rglob("*.svg")):
        yield from ((path, url) for url in Page(path.read_text(encoding="utf-8")).fetched)
    for path in sorted(site.rglob("*.css")):
        yield from ((path, url) for url in fetched_by_style(path.read_text(encoding="utf-8")))


def dead(url: str, path: Path, pages: Mapping[Path, Page]) -> Iterator[str]:
    """Why a link of the page at `path` leads nowhere; those to other sites are not tried."""
    parts = urlsplit(url)
    if parts.scheme or parts.netloc:
        return
    goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if goal.is_dir():
        goal /= "index.html"
    if not goal.exists():
        yield f"leads nowhere: {url}"
    elif parts.fragment and goal in pages and unquote(parts.fragment) not in pages[goal].anchors:
        yield f"no such heading: {url}"


if __name__ == "__main__":
    main()
