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

from actors.content.addresses import Mailbox, parse_sender
from actors.content.attachments import (
    Attachment,
    UnknownPicture,
    boundary_of,
    content_id,
    invitation_part,
    link_pictures,
    multipart,
    part_of,
)
from actors.content.templates import Content, is_blank

#: Characters in a line of the header (RFC 5322 section 2.1.1; RFC 2047 section 2 for encoded words).
LINE = 76

#: Characters in a line that must not be folded, at the very most (RFC 5322 section 2.1.1).
LONGEST_LINE = 998

#: Characters of a subject, as when it is scheduled.
LONGEST_SUBJECT = 4_096

#: Headers that Duepost sets, and an email's own may not stand in for; `duepost.headers_error()` has the same.
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

#: How the names of further such headers begin.
RESERVED_PREFIXES = ("content-", "resent-")

# Also for the bodies: RFC 2045 section 6.7 allows no longer line in quoted-printable.
_POLICY = SMTP.clone(cte_type="7bit", max_line_length=LINE)
_UTF8 = Charset("utf-8")

#: Stands for the boundary in a skeleton; as long as one, so that lines are folded alike.
_BOUNDARY = f"=_{'0' * 40}"

#: `=?utf-8?b?` and `?=` around an encoded word's text.
_ENCODED_WORD_FRAME = 12

#: Octets of a body up to which it is quoted-printable in whatever script: short text in base64 looks to filters as if
#: it had something to hide.
_SHORT = 2_000

#: How much longer than base64 quoted-printable may be: a person can read it, and filters trust it more.
_READABLE = 1.5

# Headers that are lists of URIs, ids, addresses or keywords, in which an encoded word means nothing (RFC 2047
# section 5). `duepost.is_structured()` has the same.
_STRUCTURED_NAME = re.compile(
    r"list-.*|(?:.*-)?references|in-reply-to|.*message-id|(?:x-)?auto-.*|precedence|(?:x-)?priority|x-msmail-priority"
    r"|importance|sensitivity|feedback-id|archived-at|supersedes|obsoletes|original-recipient|disposition-notification-.*"
    r"|return-receipt-to|x-confirm-reading-to|errors-to|mail-(?:followup|reply)-to|require-recipient-valid-since"
    r"|tls-required|expires|reply-by|authentication-results|arc-.*"
)
_STRUCTURED_VALUE = re.compile(r"[ \t]*<[!-;=?-~]+>(?:[ \t]*,?[ \t]*<[!-;=?-~]+>)*[ \t]*")
_PHRASE_AND_ID = re.compile(r"(?P<phrase>[^<>]*)(?P<id><[!-;=?-~]+>)[ \t]*")

# What a name is folded at: white space and controls, of which a reader makes one space.
_NAME_SPACE = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029]+")
# What an encoded word may hold without being cut: a word with the space behind it; a character with its marks.
_WORD_AND_SPACE = re.compile(r"[^ ]* |[^ ]+")
_CLUSTER = re.compile(
    r"(?s:.)(?:[\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0900-\u0903\u093a-\u094f\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u1ab0-\u1aff"
    r"\u1dc0-\u1dff\u20d0-\u20ff\u3099\u309a\ufe00-\ufe0f\ufe20-\ufe2f\U0001f3fb-\U0001f3ff]|\u200d(?s:.)?)*"
)
_SURROGATE = re.compile(r"[\ud800-\udfff]")

_UNSAFE = re.compile(r"[\r\n\x00]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_CONTROL_BYTES = bytes(code for code in range(0x80) if _CONTROL.match(chr(code)))
_PLAIN_WORDS = re.compile(r"(?!.*=\?)[!-~]+(?: [!-~]+)*")
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]+")
_MESSAGE_ID = re.compile(r"<[!-;=?-~]+>")
_HEADER_NAME = re.compile(r"[!-9;-~]{1,76}")
_ADDRESS = re.compile(r"[!-~]+@[!-~]+")
_INTERNATIONAL_ADDRESS = re.compile(r"[^\x00-\x20\x7f-\x9f\u2028\u2029\ud800-\udfff]+@[!-~]+")
_ADDRESS_SPECIALS = re.compile(r'[<>()\[\],;:\\"]')


