"""What is made of an email's HTML so that mail clients show it as it is meant.

Styles are put on the elements, and text is made of HTML, by a process of its own (`html_program.py`): what these
libraries do with hostile HTML can be neither interrupted nor survived in the process that sends. The rest, its
language and what is shown behind the subject, is put into a start tag or behind one.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from pathlib import Path
from typing import Final, NamedTuple

from markupsafe import escape

from actors.content.child_process import ChildProcess, popped
from actors.content.filters import direction_of, language_of
from actors.content.libraries import check_installed
from models.errors import DuepostError

_PROGRAM: Final = Path(__file__).with_name("html_program.py")

#: What the process imports, and the extra that brings it.
LIBRARIES: Final = ("css_inline", "inscriptis", "lxml")
EXTRA: Final = "html"

#: Seconds within which a process has to begin; who has less does not start one.
START: Final = 60.0
LEAST_TO_START: Final = 1.0

#: Processes that are kept while there is nothing to do; more run where more threads render at once.
KEPT: Final = 2

#: Bytes of an answer: of a body and its text, in JSON, where each character may take six.
LONGEST_ANSWER: Final = 128 * 2**20

#: What a start tag holds up to its end: in quotation marks it may be a `>`.
_REST = r"""(?=[\s/>])(?:[^<>"']|"[^"<]*"|'[^'<]*')*"""
_STYLE = re.compile(r"<!--.*?(?:-->|\Z)|(?P<found><style[\s>])", re.DOTALL | re.IGNORECASE)
_HTML = re.compile(rf"<!--.*?(?:-->|\Z)|(?P<found><html{_REST})>", re.DOTALL | re.IGNORECASE)
_BODY = re.compile(rf"<!--.*?(?:-->|\Z)|(?P<found><body{_REST})>", re.DOTALL | re.IGNORECASE)
_BEFORE_BODY = tuple(
    re.compile(rf"<!--.*?(?:-->|\Z)|(?P<found>{tag})", re.DOTALL | re.IGNORECASE)
    for tag in (rf"<body{_REST}>", r"</head\s*>", rf"<html{_REST}>", r"<!doctype[^<>]*>")
)
_SAYS_LANGUAGE = re.compile(r"""\s(?:xml:)?lang\s*=""", re.IGNORECASE)
_SAYS_DIRECTION = re.compile(r"""\sdir\s*=""", re.IGNORECASE)

#: Not shown by any client; by Outlook, which knows no `display`, because of `mso-hide`.
_HIDDEN: Final = "display:none;max-height:0;overflow:hidden;mso-hide:all"

#: White space that clients do not fold up: else the email's own first words are shown behind a short preview.
_FILLER: Final = "\n".join(["&#847;&zwnj;&nbsp;" * 4] * 20)


class BadHtml(Exception):
    """HTML cannot be prepared. Nothing of it is in the message."""


class HtmlTookTooLong(Exception):
    """There was not time enough."""


class HtmlFailed(DuepostError):
    """What prepares HTML is of no use here; the message says what is missing."""


class Prepared(NamedTuple):
    """HTML with its styles on the elements; and its text, where that was asked for and there is any."""

    html: str
    text: str | None


class HtmlPreparer:
    """Prepares HTML, in processes that it starts as they are needed. Any thread may call it.

    Args:
        timeout: seconds that the HTML of one email may take at the most.
        longest: characters of HTML that may come of it, and of its text.
    """

    def __init__(self, timeout: float, longest: int) -> None:
        self._timeout = timeout
        self._longest = longest
        #: Those that wait; and those whose answer came too late for whoever asked. Single operations need no lock.
        self._idle: deque[_Process] = deque()
        self._late: deque[_Process] = deque()
        self._is_closed = False
        weakref.finalize(self, _end, self._idle, self._late)

    def check(self) -> None:
        """Starts a process, so that the first email finds one.

        Raises:
            MissingLibrary: what it needs is not installed.
            HtmlFailed: it does not begin.
        """
        check_libraries()
        try:
            self._keep(self._take(time.monotonic() + START))
        except (BadHtml, HtmlTookTooLong):
            raise HtmlFailed(
                f"DUEPOST_PREPARE_HTML: {sys.executable} -P {_PROGRAM} does not begin; run it to see why"
            ) from None

    def prepare(self, html: str, until: float, *, with_text: bool) -> Prepared | None:
        """Puts styles on elements, and makes text of HTML.

        Args:
            html: as it was rendered; it stays as it is where it has no styles.
            until: by the monotonic clock.
            with_text: whether text is wanted.

        Returns:
            what came of it; None where there was nothing to do.

        Raises:
            HtmlTookTooLong: it takes longer.
            BadHtml: it cannot be done.
        """
        has_styles = _found(_STYLE, html) is not None
        if not has_styles and not with_text:
            return None
        process = self._take(until)
        try:
            request = {"html": html, "styles": has_styles, "text": with_text}
            answer = process.ask({**request, "longest": self._longest, "seconds": self._timeout}, until)
        except HtmlTookTooLong:
            if process.is_asked:
                self._late.append(process)
            else:
                process.kill()
            raise
        except BaseException:
            process.kill()
            raise
        self._keep(process)
        if "error" in answer:
            raise BadHtml(str(answer["error"]))
        text = answer["text"]
        return Prepared(str(answer["html"]), None if text is None else str(text))

    def close(self) -> None:
        """Ends all processes."""
        self._is_closed = True
        _end(self._idle, self._late)

    def _take(self, until: float) -> "_Process":
        """Returns a process that waits, or a new one where there is time enough for that."""
        for _ in range(len(self._late)):
            if (late := popped(self._late)) is not None:
                self._look_after(late)
        while (process := popped(self._idle)) is not None:
            if process.is_alive():
                return process
            process.kill()
        if until - time.monotonic() < LEAST_TO_START:
            raise HtmlTookTooLong
        return _Process.started(until)

    def _look_after(self, late: "_Process") -> None:
        """Keeps one that was waited for in vain, once it has answered; ends it where it never will."""
        if late.has_answered():
            self._keep(late)
        elif late.is_alive():
            self._late.appendleft(late)
        else:
            late.kill()

    def _keep(self, process: "_Process") -> None:
        if self._is_closed or len(self._idle) >= KEPT:
            process.kill()
        else:
            self._idle.append(process)


def _end(*processes: "deque[_Process]") -> None:
    for each in processes:
        while (process := popped(each)) is not None:
            process.kill()


def check_libraries() -> None:
    """Makes sure that what prepares HTML is installed; loads nothing of it.

    Raises:
        MissingLibrary: it is not.
    """
    check_installed(LIBRARIES, needed_for="DUEPOST_PREPARE_HTML:", extra=EXTRA)


class _Process(ChildProcess):
    """A process of `html_program.py`, and what came of its answer."""

    def __init__(self) -> None:
        super().__init__(_PROGRAM)
        self._received = bytearray()
        #: Whether it has a whole request, which it will answer, or end over.
        self.is_asked = False

    @classmethod
    def started(cls, until: float) -> "_Process":
        process = cls()
        try:
            process._answer(until)
        except BaseException:
            process.kill()
            raise
        return process

    def has_answered(self) -> bool:
        """Whether the answer that was waited for in vain has come; it is dropped."""
        try:
            self._answer(time.monotonic())
        except (HtmlTookTooLong, BadHtml):
            return False
        return True

    def ask(self, request: dict[str, object], until: float) -> dict[str, object]:
        """Returns the answer to a request.

        Raises:
            HtmlTookTooLong: it has not come in time; it may yet come.
            BadHtml: the process has ended over it, or the answer is too long.
        """
        self._send(json.dumps(request).encode("ascii"), until)
        self.is_asked = True
        return self._answer(until)

    def _answer(self, until: float) -> dict[str, object]:
        while True:
            length = int.from_bytes(self._received[:4], "big")
            if length > LONGEST_ANSWER:
                raise BadHtml("more comes of it than an email may hold")
            if len(self._received) >= 4 + length and len(self._received) >= 4:
                answer: dict[str, object] = json.loads(self._received[4 : 4 + length])
                self._received.clear()
                self.is_asked = False
                return answer
            self._wait(self._output, until, is_writing=False)
            try:
                data = os.read(self._output.fileno(), 2**20)
            except BlockingIOError:
                continue
            if not data:
                raise self._why_ended()
            self._received += data

    def _too_late(self) -> HtmlTookTooLong:
        return HtmlTookTooLong()

    def _why_ended(self) -> BadHtml | HtmlTookTooLong:
        """What is to be said of a process that has ended over its work."""
        try:
            status = self._process.wait(1)
        except subprocess.TimeoutExpired:
            status = 0
        if status == -signal.SIGALRM:
            return HtmlTookTooLong()
        return BadHtml("it is nested too deeply, or its styles make too much of it: the process ended over it")


def with_language(html: str, tag: str) -> str:
    """Returns HTML that says its language and the direction of its text, where it does not say so itself.

    Both stand on `<html>`, and the direction on `<body>` too, as some clients leave `<html>` out; a piece of HTML that
    has neither gets an element around it.

    Args:
        html: the HTML.
        tag: the language that it is written in, such as `de-AT` or `de_AT`.
    """
    language, direction = language_of(tag), direction_of(tag)
    root, body = _found(_HTML, html), _found(_BODY, html)
    said = f"{root['found'] if root else ''} {body['found'] if body else ''}"
    lang = "" if _SAYS_LANGUAGE.search(said) else f' lang="{language}"'
    dir_ = "" if _SAYS_DIRECTION.search(said) else f' dir="{direction}"'
    if root is None and body is None:
        return f"<div{lang}{dir_}>\n{html}\n</div>" if lang or dir_ else html
    if body is not None:
        html = _behind(html, body.end("found"), dir_ if root is not None else lang + dir_)
        root = _found(_HTML, html)
    return html if root is None else _behind(html, root.end("found"), lang + dir_)


def _behind(html: str, position: int, attributes: str) -> str:
    return f"{html[:position]}{attributes}{html[position:]}"


def with_preview(html: str, text: str) -> str:
    """Returns HTML that begins with what clients show behind the subject in a list of emails, and nowhere else.

    Args:
        html: the HTML.
        text: plain text.
    """
    hidden = f'<div style="{_HIDDEN}">{escape(text)}\n{_FILLER}</div>\n'
    for before in _BEFORE_BODY:
        found = _found(before, html)
        if found is not None:
            return f"{html[: found.end()]}\n{hidden}{html[found.end() :]}"
    return hidden + html


def _found(pattern: re.Pattern[str], html: str) -> re.Match[str] | None:
    """Where it stands outside of comments: what only Outlook reads is in one."""
    return next((each for each in pattern.finditer(html) if each["found"] is not None), None)
