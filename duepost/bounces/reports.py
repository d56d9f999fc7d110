"""What an email that came back says, as facts: RFC 3464 and 6533 (delivery status), RFC 5965 (complaints).

Whatever it holds, parsing raises nothing: what cannot be read says nothing. What is attached of the email that was
sent is not looked into for further reports: somebody who quotes a bounce does not send one.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesHeaderParser, BytesParser, HeaderParser
from email.policy import compat32
from enum import StrEnum
from typing import Final

#: Bytes of an email that are parsed at the most: reports come at its beginning.
MOST_PARSED: Final = 2_000_000

#: Parts of an email, and recipients of a report, that are looked at.
MOST_PARTS: Final = 100
MOST_RECIPIENTS: Final = 100

#: What holds the status for each recipient, and what holds the email that it is about.
_STATUS_TYPES: Final = frozenset({"message/delivery-status", "message/global-delivery-status"})
_FEEDBACK_TYPES: Final = frozenset({"message/feedback-report"})
_ORIGINAL_TYPES: Final = frozenset(
    {"message/rfc822", "message/global", "text/rfc822-headers", "message/rfc822-headers", "message/global-headers"}
)

#: Headers in which whoever takes mail in writes to whom it came.
_ENVELOPE_HEADERS: Final = ("Delivered-To", "X-Original-To", "Envelope-To", "X-Envelope-To", "X-Delivered-To", "To")

_STATUS = re.compile(r"\s*([245]\.[0-9]{1,3}\.[0-9]{1,3})\b")
_FOR = re.compile(r"\bfor\s+<?([^<>\s;]+@[^<>\s;]+)>?")
#: RFC 6533 section 3: a character in an address that goes through 7 bits.
_ESCAPED = re.compile(r"\\x\{([0-9A-Fa-f]{2,6})\}")


class Sort(StrEnum):
    """What an email that came back is."""

    STATUS = "status"
    COMPLAINT = "complaint"
    ANSWER = "answer"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Status:
    """What a report says of one recipient.

    Attributes:
        addresses: the recipient's, as the sender named it and as it was in the end.
        action: `failed`, `delayed`, `delivered`, `relayed` or `expanded`, or what else stands there, in lower case.
        code: the status (RFC 3463).
        diagnostic: what the last server said.
    """

    addresses: tuple[str, ...]
    action: str
    code: str | None
    diagnostic: str


@dataclass(frozen=True, slots=True)
class Came:
    """What came back.

    Attributes:
        sort: what it is.
        to: all that it may have been sent to: a token in one of them says which email it is about.
        statuses: of a delivery status, one for each recipient.
        feedback: of a complaint its type, in lower case: `abuse`, `not-spam`, `opt-out` and others.
        reported_from: of a complaint, the return paths of the email that it is about.
        subject: for people who look at what could not be read.
    """

    sort: Sort
    to: tuple[str, ...] = ()
    statuses: tuple[Status, ...] = ()
    feedback: str = ""
    reported_from: tuple[str, ...] = ()
    subject: str = field(default="", repr=False)


def read(raw: bytes) -> Came:
    """What an email that came back says."""
    message = BytesParser(policy=compat32).parsebytes(raw[:MOST_PARSED])
    to, subject = tuple(_to(message)), str(message.get("Subject", ""))[:200]
    parts = list(_parts(message))
    statuses = [status for part in parts if part.get_content_type() in _STATUS_TYPES for status in _statuses(part)]
    if statuses:
        return Came(Sort.STATUS, to, tuple(statuses[:MOST_RECIPIENTS]), subject=subject)
    for part in parts:
        if part.get_content_type() in _FEEDBACK_TYPES:
            return _complaint(part, parts, to, subject)
    is_answer = _is_answer(message)
    return Came(Sort.ANSWER if is_answer else Sort.UNREADABLE, to, subject=subject)


def _is_answer(message: Message) -> bool:
    """Whether a person, or a machine for one, has written it: it is about nothing that we have to know."""
    submitted = str(message.get("Auto-Submitted", "")).strip().lower()
    if submitted.startswith("auto-replied"):
        return True
    sender = str(message.get("From", "")).lower()
    path = str(message.get("Return-Path", "")).strip()
    is_from_machine = path == "<>" or re.search(r"\b(?:mailer-daemon|postmaster)\b", sender) is not None
    return not is_from_machine and not submitted.startswith("auto-generated")


def _to(message: Message) -> Iterator[str]:
    """Whom it came to, as far as its own header says."""
    for name in _ENVELOPE_HEADERS:
        for value in message.get_all(name, []):
            yield from re.findall(r"[^\s<>,;:\"()]+@[^\s<>,;:\"()]+", str(value))
    for value in message.get_all("Received", []):
        yield from _FOR.findall(" ".join(str(value).split()))


def _parts(message: Message) -> Iterator[Message]:
    """Its parts, but for those of the email that it is about."""
    waiting, looked_at = [message], 0
    while waiting and looked_at < MOST_PARTS:
        part = waiting.pop(0)
        looked_at += 1
        yield part
        if part.get_content_maintype() == "multipart":
            payload = part.get_payload()
            waiting[:0] = [each for each in payload if isinstance(each, Message)] if isinstance(payload, list) else []


# Delivery status -----------------------------------------------------------------------------------------------------


def _statuses(part: Message) -> Iterator[Status]:
    for block in _blocks(part):
        fields = HeaderParser(policy=compat32).parsestr(block)
        action = _action(_value(fields, "Action"))
        addresses = tuple(
            dict.fromkeys(filter(None, (_address(fields, "Original-Recipient"), _address(fields, "Final-Recipient"))))
        )
        if not action or not addresses:
            continue
        code = _STATUS.match(_value(fields, "Status"))
        yield Status(addresses, action, code[1] if code else None, _diagnostic(fields))


def _action(value: str) -> str:
    """The action of a group: some write more behind it, and some have words of their own for `failed`."""
    word = value.lower().partition(" ")[0]
    return "failed" if word in {"failure", "error"} else word


def _blocks(part: Message) -> Sequence[str]:
    """The groups of fields: of the report, then of each recipient."""
    payload = part.get_payload()
    if isinstance(payload, list):
        # Python parses one sort into its groups, and takes the other for an email: its header is the first group.
        pieces = [_as_bytes(each) for each in payload if isinstance(each, Message)]
        text = b"\n\n".join(pieces).decode("utf-8", "replace")
    else:
        decoded = part.get_payload(decode=True)
        text = decoded.decode("utf-8", "replace") if isinstance(decoded, bytes) else str(payload)
    return [block.strip("\n") for block in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n")) if block.strip()]


def _as_bytes(group: Message) -> bytes:
    """A group as it came: what is no ASCII in its header has no charset, and is UTF-8."""
    lines = [f"{name}: {value}" for name, value in group.raw_items()]
    rest = group.get_payload(decode=True)
    head = "\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")
    return head + (rest if isinstance(rest, bytes) else b"")


def _value(fields: Message, name: str) -> str:
    return " ".join(str(fields.get(name, "")).split())


def _address(fields: Message, name: str) -> str | None:
    """The address of `rfc822; ann@example.com`, or of `utf-8; …`; some write it bare."""
    sort, separator, value = _value(fields, name).partition(";")
    if not separator:
        value = sort
    elif sort.strip().lower() not in {"rfc822", "utf-8"}:
        return None
    plain = _ESCAPED.sub(lambda found: _character(found[1]), value).strip().strip("<>").strip()
    return plain if "@" in plain else None


def _character(number: str) -> str:
    try:
        return chr(int(number, 16))
    except ValueError:
        return ""


def _diagnostic(fields: Message) -> str:
    sort, separator, value = _value(fields, "Diagnostic-Code").partition(";")
    return (value if separator and " " not in sort.strip() else f"{sort}{separator}{value}").strip()


# Complaints ----------------------------------------------------------------------------------------------------------


def _complaint(part: Message, parts: Sequence[Message], to: tuple[str, ...], subject: str) -> Came:
    fields = HeaderParser(policy=compat32).parsestr("\n".join(_blocks(part)))
    paths = [_value(fields, "Original-Mail-From")]
    for original in parts:
        if original.get_content_type() in _ORIGINAL_TYPES:
            header = _header_of(original)
            paths += [str(value) for value in header.get_all("Return-Path", [])]
            paths += [str(value) for value in header.get_all("List-Unsubscribe", [])]
    return Came(
        Sort.COMPLAINT, to, feedback=_value(fields, "Feedback-Type").lower(), reported_from=tuple(filter(None, paths)),
        subject=subject,
    )  # fmt: skip


def _header_of(original: Message) -> Message:
    payload = original.get_payload()
    if isinstance(payload, list) and payload and isinstance(payload[0], Message):
        return payload[0]
    decoded = original.get_payload(decode=True)
    return BytesHeaderParser(policy=compat32).parsebytes(decoded if isinstance(decoded, bytes) else b"")
