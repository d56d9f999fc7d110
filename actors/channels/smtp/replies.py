"""Replies of an SMTP relay: bytes in, whole replies out (RFC 5321 section 4.2)."""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple

from actors.ruling import one_line

#: Bytes of one reply line with its line end. RFC 5321 section 4.5.3.1.5 asks for 512; real relays say more.
MAX_LINE: Final = 4096

#: Bytes of one whole reply with all its lines.
MAX_REPLY: Final = 64 * 1024

_LINE = re.compile(rb"([2-5][0-9]{2})(?:([ -])(.*))?", re.DOTALL)

#: At the start of a line (RFC 2034), also as `#5.1.1` or `5.1.1:`; or at its end as qmail writes it, `(#5.1.1)`.
_ENHANCED = re.compile(
    r"\s*#?([245]\.[0-9]{1,3}\.[0-9]{1,3})(?=[\s:;,]|$)|.*\(#([245]\.[0-9]{1,3}\.[0-9]{1,3})\)[\s.]*$", re.DOTALL
)


class MalformedReply(Exception):
    """What the relay said is no SMTP reply, or is longer than any reply may be."""


class Reply(NamedTuple):
    """One whole reply.

    Attributes:
        code: 200 to 599.
        lines: the text of each line, after the code.
        shown: the same without our login, for people; None where it is the same.
    """

    code: int
    lines: tuple[str, ...]
    shown: tuple[str, ...] | None = None

    @property
    def text(self) -> str:
        """The lines joined to one for people, the enhanced code left in, cut and cleaned by `one_line`."""
        return one_line(" ".join(line for line in self.shown or self.lines if line))

    @property
    def enhanced_code(self) -> str | None:
        """The first enhanced status code (RFC 3463) of any line, if its class is that of the code."""
        for line in self.lines:
            found = _ENHANCED.match(line)
            code = found and (found[1] or found[2])
            if code and code[0] == str(self.code)[0]:
                return code
        return None

    @property
    def positive(self) -> bool:
        """2xx: done."""
        return 200 <= self.code <= 299

    @property
    def intermediate(self) -> bool:
        """3xx: go on."""
        return 300 <= self.code <= 399


@lru_cache(maxsize=1_000)
def _read(line: bytes) -> tuple[int, bool, str]:
    """The code, whether it is the reply's last line, and the text. Relays repeat themselves."""
    found = _LINE.fullmatch(line)
    if found is None:
        raise MalformedReply(f"not a reply: {one_line(line[:80].decode('ascii', 'replace'))}")
    return int(found[1]), found[2] != b"-", (found[3] or b"").decode("utf-8", "replace")


class ReplyParser:
    """Takes bytes as they arrive, in pieces of any size, and gives replies as they become whole.

    Args:
        hide: takes out of a text what nobody is to see.
    """

    def __init__(self, hide: Callable[[str], str] | None = None) -> None:
        self._hide = hide
        self._buffer = bytearray()
        self._code: int | None = None
        self._lines: list[str] = []
        self._size = 0
        self._searched = 0
        self._error: str | None = None

    @property
    def pending(self) -> bool:
        """Whether there are bytes that no reply given so far has used up."""
        return bool(self._buffer or self._lines or self._error)

    def feed(self, data: bytes) -> None:
        """Takes what the relay sent."""
        self._buffer += data

    def next_reply(self) -> Reply | None:
        """Gives the next reply, None while it is not whole yet.

        Raises:
            MalformedReply: the bytes are no reply. So it stays: where the next one would start, nobody knows.
        """
        if self._error is not None:
            raise MalformedReply(self._error)
        try:
            while (line := self._next_line()) is not None:
                if self._take(line):
                    return self._finish()
        except MalformedReply as malformed:
            self._error = self._hide(str(malformed)) if self._hide else str(malformed)
            raise MalformedReply(self._error) from None
        return None

    def _next_line(self) -> bytes | None:
        end = self._buffer.find(b"\n", self._searched)
        self._searched = len(self._buffer)
        length = end + 1 if end >= 0 else len(self._buffer)
        if length > MAX_LINE:
            raise MalformedReply(f"a reply line of more than {MAX_LINE} bytes")
        if end < 0:
            return None
        line = bytes(self._buffer[:length])
        del self._buffer[:length]
        self._searched = 0
        self._size += length
        if self._size > MAX_REPLY:
            raise MalformedReply(f"a reply of more than {MAX_REPLY} bytes")
        return line.removesuffix(b"\n").removesuffix(b"\r")

    def _take(self, line: bytes) -> bool:
        """Adds a line to the reply; says whether it was the last."""
        code, is_last, text = _read(line)
        if self._code not in (None, code):
            raise MalformedReply(f"a reply with two codes, {self._code} and {code}")
        self._code = code
        self._lines.append(text)
        return is_last

    def _finish(self) -> Reply:
        if self._code is None:
            raise MalformedReply("a reply without a code")
        lines = tuple(self._lines)
        reply = Reply(self._code, lines, self._shown(lines))
        self._code, self._lines, self._size = None, [], 0
        return reply

    def _shown(self, lines: tuple[str, ...]) -> tuple[str, ...] | None:
        if self._hide is None:
            return None
        shown = tuple(map(self._hide, lines))
        return None if shown == lines else shown
