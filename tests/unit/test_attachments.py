"""Attachments on the wire: what readers get back of names, types and contents, and what the bytes keep to."""

import base64
import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage

import pytest

from actors.content.addresses import Mailbox
from actors.content.attachments import Attachment, in_base64
from actors.content.mime import UnsendableField, build_message
from actors.content.templates import Content

DATE = datetime(2026, 2, 1, 9, tzinfo=UTC)
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
INVITATION = (
    b"BEGIN:VCALENDAR\nVERSION:2.0\nPRODID:-//x//y\nMETHOD:REQUEST\nBEGIN:VEVENT\nUID:1@x.example\nSEQUENCE:2\n"
    b"DTSTAMP:20260101T000000Z\nDTSTART:20260201T090000Z\nSUMMARY:Gr\xc3\xbc\xc3\x9fe\nEND:VEVENT\nEND:VCALENDAR\n"
)


def attached(
    content: bytes = b"%PDF-1.7 x",
    filename: str = "invoice.pdf",
    content_type: str = "application/pdf",
    cid: str | None = None,
) -> Attachment:
    return Attachment(filename, content_type, cid, hashlib.sha256(content).hexdigest(), in_base64(content))


def build(*attachments: Attachment, text: str | None = "Hi", html: str | None = None) -> bytes:
    return build_message(
        content=Content("Hello", text, html),
        sender=Mailbox("", "noreply@x.example"),
        recipients=[Mailbox("", "ann@x.example")],
        message_id="<1@x.example>",
        date=DATE,
        reply_to=None,
        headers={},
        attachments=attachments,
    )


def read(message: bytes) -> EmailMessage:
    parsed = message_from_bytes(message, policy=policy.default)
    assert isinstance(parsed, EmailMessage)
    assert [part.defects for part in parsed.walk()] == [[] for _ in parsed.walk()]
    return parsed


def shape(part: EmailMessage) -> object:
    """The types of a message's parts, as they are nested."""
    kind = part.get_content_type()
    return (kind, [shape(each) for each in part.iter_parts()]) if part.is_multipart() else kind  # type: ignore[arg-type]


def only_attachment(message: bytes) -> EmailMessage:
    [part] = read(message).iter_attachments()
    assert isinstance(part, EmailMessage)
    return part


def assert_keeps_to_the_wire(message: bytes, longest: int = 78) -> None:
    assert message.isascii()
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", message)
    assert max(map(len, message.split(b"\r\n"))) <= longest


NAMES = [
    "invoice.pdf",
    "Prüfbericht Q1.pdf",
    "日本語" * 40 + ".pdf",
    ("word " * 60).strip(),
    'a "q" \\ b;c.pdf',
    "🚚 Lieferung 👩‍👩‍👧.pdf",
    "it's 100%.pdf",
    "a" * 300,
    "=?utf-8?b?YQ==?=.pdf",
    "a, b; c=d.pdf",
    "ß'en''x.pdf",
    "x/y\\z.pdf",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_files_name_is_read_as_it_was_given(name: str) -> None:
    message = build(attached(filename=name))
    assert only_attachment(message).get_filename() == name
    assert_keeps_to_the_wire(message)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.isascii()])
def test_a_name_beyond_ascii_is_in_the_standards_form_and_in_the_one_of_old_clients(name: str) -> None:
    message = build(attached(filename=name))
    assert re.search(rb"filename\*(?:0\*)?=utf-8''", message)
    old = message_from_bytes(message, policy=policy.compat32).get_payload()[1].get_param("name")  # type: ignore[index,union-attr]
    assert str(old).startswith("=?utf-8?")


@pytest.mark.parametrize("size", [0, 1, 56, 57, 58, 2**20])
def test_a_content_is_the_same_bytes_in_lines_of_at_most_76_characters(size: int) -> None:
    message = build(attached(bytes(size)))
    assert only_attachment(message).get_payload(decode=True) == bytes(size)
    assert_keeps_to_the_wire(message)
    assert b"Content-Transfer-Encoding: base64\r\n" in message


@pytest.mark.parametrize("content", [b"a\nb\r\nc\rd", b"\xef\xbb\xbfa;b\r\n", "Grüße\n".encode()])
def test_a_text_file_keeps_its_line_ends_and_its_mark(content: bytes) -> None:
    part = only_attachment(build(attached(content, "a.csv", "text/csv; charset=utf-8")))
    assert part.get_payload(decode=True) == content
    assert part.get_content_charset() == "utf-8"


def test_text_with_a_file_is_mixed_with_the_text_first() -> None:
    assert shape(read(build(attached()))) == ("multipart/mixed", ["text/plain", "application/pdf"])


def test_a_picture_that_the_html_shows_is_beside_it_and_a_file_beside_both() -> None:
    message = build(
        attached(PNG, "logo.png", "image/png", "logo@x.example"),
        attached(),
        html='<p><img src="cid:logo@x.example"></p>',
    )
    assert shape(read(message)) == (
        "multipart/mixed",
        [
            ("multipart/alternative", ["text/plain", ("multipart/related", ["text/html", "image/png"])]),
            "application/pdf",
        ],
    )
    [picture] = [part for part in read(message).walk() if part.get_content_type() == "image/png"]
    assert picture["Content-ID"] == "<logo@x.example>"
    assert picture.get_content_disposition() == "inline"


