"""Attachments as parts of a message (RFC 2045, 2183, 2231, 2392): the same arguments give the same bytes."""

import base64
import hashlib
import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.charset import Charset
from typing import Final
from urllib.parse import quote, unquote

#: Characters of a line (RFC 5322 section 2.1.1), but for what cannot be broken.
_LINE: Final = 76

#: Characters of a line at the most.
_LONGEST_LINE: Final = 998

#: A name that every reader takes as it is, in double quotes.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9!#$&+,.=@^_(){}\[\]~-]+(?: [A-Za-z0-9!#$&+,.=@^_(){}\[\]~-]+)*")

#: What RFC 2231 section 7 lets stand as it is (`attribute-char`), in the words of `urllib.parse.quote`.
_ATTRIBUTE: Final = "!#$&+^`{|}~"

#: Octets of an encoded word's text (RFC 2047 section 2: 75 characters with what is around it).
_ENCODED_WORD: Final = 42

#: A picture that HTML shows, where a URL may stand.
_SHOWN = re.compile(r"""(?P<before>["'=(]\s*)cid:(?P<cid>[^"'<>()\s]+)""", re.IGNORECASE)
_TELLABLE = re.compile(r"[A-Za-z0-9_.+=~@-]{1,100}")
_METHOD = re.compile(r'; method="?([A-Za-z][A-Za-z0-9-]*)', re.IGNORECASE)