class UnsendableField(ValueError):
    """A field of an email makes no message. Nothing of what it holds is in the error.

    Attributes:
        field: which, as the argument of `schedule_email()` or the header is called.
        reason: what would be right.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


def build_message(
    *,
    content: Content,
    sender: Mailbox,
    recipients: Sequence[Mailbox],
    message_id: str,
    date: datetime,
    reply_to: str | None,
    headers: Mapping[str, str],
    copies: Sequence[Mailbox] = (),
    is_international: bool = False,
    attachments: Sequence[Attachment] = (),
) -> bytes:
    r"""Builds a message: 7-bit ASCII, each line ended by CRLF and at most 998 octets long.

    Args:
        content: subject and bodies; both bodies make a multipart/alternative, a blank one counts as none.
        sender: From.
        recipients: To; none is named where there are none. Addresses are ASCII already; of the white space and control
            characters of a name one space is made.
        message_id: Message-ID, with its angle brackets.
        date: Date; aware, given out in UTC and whole seconds.
        reply_to: Reply-To, as `Name <address>` or a bare address; None for none.
        headers: further headers; those that are lists of URIs, ids or keywords are never encoded.
        copies: Cc.
        is_international: whether To and Cc may have addresses whose local part is not ASCII (RFC 6532).
        attachments: what goes with it, in this order; what the HTML shows is beside that, the rest behind the bodies.

    Raises:
        UnsendableField: a header holds CR, LF or NUL, or is one that is set here; an address is not ASCII; there is no
            body; the HTML shows a picture that there is not.
        ValueError: the date is naive.
    """
    if date.tzinfo is None:
        raise ValueError("the date must be aware of its timezone")
    if not _MESSAGE_ID.fullmatch(message_id):
        raise ValueError("a Message-ID must be ASCII in angle brackets, such as <1@x.example>")
    lines = [
        f"Message-ID: {message_id}",
        _date(date),
        _from(sender),
        # RFC 5322 section 3.4: a group of nobody, where all are named in Cc or nowhere.
        _folded("To", _mailboxes("To", recipients, is_international)) if recipients else "To: undisclosed-recipients:;",
        _subject(content.subject),
    ]
    if copies:
        lines.append(_folded("Cc", _mailboxes("Cc", copies, is_international)))
    if reply_to is not None:
        lines.append(_folded("Reply-To", _mailboxes("Reply-To", [_reply_to(reply_to)])))
    lines += [_own_header(name, value) for name, value in headers.items()]
    # RFC 3834 section 5.2: vacation responders leave it alone.
    lines += ["Auto-Submitted: auto-generated", "MIME-Version: 1.0", ""]
    head = "\r\n".join(lines).encode("utf-8" if is_international else "ascii")
    if attachments:
        return b"".join([head, *_with_files(content, message_id, attachments)])
    return head + _body(content, message_id)


@lru_cache(maxsize=1_000)
def _date(date: datetime) -> str:
    return f"Date: {format_datetime(date.astimezone(UTC))}"


@lru_cache(maxsize=1_000)
def _from(sender: Mailbox) -> str:
    return _folded("From", _mailboxes("From", [sender]))


@lru_cache(maxsize=1_000)
def _subject(subject: str) -> str:
    _refuse_surrogates("subject", subject)
    if len(subject) > LONGEST_SUBJECT:
        # Folding it would take long, in one piece, while others wait.
        raise UnsendableField("subject", f"must have at most {LONGEST_SUBJECT} characters")
    return _unstructured("Subject", subject)


def _reply_to(text: str) -> Mailbox:
    try:
        return parse_sender(text)
    except ValueError as error:
        raise UnsendableField("reply_to", str(error)) from None


def _body(content: Content, message_id: str) -> bytes:
    """The MIME part, from its Content-Type on."""
    given = _given(content)
    if "html" in given:
        _link(given["html"], (), message_id)
    boundary = ""
    if len(given) > 1:
        # No body can hold a boundary that is a digest of itself.
        digest = hashlib.sha256(f"{message_id}\0{content.text}\0{content.html}".encode()).hexdigest()
        boundary = f"=_{digest[:40]}"
    return _bodies(given, boundary)


def _given(content: Content) -> dict[str, str]:
    """The bodies that there are, by their subtypes."""
    given: dict[str, str] = {}
    for subtype, field, body in (("plain", "body_text", content.text), ("html", "body_html", content.html)):
        if body is not None and not is_blank(body):
            _refuse_surrogates(field, body)
            given[subtype] = body
    if not given:
        raise UnsendableField("body_text", "a message needs a body: text, HTML or both")
    return given


def _link(
    html: str, attachments: Sequence[Attachment], message_id: str
) -> tuple[str, Sequence[Attachment], Sequence[Attachment]]:
    try:
        return link_pictures(html, attachments, message_id.strip("<>").rpartition("@")[2])
    except UnknownPicture as error:
        raise UnsendableField("attachments", str(error)) from None


def _with_files(content: Content, message_id: str, attachments: Sequence[Attachment]) -> list[bytes]:
    """The MIME part in pieces: mixed(alternative(text, related(html, pictures), invitation), files), as needed."""
    given = _given(content)
    seed = [message_id, *given.values(), *(f"{each.filename}\0{each.sha256}" for each in attachments)]
    inside: Sequence[Attachment] = ()
    files = attachments
    if "html" in given:
        given["html"], inside, files = _link(given["html"], attachments, message_id)
    alternatives: list[list[bytes]] = [[_bodies({subtype: body}, "")] for subtype, body in given.items()]
    if inside:
        domain = message_id.strip("<>").rpartition("@")[2]
        pictures = [part_of(each, inside=content_id(each.cid or "", domain)) for each in inside]
        alternatives[-1] = multipart(
            'related; type="text/html"', boundary_of("related", *seed), [alternatives[-1], *pictures]
        )
    alternatives += [invitation_part(each) for each in files if each.is_invitation]
    whole = alternatives[0]
    if len(alternatives) > 1:
        whole = multipart("alternative", boundary_of("alternative", *seed), alternatives)
    if others := [part_of(each) for each in files if not each.is_invitation]:
        whole = multipart("mixed", boundary_of("mixed", *seed), [whole, *others])
    return whole


def _bodies(given: Mapping[str, str], boundary: str) -> bytes:
    """Bodies as one part: one of them, or with a boundary as alternatives."""
    plain = [_as_it_stands(body) for body in given.values()]
    if None not in plain:
        return _spliced(tuple(given), [each for each in plain if each is not None], boundary)
    return _composed(given, boundary)


def _as_it_stands(body: str) -> bytes | None:
    """The body as 7bit (RFC 2045 section 2.7), in lines of at most 76 characters; None where it must be encoded."""
    if not body.isascii():
        return None
    text = body.encode("ascii")
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
    encoding = "quoted-printable" if _CONTROL.search(body) or _is_readable(body) else None
    part.set_content(body, subtype=subtype, charset="utf-8", cte=encoding)


def _is_readable(body: str) -> bool:
    """Whether text beyond ASCII is short, or about as short in quoted-printable as in base64."""
    if body.isascii():
        return False
    octets = len(body.encode())
    if octets <= _SHORT:
        return True
    encoded = octets + 2 * (octets - len(body.encode("ascii", "ignore")))
    return encoded <= _READABLE * 4 * -(-octets // 3)


def _own_header(name: str, value: str) -> str:
    if not _HEADER_NAME.fullmatch(name):
        raise UnsendableField("headers", "a header's name must be 1 to 76 printable ASCII characters without a colon")
    if name.lower() in RESERVED or name.lower().startswith(RESERVED_PREFIXES):
        raise UnsendableField("headers", f"the header {name} cannot be given")
    if _STRUCTURED_NAME.fullmatch(name.lower()) or _STRUCTURED_VALUE.fullmatch(value):
        words = _structured_words(name, value)
        if all(len(name) + 2 + len(word) <= LONGEST_LINE for word in words):
            return _folded(name, words)
        # Such a one is refused when it is scheduled; the release before took it.
    return _unstructured(name, value)


def _structured_words(name: str, value: str) -> list[str]:
    """What such a header may be folded between: at white space and before each `<`; nothing of it may be encoded."""
    _refuse_unsafe(name, value)
    phrase: Iterator[str] = iter(())
    found = None if value.isascii() else _PHRASE_AND_ID.fullmatch(value)
    if found:
        phrase, value = _phrase(name, found["phrase"].strip()), found["id"]
    words = re.sub(r"(?<=[,>])<", " <", value.replace("\t", " ")).split(" ")
    return [*phrase, *(word for word in words if word or not value)]


def _unstructured(name: str, value: str) -> str:
    """A header of plain text; in encoded words (RFC 2047) unless it is ASCII that survives being folded."""
    _refuse_unsafe(name, value)
    plain = not value or _PLAIN_WORDS.fullmatch(value)
    words = value.split(" ")
    if plain and len(name) + 2 + max(map(len, words)) <= LONGEST_LINE:
        return _folded(name, words)
    return _folded(name, _encoded_words(name, value))


def _mailboxes(name: str, mailboxes: Sequence[Mailbox], is_international: bool = False) -> Iterator[str]:
    """The words of an address list (RFC 5322 section 3.4); none may be broken."""
    allowed = _INTERNATIONAL_ADDRESS if is_international else _ADDRESS
    for position, mailbox in enumerate(mailboxes, start=1):
        address = mailbox.address
        if not allowed.fullmatch(address) or _ADDRESS_SPECIALS.search(address):
            raise UnsendableField("address", f"an address in {name} must be plain ASCII such as ann@x.example")
        phrase = list(_phrase(name, _NAME_SPACE.sub(" ", mailbox.name).strip(" ")))
        yield from phrase
        yield (f"<{address}>" if phrase else address) + ("," if position < len(mailboxes) else "")


def _phrase(name: str, display_name: str) -> Iterator[str]:
    """The words of a name (RFC 5322 section 3.2.5); the lines of a quoted string are broken at its spaces."""
    if not display_name:
        return
    words = display_name.split(" ")
    if not _PLAIN_WORDS.fullmatch(display_name) or max(map(len, words)) > LINE - 4:
        yield from _encoded_words(name, display_name)
    elif _ATOMS.fullmatch(display_name):
        yield from words
    else:
        yield from ('"' + re.sub(r'(["\\])', r"\\\1", display_name) + '"').split(" ")


def _encoded_words(name: str, text: str) -> Iterator[str]:
    """Encoded words that fit a line each, also the header's first.

    They end between words where they can, and never within a character or between it and the marks on it.
    """
    room = max(6, (LINE - len(f"{name}: ") - _ENCODED_WORD_FRAME) // 4 * 3)
    piece = ""
    for word in _WORD_AND_SPACE.findall(text):
        if piece and _octets(piece) + _octets(word) > room:
            yield _UTF8.header_encode(piece)
            piece = ""
        for cluster in _CLUSTER.findall(word):
            for part in [cluster] if _octets(cluster) <= room else cluster:
                if _octets(piece) + _octets(part) > room:
                    yield _UTF8.header_encode(piece)
                    piece = ""
                piece += part
    if piece:
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
        field = "subject" if name == "Subject" else f"headers: {name}"
        raise UnsendableField(field, "must be one line: CR, LF and NUL are not allowed")


def _refuse_surrogates(field: str, value: str) -> None:
    if not value.isascii() and _SURROGATE.search(value):
        raise UnsendableField(field, "must not contain a lone surrogate, which is half a character")


def _octets(text: str) -> int:
    return len(text.encode())