def test_a_picture_that_is_shown_twice_is_there_once() -> None:
    html = '<img src="cid:logo@x.example"><td background=cid:logo@x.example>'
    message = build(attached(PNG, "logo.png", "image/png", "logo@x.example"), text=None, html=html)
    assert shape(read(message)) == ("multipart/related", ["text/html", "image/png"])


def test_a_picture_that_is_not_shown_is_a_file() -> None:
    message = build(attached(PNG, "logo.png", "image/png", "logo@x.example"), html="<p>cid:logo@x.example")
    assert shape(read(message)) == (
        "multipart/mixed", [("multipart/alternative", ["text/plain", "text/html"]), "image/png"],
    )  # fmt: skip
    assert only_attachment(message).get_content_disposition() == "attachment"


def test_a_cid_without_a_domain_gets_one_in_the_html_too() -> None:
    message = build(
        attached(PNG, "logo.png", "image/png", "logo"), html="<img src='CID:logo'><b style='a: url(cid:logo)'>"
    )
    [picture] = [part for part in read(message).walk() if part.get_content_type() == "image/png"]
    assert picture["Content-ID"] == "<logo@x.example>"
    html = read(message).get_body(("html",))
    assert html is not None
    assert (
        html.get_content().replace("\r\n", "\n")
        == "<img src='cid:logo@x.example'><b style='a: url(cid:logo@x.example)'>\n"
    )


@pytest.mark.parametrize("attachments", [(), (attached(PNG, "logo.png", "image/png", "logo"),)], ids=["none", "one"])
def test_a_picture_that_there_is_not_is_named(attachments: Sequence[Attachment]) -> None:
    with pytest.raises(UnsendableField, match=r"^attachments: the HTML shows cid:lgo, and no attachment has that cid$"):
        build(*attachments, html='<img src="cid:lgo">')


def test_what_a_picture_is_called_is_not_told_where_it_may_be_somebodys_text() -> None:
    with pytest.raises(UnsendableField, match="shows a cid, and"):
        build(html='<img src="cid:anns%20secret">')


def test_the_word_cid_in_a_text_is_a_word() -> None:
    assert shape(read(build(html="<p>the CID:xyz of it</p>"))) == ("multipart/alternative", ["text/plain", "text/html"])


def test_an_invitation_is_the_last_alternative_and_tells_its_method() -> None:
    invitation = attached(INVITATION, "invite.ics", "text/calendar; charset=utf-8; method=REQUEST")
    message = build(invitation, attached(), html="<p>Hi</p>")
    assert shape(read(message)) == (
        "multipart/mixed",
        [("multipart/alternative", ["text/plain", "text/html", "text/calendar"]), "application/pdf"],
    )
    [part] = [part for part in read(message).walk() if part.get_content_type() == "text/calendar"]
    assert part["Content-Type"] == 'text/calendar; charset="utf-8"; method="REQUEST"'
    assert b"text/calendar; charset=utf-8; method=REQUEST\r\n" in message
    assert part["Content-Disposition"] is None
    assert part["Content-ID"] is None
    assert part.get_payload(decode=True) == INVITATION.replace(b"\n", b"\r\n")


def test_a_calendar_without_a_method_is_a_file() -> None:
    calendar = attached(INVITATION.replace(b"METHOD:REQUEST\n", b""), "a.ics", "text/calendar; charset=utf-8")
    assert only_attachment(build(calendar)).get_filename() == "a.ics"


def test_an_email_in_an_email_is_in_no_encoding() -> None:
    inner = b"From: a@x.example\nSubject: inner\n\n.\n--=_x\nbody"
    message = build(attached(inner, "a.eml", "message/rfc822"))
    assert b'Content-Type: message/rfc822; name="a.eml"\r\nContent-Transfer-Encoding: 7bit\r\n' in message
    [part] = read(message).iter_attachments()
    assert part.get_content()["Subject"] == "inner"


@pytest.mark.parametrize("inner", ["Subject: ü\n\nü".encode(), b"Subject: a\n\n" + b"x" * 999, b"a: b\n\n\0"])
def test_an_email_that_is_not_7_bit_is_a_file_like_any_other(inner: bytes) -> None:
    part = only_attachment(build(attached(inner, "a.eml", "message/rfc822")))
    assert part.get_content_type() == "application/octet-stream"
    assert (part.get_filename(), part.get_payload(decode=True)) == ("a.eml", inner)


def test_the_same_files_give_the_same_bytes() -> None:
    files = [attached(filename=name) for name in NAMES]
    assert build(*files, html="<p>") == build(*files, html="<p>")


def test_the_boundary_of_a_message_is_in_none_of_its_contents() -> None:
    first = build(attached(), html="<p>")
    again = build(attached(first, "a.eml", "message/rfc822"), html="<p>")
    assert shape(read(again)) == (
        "multipart/mixed",
        [
            ("multipart/alternative", ["text/plain", "text/html"]),
            (
                "message/rfc822",
                [("multipart/mixed", [("multipart/alternative", ["text/plain", "text/html"]), "application/pdf"])],
            ),
        ],
    )