_UTF8 = Charset("utf-8")


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that goes with an email.

    Attributes:
        filename: as a reader is to see it, in any script.
        content_type: with its parameters, in ASCII; an invitation's has a method.
        cid: what the HTML calls it, where it shows it; None for none.
        sha256: of the content, in hexadecimal.
        encoded: the content in base64, in lines of at most 76 characters, each ended by CRLF; empty for an empty file.
    """

    filename: str
    content_type: str
    cid: str | None
    sha256: str
    encoded: bytes

    @property
    def is_invitation(self) -> bool:
        """Whether it is a calendar that asks, answers or cancels: a mail client shows it in the place of the text."""
        return self.content_type.startswith("text/calendar") and _METHOD.search(self.content_type) is not None


class UnknownPicture(ValueError):
    """The HTML shows what no attachment is called; the message names it where that is harmless."""


def in_base64(content: bytes) -> bytes:
    """Returns a content as a part holds it (RFC 2045 section 6.8)."""
    return base64.encodebytes(content).replace(b"\n", b"\r\n")


def with_charset(content_type: str, *, is_utf8: bool) -> str:
    """Returns the type of a file that was read: text in UTF-8 says so, as where it is stored."""
    if not is_utf8 or not content_type.startswith("text/") or "; charset=" in content_type.lower():
        return content_type
    sort, semicolon, parameters = content_type.partition("; ")
    return f"{sort}; charset=utf-8{semicolon}{parameters}"


def link_pictures(
    body: str, attachments: Sequence[Attachment], domain: str
) -> tuple[str, list[Attachment], list[Attachment]]:
    """Finds which attachments an HTML shows.

    Args:
        body: the HTML.
        attachments: all of the email's.
        domain: makes a Content-ID of a `cid` that has no @.

    Returns:
        the HTML, which calls each by its Content-ID; those that it shows; the others.

    Raises:
        UnknownPicture: it shows one that there is not.
    """
    by_cid = {each.cid: each for each in attachments if each.cid is not None}
    shown: set[str] = set()

    def linked(found: re.Match[str]) -> str:
        cid = unquote(html.unescape(found["cid"]))
        if cid not in by_cid:
            told = f"cid:{cid}" if _TELLABLE.fullmatch(cid) else "a cid"
            raise UnknownPicture(f"the HTML shows {told}, and no attachment has that cid")
        shown.add(cid)
        return f"{found['before']}cid:{content_id(cid, domain)}"

    if "cid:" in body.lower():
        body = _SHOWN.sub(linked, body)
    inside = [each for each in attachments if each.cid in shown]
    return body, inside, [each for each in attachments if each.cid not in shown]


def content_id(cid: str, domain: str) -> str:
    """Returns a Content-ID without its angle brackets (RFC 2392 section 2): what has no @ gets this domain."""
    return cid if "@" in cid else f"{cid}@{domain}"


def part_of(attachment: Attachment, *, inside: str | None = None) -> list[bytes]:
    """Returns an attachment as a MIME part, in pieces.

    Args:
        attachment: it.
        inside: its Content-ID, where the HTML shows it.
    """
    if attachment.content_type.startswith("message/"):
        return _message_part(attachment)
    disposition = "attachment" if inside is None else "inline"
    lines = list(_head(attachment.content_type, attachment.filename, disposition))
    if inside is not None:
        lines.append(f"Content-ID: <{inside}>" if len(inside) <= _LINE - 14 else f"Content-ID:\r\n <{inside}>")
    return [_written(lines), attachment.encoded]


def invitation_part(attachment: Attachment) -> list[bytes]:
    """Returns an invitation as an alternative to the text (RFC 6047 section 2.4), its lines ended by CRLF."""
    text = base64.b64decode(attachment.encoded)
    lines = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
    head = [*_parameters(f"Content-Type: {attachment.content_type}"), "Content-Transfer-Encoding: base64"]
    return [_written(head), in_base64(lines)]


def _message_part(attachment: Attachment) -> list[bytes]:
    """An email in an email is in no encoding (RFC 2046 section 5.2.1); what is not 7bit is a file like others."""
    content = base64.b64decode(attachment.encoded)
    lines = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    if not content.isascii() or b"\0" in content or max(map(len, lines)) > _LONGEST_LINE:
        head = _head("application/octet-stream", attachment.filename, "attachment")
        return [_written(list(head)), attachment.encoded]
    head = _head(attachment.content_type, attachment.filename, "attachment", encoding="7bit")
    text = b"\r\n".join(lines)
    return [_written(list(head)), text if text.endswith(b"\r\n") else text + b"\r\n"]


def _head(content_type: str, filename: str, disposition: str, encoding: str = "base64") -> Iterator[str]:
    # Old clients know the name of the type's only, in encoded words, which no standard has.
    yield from _parameters(f"Content-Type: {content_type}", _old_name(filename))
    yield f"Content-Transfer-Encoding: {encoding}"
    yield from _parameters(f"Content-Disposition: {disposition}", *_name(filename))


def _written(lines: Sequence[str]) -> bytes:
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def _parameters(value: str, *more: str) -> Iterator[str]:
    """A header in one line, or with each of its parameters in a line of its own."""
    pieces = [*value.split("; "), *more]
    whole = "; ".join(pieces)
    if len(whole) <= _LINE:
        yield whole
        return
    yield ";\r\n ".join(pieces)


def _name(filename: str) -> list[str]:
    """The parameters that tell a file's name; beyond what is plain as RFC 2231 has it, in as many as it takes."""
    plain = f'filename="{filename}"'
    if _PLAIN_NAME.fullmatch(filename) and len(plain) < _LINE:
        return [plain]
    characters = [quote(each, safe=_ATTRIBUTE) for each in filename]
    whole = f"filename*=utf-8''{''.join(characters)}"
    if len(whole) < _LINE:
        return [whole]
    pieces: list[str] = []
    piece = "utf-8''"
    for character in characters:
        if len(f" filename*{len(pieces)}*={piece}{character};") > _LINE:
            pieces.append(piece)
            piece = ""
        piece += character
    return [f"filename*{number}*={each}" for number, each in enumerate([*pieces, piece])]


def _old_name(filename: str) -> str:
    plain = f'name="{filename}"'
    if _PLAIN_NAME.fullmatch(filename) and len(plain) < _LINE:
        return plain
    words, piece = [], ""
    for character in filename:
        if len((piece + character).encode()) > _ENCODED_WORD:
            words.append(_UTF8.header_encode(piece))
            piece = ""
        piece += character
    return 'name="' + "\r\n ".join([*words, _UTF8.header_encode(piece)]) + '"'


def boundary_of(*parts: str) -> str:
    """Returns a boundary: no content can hold one that is a digest of itself."""
    return "=_" + hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()[:40]


def multipart(subtype: str, boundary: str, parts: Sequence[Sequence[bytes]]) -> list[bytes]:
    """Returns parts as one (RFC 2046 section 5.1), in pieces."""
    mark = f"--{boundary}".encode()
    pieces = [_written([*_parameters(f"Content-Type: multipart/{subtype}", f'boundary="{boundary}"')])]
    for part in parts:
        pieces += [mark, b"\r\n", *part, b"\r\n"]
    return [*pieces, mark, b"--\r\n"]
