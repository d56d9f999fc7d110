"""The program of a process of its own that works on the HTML of emails: `python -P html_program.py`.

It imports nothing of Duepost, as it is run by its path. It reads requests and writes answers, each a length of four
bytes, the highest first, and JSON (`Request`): the answer is `{"html": …, "text": …}` or `{"error": …}`. HTML may be
whatever somebody made of it: one that is nested twenty thousand deep ends this process, and that is what it is for.
Once it has begun it can open no file and no connection; its memory is bounded, and the time for each request.
"""

import json
import os
import re
import resource
import signal
import sys
import textwrap
from collections.abc import Iterator
from typing import Any, BinaryIO, Final, TypedDict

from css_inline import CSSInliner
from inscriptis import Inscriptis
from inscriptis.css_profiles import CSS_PROFILES
from inscriptis.model.config import ParserConfig
from lxml.etree import ParserError
from lxml.html import HTMLParser, document_fromstring

#: Bytes of memory for data: HTML of 10 MiB takes a twentieth of it.
MEMORY: Final = 512 * 2**20

#: Characters of a table's cell up to which it stands beside its neighbours: what is longer is a part of a layout.
LONGEST_CELL: Final = 60

# What clients other than Outlook show, marked in a way of which a parser makes a comment.
_REVEALED = re.compile(r"<!--.*?(?:-->|\Z)|<!\[(?P<said>if\b[^\]<>]*|endif)\]>", re.DOTALL | re.IGNORECASE)
_DOCTYPE = re.compile(r"\s*(?P<doctype><!doctype[^<>]*>)", re.IGNORECASE)
_HIDDEN = re.compile(r"(?:^|;)\s*display\s*:\s*none", re.IGNORECASE)
_WRITTEN_DOCTYPE = "<!DOCTYPE html>"

# Rules stay in their `<style>`, too: those for small screens, and for links that are pointed at, fit no element.
_INLINER: Final = CSSInliner(keep_style_tags=True, keep_link_tags=True, load_remote_stylesheets=False)
_READING: Final = ParserConfig(css=CSS_PROFILES["strict"].copy(), display_links=False, display_images=False)

_ROWS: Final = frozenset({"thead", "tbody", "tfoot", "tr"})
_CELLS: Final = frozenset({"td", "th"})
_BLOCKS: Final = frozenset({"p", "div", "center", "h1", "h2", "h3", "h4", "h5", "h6"})


def with_styles_inside(html: str) -> str:
    """Returns HTML with the rules of its `<style>` on the elements themselves, and its doctype as it was.

    Raises:
        InlineError: the styles cannot be read.
    """
    found = _DOCTYPE.match(html)
    inlined: str = _INLINER.inline(_REVEALED.sub(_valid, html))
    if found and inlined.startswith(_WRITTEN_DOCTYPE):
        # Without its public name a browser, and Apple's Mail, lays tables out in another way.
        inlined = found["doctype"] + inlined.removeprefix(_WRITTEN_DOCTYPE)
    return inlined


def _valid(found: re.Match[str]) -> str:
    """A conditional that shows something, as comments that mean the same (Outlook reads both)."""
    said = found["said"]
    if said is None:
        return found[0]
    return "<!--<![endif]-->" if said.lower() == "endif" else f"<!--[{said}]><!-->"


def text_of(html: str) -> str | None:
    """Returns the text of HTML as a person reads it without a picture; None where there is none."""
    try:
        # As bytes, since what stands in an XML declaration or a <meta> is no longer true of it.
        parser = HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True)
        tree = document_fromstring(html.replace("\0", "").encode(), parser=parser)
    except ParserError:
        return None
    for element in list(tree.iter("img", "area")):
        _say(element, element.get("alt") or "")
    for link in list(tree.iter("a")):
        _tell_target(link)
    for table in list(tree.iter("table")):
        (_keep_columns if _has_columns(table) else _stack)(table)
    lines = [line.rstrip() for line in Inscriptis(tree, _READING).get_text().splitlines()]
    text = re.sub(r"\n{3,}", "\n\n", textwrap.dedent("\n".join(lines))).strip("\n")
    return f"{text}\n" if text.strip() else None


def _say(element: Any, text: str) -> None:
    """Makes text of a picture."""
    element.tag = "span"
    element.text = " ".join(text.split())


