"""The message as it goes over the wire (RFC 5322, MIME): the same arguments give the same bytes.

The header is written here rather than by `email.message`, whose folding of addresses and encoded words
differs between Python versions: a resent email must not differ.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.charset import Charset
from email.message import MIMEPart
from email.policy import SMTP
from email.utils import format_datetime
from functools import cache, lru_cache

from actors.addresses import Mailbox, parse_sender
from actors.rendering import Content

#: Characters in a line of the header (RFC 5322 section 2.1.1; RFC 2047 section 2 for encoded words).
LINE = 76

#: Characters in a line that must not be folded, at the very most (RFC 5322 section 2.1.1).
LONGEST_LINE = 998

#: Headers that an email's own may not stand in for.
RESERVED = frozenset(
    {
        "auto-submitted",
        "bcc",
        "cc",
        "date",
        "dkim-signature",
        "from",
        "message-id",
        "mime-version",
        "received",
        "reply-to",
        "return-path",
        "sender",
        "subject",
        "to",
    }
)

# Also for the bodies: RFC 2045 section 6.7 allows no longer line in quoted-printable.
_POLICY = SMTP.clone(cte_type="7bit", max_line_length=LINE)
_UTF8 = Charset("utf-8")

#: Stands for the boundary in a skeleton; as long as one, so that lines are folded alike.
_BOUNDARY = f"=_{'0' * 40}"

#: `=?utf-8?b?` and `?=` around an encoded word's text.
_ENCODED_WORD_FRAME = 12

_UNSAFE = re.compile(r"[\r\n\x00]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_CONTROL_BYTES = bytes(code for code in range(0x80) if _CONTROL.match(chr(code)))
_PLAIN_WORDS = re.compile(r"(?!.*=\?)[!-~]+(?: [!-~]+)*")
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]+")
_MESSAGE_ID = re.compile(r"<[!-;=?-~]+>")
_HEADER_NAME = re.compile(r"[!-9;-~]{1,76}")
_ADDRESS = re.compile(r"[!-~]+@[!-~]+")
_ADDRESS_SPECIALS = re.compile(r'[<>()\[\],;:\\"]')


def build_message(
    *,
    content: Content,
    sender: Mailbox,
    recipients: Sequence[Mailbox],
    message_id: str,
    date: datetime,
    reply_to: str | None,
    headers: Mapping[str, str],
) -> bytes:
    r"""Builds a message: 7-bit ASCII, each line ended by CRLF and at most 998 octets long.

    Args:
        content: subject and bodies; both bodies make a multipart/alternative.
        sender: From.
        recipients: To; at least one. Addresses are ASCII already.
        message_id: Message-ID, with its angle brackets.
        date: Date; aware, given out in UTC and whole seconds.
        reply_to: Reply-To, as `Name <address>` or a bare address; None for none.
        headers: further headers, unstructured (RFC 5322 section 3.6.8).

    Raises:
        ValueError: a header holds CR, LF or NUL, or is one that is set here; an address is not ASCII; the
            date is naive; there is no body or no recipient.
    """
    if date.tzinfo is None:
        raise ValueError("the date must be aware of its timezone")
    if not recipients:
        raise ValueError("a message needs at least one recipient")
    if not _MESSAGE_ID.fullmatch(message_id):
        raise ValueError("a Message-ID must be ASCII in angle brackets, such as <1@x.example>")
    lines = [
        f"Message-ID: {message_id}",
        _date(date),
        _from(sender),
        _folded("To", _mailboxes("To", recipients)),
        _subject(content.subject),
    ]
    if reply_to is not None:
        lines.append(_folded("Reply-To", _mailboxes("Reply-To", [parse_sender(reply_to)])))
    lines += [_own_header(name, value) for name, value in headers.items()]
    # RFC 3834 section 5.2: vacation responders leave it alone.
    lines += ["Auto-Submitted: auto-generated", "MIME-Version: 1.0", ""]
    return "\r\n".join(lines).encode("ascii") + _body(content, message_id)


@lru_cache(maxsize=1_000)
def _date(date: datetime) -> str:
    return f"Date: {format_datetime(date.astimezone(UTC))}"


@lru_cache(maxsize=1_000)
def _from(sender: Mailbox) -> str:
    return _folded("From", _mailboxes("From", [sender]))


@lru_cache(maxsize=1_000)
def _subject(subject: str) -> str:
    return _unstructured("Subject", subject)


def _body(content: Content, message_id: str) -> bytes:
    """The MIME part, from its Content-Type on."""
    text, html = content.text, content.html
    if text is None and html is None:
        raise ValueError("a message needs a body: text, HTML or both")
    bodies = {"plain": text, "html": html}
    given = {subtype: body for subtype, body in bodies.items() if body is not None}
    boundary = ""
    if len(given) > 1:
        # No body can hold a boundary that is a digest of itself.
        digest = hashlib.sha256(f"{message_id}\0{text}\0{html}".encode()).hexdigest()
        boundary = f"=_{digest[:40]}"
    plain = [_as_it_stands(body) for body in given.values()]
    if None not in plain:
        return _spliced(tuple(given), [each for each in plain if each is not None], boundary)
    return _composed(given, boundary)


def _as_it_stands(body: str) -> bytes | None:
    """The body as 7bit (RFC 2045 section 2.7), in lines of at most 76 characters; None where it must be encoded."""
    if not body.isascii():
        return None
    text = (body or "\n").encode("ascii")
    # A tenth of the time that looking for a pattern takes.
    if len(text.translate(None, _CONTROL_BYTES)) < len(text):
        return None
    lines = text.splitlines()
    if max(map(len, lines)) > LINE:
        return None
    return b"\r\n".join(lines) + b"\r\n"


def _spliced(subtypes: tuple[str, ...], bodies: Sequence[bytes], boundary: str) -> bytes:
    """Puts bodies that need no encoding into a skeleton: a tenth of the time that composing takes."""
    pieces = [piece.replace(_BOUNDARY.encode(), boundary.encode()) for piece in _skeleton(subtypes)]
    pieces[1::2] = bodies
    return b"".join(pieces)


@cache
def _skeleton(subtypes: tuple[str, ...]) -> tuple[bytes, ...]:
    """A composed part in pieces: what is around the bodies, and the bodies' places at the odd positions."""
    marks = {subtype: f"the {subtype} body\n" for subtype in subtypes}
    composed = _composed(marks, _BOUNDARY if len(subtypes) > 1 else "")
    return tuple(re.split(b"(the (?:plain|html) body\r\n)", composed))