def _tell_target(link: Any) -> None:
    """Adds the URL behind a link, unless that is what it says, or leads nowhere."""
    target = (link.get("href") or "").strip()
    said = " ".join("".join(link.itertext()).split())
    if not re.match(r"(?:https?|ftp|tel|sms|mailto|webcal):", target, re.IGNORECASE):
        return
    if _bare(said) == _bare(target):
        return
    target = re.sub(r"\s+", "%20", target.removeprefix("mailto:"))
    mark = link.makeelement("span")
    mark.text = f" <{target}>" if said else f"<{target}>"
    link.append(mark)


def _bare(url: str) -> str:
    """A URL as people write it: without its scheme, and a slash at the end."""
    return re.sub(r"^(?:https?://|mailto:|tel:)", "", url.strip(), flags=re.IGNORECASE).rstrip("/").lower()


def _has_columns(table: Any) -> bool:
    """Whether a table is one of data: rows of short cells, none of which holds another table."""
    if next(table.iterdescendants("table"), None) is not None:
        return False
    widths = []
    for row in table.iter("tr"):
        cells = [" ".join("".join(cell.itertext()).split()) for cell in row if cell.tag in _CELLS]
        if any(len(cell) > LONGEST_CELL for cell in cells):
            return False
        widths.append(sum(1 for cell in cells if cell))
    return max(widths, default=0) > 1


def _keep_columns(table: Any) -> None:
    """Makes each cell a line: blocks in it would tear its row apart."""
    for element in list(table.iterdescendants(*_BLOCKS)):
        element.tag = "span"
        _forget_style(element)


def _stack(table: Any) -> None:
    """Makes blocks of a table that lays something out, one below the other."""
    waiting = [table]
    while waiting:
        element = waiting.pop()
        # Tables inside are looked at by themselves.
        waiting += [each for each in element if each.tag in _ROWS or each.tag in _CELLS]
        element.tag = "div"
        _forget_style(element)


def _forget_style(element: Any) -> None:
    """Keeps of a style whether the element is shown at all."""
    if _HIDDEN.search(element.attrib.pop("style", "")):
        element.set("style", "display:none")


class Request(TypedDict):
    """What is to be done.

    Attributes:
        html: with what.
        styles: whether it has any, which are to be put on its elements.
        text: whether its text is wanted.
        longest: characters of each that are allowed.
        seconds: after which this process ends over it.
    """

    html: str
    styles: bool
    text: bool
    longest: int
    seconds: float


def answer(request: Request) -> dict[str, object]:
    """What a request asks for, or what was wrong, with nothing of the HTML in it."""
    html, text, doing = request["html"], None, "its styles cannot be put on its elements"
    try:
        if request["styles"]:
            html = with_styles_inside(html)
        doing = "its text cannot be read"
        if request["text"]:
            text = text_of(html)
    except Exception as error:  # noqa: BLE001 - whatever HTML does, the next one is another
        return {"error": f"{doing}: {type(error).__name__}"}
    if max(len(html), len(text or "")) > request["longest"]:
        return {"error": f"with styles on its elements it has more than {request['longest']:,} characters"}
    return {"html": html, "text": text}


def confine() -> None:
    """Takes from this process what it has no need for: files, connections, endless memory."""
    # What is loaded late is loaded now.
    sample = "<style>p{color:red}</style><ul><li><a href='https://x.example/'>&#228;</a></ul><table><td>1<td>2</table>"
    answer({"html": sample, "styles": True, "text": True, "longest": 1_000, "seconds": 1})
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    memory = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    # A limit below what is open is no error: nothing more can be opened.
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    # Its default ends the process whatever that is doing, which no handler of Python's does.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def requests(stream: BinaryIO) -> Iterator[Request]:
    """Yields what is asked for, until nobody asks any more."""
    while len(length := stream.read(4)) == 4:
        yield json.loads(stream.read(int.from_bytes(length, "big")))


def main() -> None:
    """Answers until its input ends. It begins with an empty answer: it is ready."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # Whatever a library prints is no answer.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    confine()
    _write(output, {})
    for request in requests(sys.stdin.buffer):
        signal.setitimer(signal.ITIMER_REAL, request["seconds"])
        answered = answer(request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(output, answered)


def _write(stream: BinaryIO, said: dict[str, object]) -> None:
    data = json.dumps(said).encode("ascii")
    stream.write(len(data).to_bytes(4, "big") + data)
    stream.flush()


if __name__ == "__main__":
    main()