def _composed(bodies: Mapping[str, str], boundary: str) -> bytes:
    part = MIMEPart(policy=_POLICY)
    if not boundary:
        [(subtype, body)] = bodies.items()
        _set_body(part, body, subtype)
        return part.as_bytes()
    part.make_alternative()
    for subtype, body in bodies.items():
        alternative = MIMEPart(policy=_POLICY)
        _set_body(alternative, body, subtype)
        part.attach(alternative)
    part.set_boundary(boundary)
    return part.as_bytes()


def _set_body(part: MIMEPart, body: str, subtype: str) -> None:
    # RFC 2045 section 2.7: 7bit knows no NUL; other control characters are no safer on their way.
    encoding = "quoted-printable" if _CONTROL.search(body) else None
    part.set_content(body or "\n", subtype=subtype, charset="utf-8", cte=encoding)


def _own_header(name: str, value: str) -> str:
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError("a header's name must be 1 to 76 printable ASCII characters without a colon")
    if name.lower() in RESERVED or name.lower().startswith(("content-", "resent-")):
        raise ValueError(f"the header {name} cannot be given")
    return _unstructured(name, value)


def _unstructured(name: str, value: str) -> str:
    """A header of plain text; in encoded words (RFC 2047) unless it is ASCII that survives being folded."""
    _refuse_unsafe(name, value)
    plain = not value or _PLAIN_WORDS.fullmatch(value)
    words = value.split(" ")
    if plain and len(name) + 2 + max(map(len, words)) <= LONGEST_LINE:
        return _folded(name, words)
    return _folded(name, _encoded_words(name, value))


def _mailboxes(name: str, mailboxes: Sequence[Mailbox]) -> Iterator[str]:
    """The words of an address list (RFC 5322 section 3.4); none may be broken."""
    for position, mailbox in enumerate(mailboxes, start=1):
        address = mailbox.address
        if not _ADDRESS.fullmatch(address) or _ADDRESS_SPECIALS.search(address):
            raise ValueError(f"an address in {name} must be plain ASCII such as ann@x.example")
        phrase = list(_phrase(name, mailbox.name))
        yield from phrase
        yield (f"<{address}>" if phrase else address) + ("," if position < len(mailboxes) else "")


def _phrase(name: str, display_name: str) -> Iterator[str]:
    _refuse_unsafe(name, display_name)
    if not display_name:
        return
    if not _PLAIN_WORDS.fullmatch(display_name) or len(display_name) > LINE // 2:
        yield from _encoded_words(name, display_name)
    elif _ATOMS.fullmatch(display_name):
        yield display_name
    else:
        yield '"' + re.sub(r'(["\\])', r"\\\1", display_name) + '"'


def _encoded_words(name: str, text: str) -> Iterator[str]:
    """Encoded words that fit a line each, also the header's first; no character is torn apart."""
    room = max(6, (LINE - len(f"{name}: ") - _ENCODED_WORD_FRAME) // 4 * 3)
    piece = ""
    for character in text:
        if len((piece + character).encode()) > room:
            yield _UTF8.header_encode(piece)
            piece = ""
        piece += character
    yield _UTF8.header_encode(piece)


def _folded(name: str, words: Sequence[str] | Iterator[str]) -> str:
    """A header whose lines are broken between words."""
    lines = [f"{name}:"]
    for word in words:
        if len(lines[-1]) + 1 + len(word) > LINE and lines[-1] != f"{name}:":
            lines.append("")
        lines[-1] += f" {word}"
    return "\r\n".join(lines)


def _refuse_unsafe(name: str, value: str) -> None:
    if _UNSAFE.search(value):
        raise ValueError(f"the header {name} must be one line: CR, LF and NUL are not allowed")
