"""The message on the wire: what a receiver reads back, and what the bytes themselves keep to."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.headerregistry import DateHeader
from email.message import EmailMessage
from email.utils import getaddresses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.content.addresses import Mailbox
from actors.content.mime import UnsendableField, build_message
from actors.content.templates import Content, is_blank

SENDER = Mailbox("Duepost", "noreply@x.example")
ANN = Mailbox("", "ann@x.example")
DATE = datetime(2024, 2, 29, 12, 30, 15, 999_999, tzinfo=UTC)

#: What a person may write: no controls, no lone surrogates, no line ends of any script.
WRITTEN = st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"))
LINE = st.text(WRITTEN, max_size=300)
#: A reader may make one space of several in a name: RFC 5322 section 3.2.2.
NAME = st.text(WRITTEN, max_size=100).map(lambda name: " ".join(name.split()))
BODY = st.text(st.one_of(WRITTEN, st.just("\n")), max_size=2000).filter(lambda body: not is_blank(body))


def build(
    content: Content | None = None,
    *,
    subject: str = "Hello",
    text: str | None = "Hi",
    html: str | None = None,
    sender: Mailbox = SENDER,
    recipients: Sequence[Mailbox] = (ANN,),
    message_id: str = "<1@x.example>",
    date: datetime = DATE,
    reply_to: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    return build_message(
        content=content or Content(subject, text, html),
        sender=sender,
        recipients=recipients,
        message_id=message_id,
        date=date,
        reply_to=reply_to,
        headers=headers or {},
    )


def read(message: bytes) -> EmailMessage:
    parsed = message_from_bytes(message, policy=policy.default)
    assert isinstance(parsed, EmailMessage)
    assert [part.defects for part in parsed.walk()] == [[] for _ in parsed.walk()]
    return parsed


def mailboxes(message: bytes, header: str) -> list[tuple[str, str]]:
    # The newer parser leaves a space between encoded words of a name, against RFC 2047 section 6.2.
    read(message)
    value = message_from_bytes(message, policy=policy.compat32)[header]
    pairs = getaddresses([re.sub(r"\r\n(?=[ \t])", "", value)])
    return [(str(make_header(decode_header(name))), address) for name, address in pairs]


def body_of(message: bytes, subtype: str = "plain") -> str:
    part = read(message).get_body((subtype,))
    assert part is not None
    content = part.get_content()
    assert isinstance(content, str)
    return content.replace("\r\n", "\n")


def assert_keeps_to_the_wire(message: bytes) -> None:
    assert message.endswith(b"\r\n")
    assert message.isascii()
    assert b"\0" not in message
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", message)
    assert max(map(len, message.split(b"\r\n"))) <= 998


def header_lines(message: bytes) -> list[bytes]:
    return message.partition(b"\r\n\r\n")[0].split(b"\r\n")


def test_a_message_is_what_it_should_be_to_the_byte() -> None:
    assert build(subject="Grüße", reply_to="Help <help@x.example>", headers={"X-Kind": "welcome"}) == (
        b"Message-ID: <1@x.example>\r\n"
        b"Date: Thu, 29 Feb 2024 12:30:15 +0000\r\n"
        b"From: Duepost <noreply@x.example>\r\n"
        b"To: ann@x.example\r\n"
        b"Subject: =?utf-8?b?R3LDvMOfZQ==?=\r\n"
        b"Reply-To: Help <help@x.example>\r\n"
        b"X-Kind: welcome\r\n"
        b"Auto-Submitted: auto-generated\r\n"
        b"MIME-Version: 1.0\r\n"
        b'Content-Type: text/plain; charset="utf-8"\r\n'
        b"Content-Transfer-Encoding: 7bit\r\n"
        b"\r\n"
        b"Hi\r\n"
    )


def test_a_message_with_both_bodies_is_an_alternative_with_the_text_first() -> None:
    message = read(build(text="Hi", html="<p>Hi</p>"))
    kinds = [part.get_content_type() for part in message.walk()]
    assert kinds == ["multipart/alternative", "text/plain", "text/html"]


def test_a_message_with_html_only_is_that_html() -> None:
    message = build(text=None, html="<p>Grüße</p>")
    assert (read(message).get_content_type(), body_of(message, "html")) == ("text/html", "<p>Grüße</p>\n")


def test_a_message_with_text_only_is_that_text() -> None:
    message = build(text="Grüße")
    assert (read(message).get_content_type(), body_of(message)) == ("text/plain", "Grüße\n")


def test_a_message_without_a_body_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a body"):
        build(text=None, html=None)


BLANK = ["", " ", "\n", "\r\n \t\n", "\u00a0", "\u3000", "\u2028", "\ufeff", "\u200b"]


@pytest.mark.parametrize("blank", BLANK)
def test_a_blank_body_counts_as_none(blank: str) -> None:
    assert build(text="Hi", html=blank) == build(text="Hi", html=None)
    assert build(text=blank, html="<p>Hi") == build(text=None, html="<p>Hi")


@pytest.mark.parametrize("blank", BLANK)
def test_a_message_whose_bodies_are_blank_is_refused(blank: str) -> None:
    with pytest.raises(UnsendableField, match=r"^body_text: .*needs a body"):
        build(text=blank, html=blank)


def test_a_message_of_which_all_recipients_are_named_nowhere_has_a_group_of_nobody() -> None:
    assert read(build(recipients=()))["To"] == "undisclosed-recipients:;"


def test_the_date_is_given_in_utc() -> None:
    message = build(date=datetime(2024, 2, 29, 23, 0, tzinfo=timezone(timedelta(hours=-5))))
    date = read(message)["Date"]
    assert isinstance(date, DateHeader)
    assert date.datetime == datetime(2024, 3, 1, 4, 0, tzinfo=UTC)


def test_a_date_without_timezone_is_refused() -> None:
    with pytest.raises(ValueError, match="aware"):
        build(date=datetime(2024, 2, 29))  # noqa: DTZ001 - that is what is refused


@pytest.mark.parametrize(
    "message_id", ["1@x.example", "<1@x.example>\r\nBcc: eve@x.example", "<ä@x.example>", "<>", ""]
)
def test_a_message_id_without_its_form_is_refused(message_id: str) -> None:
    with pytest.raises(ValueError, match="Message-ID"):
        build(message_id=message_id)


def test_a_long_message_id_stays_on_one_line() -> None:
    message_id = f"<{'a' * 200}@x.example>"
    assert f"Message-ID: {message_id}\r\n".encode() in build(message_id=message_id)


def test_the_same_arguments_give_the_same_bytes() -> None:
    assert build(subject="Grüße", html="<p>ä</p>") == build(subject="Grüße", html="<p>ä</p>")


def test_another_message_id_gives_another_boundary() -> None:
    first, second = (read(build(html="<p>", message_id=f"<{n}@x.example>")) for n in (1, 2))
    assert first.get_boundary() != second.get_boundary()


def test_a_body_that_holds_another_message_s_boundary_is_whole() -> None:
    boundary = read(build(html="<p>")).get_boundary()
    message = build(text=f"--{boundary}--\nstill here", html="<p>")
    assert body_of(message) == f"--{boundary}--\nstill here\n"


@pytest.mark.parametrize("bad", ["a\rb", "a\nb", "a\r\nBcc: eve@x.example", "a\x00b"])
@pytest.mark.parametrize("place", ["subject", "reply_to", "header", "header_name"])
def test_cr_lf_and_nul_in_a_header_are_refused(place: str, bad: str) -> None:
    places: dict[str, dict[str, object]] = {
        "subject": {"subject": bad},
        "reply_to": {"reply_to": f"{bad} <help@x.example>"},
        "header": {"headers": {"X-Note": bad}},
        "header_name": {"headers": {bad: "note"}},
    }
    with pytest.raises(UnsendableField, match=r"^(subject|reply_to|headers).*(one line|a header's name)"):
        build(**places[place])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "space", ["\n", "\r\n", "\r", "\t", "\x00", "\x1b", "\x0b\x0c", "\x85", "\u2028", "  ", " \n "]
)
def test_of_white_space_and_controls_in_a_name_one_space_is_made(space: str) -> None:
    name = Mailbox(f"{space}Ann{space}Smith{space}", "ann@x.example")
    message = build(sender=name, recipients=[name, name])
    assert mailboxes(message, "From") == [("Ann Smith", "ann@x.example")]
    assert mailboxes(message, "To") == [("Ann Smith", "ann@x.example")] * 2


@pytest.mark.parametrize(
    "content", [Content("\ud800", "Hi", None), Content("Hi", "\ud800", None), Content("Hi", None, "\udfff")]
)
def test_half_a_character_is_refused_and_the_field_is_named(content: Content) -> None:
    with pytest.raises(UnsendableField, match=r"^(subject|body_text|body_html): .*surrogate"):
        build(content)


@pytest.mark.parametrize(
    "address",
    ["ann@x.example\r\n", "ann@ä.example", "ann", "ann@x.example, eve@x.example", "<ann@x.example>", ""],
)
def test_an_address_that_is_not_plain_is_refused(address: str) -> None:
    with pytest.raises(UnsendableField, match=r"^address: .*must be plain ASCII"):
        build(recipients=[Mailbox("", address)])


@pytest.mark.parametrize("name", ["From", "to", "BCC", "Message-ID", "Content-Type", "MIME-Version", "Resent-To"])
def test_a_header_that_is_set_here_cannot_be_given(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be given"):
        build(headers={name: "x"})


def test_own_headers_are_kept_as_they_are() -> None:
    unsubscribe = "<https://x.example/" + "u" * 120 + ">, <mailto:stop@x.example>"
    message = read(build(headers={"List-Unsubscribe": unsubscribe, "X-Empty": "", "X-Note": "Grüße"}))
    assert (message["List-Unsubscribe"], message["X-Empty"], message["X-Note"]) == (unsubscribe, "", "Grüße")


@given(LINE)
def test_any_subject_is_read_back(subject: str) -> None:
    message = build(subject=subject)
    assert read(message)["Subject"] == subject


@given(LINE)
def test_any_subject_keeps_to_the_wire(subject: str) -> None:
    message = build(subject=subject)
    assert_keeps_to_the_wire(message)
    assert max(map(len, header_lines(message))) <= 310


@given(st.lists(NAME, min_size=1, max_size=20))
def test_any_names_are_read_back(names: list[str]) -> None:
    recipients = [Mailbox(name, f"user{number}@x.example") for number, name in enumerate(names)]
    message = build(recipients=recipients)
    assert_keeps_to_the_wire(message)
    assert mailboxes(message, "To") == [(each.name, each.address) for each in recipients]


@pytest.mark.parametrize(
    "name",
    [
        "Ann",
        "Ann Example",
        "Example, Ann",
        'Ann "the post" Example',
        "Ann\\Example",
        "Ünal, Ann",
        "A. Example (Köln)",
        "=?utf-8?q?Eve?=",
        "eve@x.example",
        "Ann <eve@x.example>",
        "山田太郎" * 20,
        "Ann " * 40 + "Example",
    ],
)
def test_a_name_is_read_back_from_from_to_and_reply_to(name: str) -> None:
    quoted = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
    reply_to = f"{quoted} <a@x.example>" if "<" not in name else "a@x.example"
    mailbox = Mailbox(name, "a@x.example")
    message = build(sender=mailbox, recipients=[mailbox, mailbox], reply_to=reply_to)
    assert mailboxes(message, "From") == [(name, "a@x.example")]
    assert mailboxes(message, "To") == [(name, "a@x.example")] * 2
    assert mailboxes(message, "Reply-To") == [(name if "<" not in name else "", "a@x.example")]


def test_a_long_name_in_ascii_is_folded_at_its_spaces() -> None:
    name = "A support team whose title is much longer than one line of a header may ever hope to be"
    message = build(sender=Mailbox(name, "a@x.example"))
    assert b"=?" not in message
    assert max(map(len, header_lines(message))) <= 78
    assert read(message)["From"] == f"{name} <a@x.example>"


def test_a_long_quoted_name_is_folded_at_its_spaces() -> None:
    name = 'Example Company, Inc. (Customer Support), the "very best" Department of them all \\ or so'
    message = build(sender=Mailbox(name, "a@x.example"))
    assert b"=?" not in message
    assert max(map(len, header_lines(message))) <= 78
    assert mailboxes(message, "From") == [(name, "a@x.example")]


ASCII_NAME = st.lists(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60), min_size=1, max_size=12
).map(" ".join)


@given(ASCII_NAME.filter(lambda name: "=?" not in name))
def test_no_name_in_ascii_is_encoded(name: str) -> None:
    message = build(sender=Mailbox(name, "a@x.example"))
    assert b"=?" not in message
    assert mailboxes(message, "From") == [(name, "a@x.example")]


def encoded_words(message: bytes, header: str) -> list[str]:
    """What each encoded word of a header holds."""
    value = message_from_bytes(message, policy=policy.compat32)[header]
    return [str(make_header(decode_header(word))) for word in value.split() if word.startswith("=?")]


@pytest.mark.parametrize("header", ["Subject", "From"])
def test_encoded_words_end_between_words(header: str) -> None:
    text = "Große Grüße aus München und der schönen Oberpfalz, in die wir Sie längst einladen wollten"
    words = encoded_words(build(subject=text, sender=Mailbox(text, "a@x.example")), header)
    assert len(words) > 1
    assert "".join(words) == text
    assert all(word.endswith(" ") for word in words[:-1])


@pytest.mark.parametrize("cluster", ["e\u0301", "\u0e01\u0e34\u0e48", "👨\u200d👩\u200d👧", "👍\U0001f3fd", "❤\ufe0f"])
def test_encoded_words_never_part_a_character_from_its_marks(cluster: str) -> None:
    words = encoded_words(build(subject=cluster * 60), "Subject")
    assert len(words) > 1
    assert all(word == cluster * (len(word) // len(cluster)) for word in words)


@given(st.lists(st.text(WRITTEN, min_size=1, max_size=30), max_size=20).map(" ".join))
def test_encoded_words_are_short_enough_and_put_together_give_the_text(text: str) -> None:
    message = build(subject=f"é{text}")
    assert max(map(len, header_lines(message))) <= 76
    assert "".join(encoded_words(message, "Subject")) == f"é{text}"


STRUCTURED = [
    "List-Unsubscribe", "List-Unsubscribe-Post", "list-help", "List-Id", "References", "In-Reply-To", "X-Message-ID",
    "X-Original-Message-Id", "Auto-Response", "X-Auto-Response-Suppress", "Precedence", "Feedback-ID", "Archived-At",
    "Disposition-Notification-To",
]  # fmt: skip

TOKEN = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=900)


@given(st.sampled_from(STRUCTURED), st.lists(TOKEN, min_size=1, max_size=7), st.sampled_from([" ", "\t", "  ", " \t "]))
def test_a_structured_header_is_never_encoded(name: str, tokens: list[str], space: str) -> None:
    message = build(headers={name: space.join(tokens)})
    assert_keeps_to_the_wire(message)
    assert b" =?utf-8?" not in message
    value = message_from_bytes(message, policy=policy.compat32)[name]
    assert re.sub(r"(?<=[,>]) <", "<", " ".join(value.split())) == re.sub(r"(?<=[,>]) <", "<", " ".join(tokens))


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        ("<https://x.example/" + "a" * 900 + ">,<mailto:u@x.example>", 2),
        ("<" + "a" * 300 + "@x.example><" + "b" * 300 + "@x.example>", 2),
        ("<https://x.example/?q==?x?,y=?utf-8?q?z?=" + "a" * 60 + ">", 1),
    ],
)
@pytest.mark.parametrize("name", ["List-Unsubscribe", "X-Links"])
def test_a_list_in_angle_brackets_is_folded_before_them_only(name: str, value: str, lines: int) -> None:
    message = build(headers={name: value})
    header = message.partition(f"\r\n{name}:".encode())[2].partition(b"\r\nAuto-Submitted")[0]
    assert re.sub(rb"\r?\n? ", b"", header) == value.encode()
    assert len(header.split(b"\r\n")) == lines


def test_the_phrase_before_an_id_is_encoded_alone() -> None:
    message = build(headers={"List-Id": "Unser Brief für alle <news.x.example>"})
    assert re.search(rb"\r\nList-Id: =\?utf-8\?q\?.*\?=\s<news\.x\.example>\r\n", message)


def test_what_no_line_can_hold_is_encoded_where_that_means_something() -> None:
    message = build(headers={"X-Long": "y" * 1200})
    assert_keeps_to_the_wire(message)
    assert read(message)["X-Long"] == "y" * 1200


@pytest.mark.parametrize("text", ["Grüße", "é", "Ça va ? Très bien, merci.", "Chào buổi sáng", "naïve " * 100])
def test_text_of_few_letters_beyond_ascii_is_quoted_printable(text: str) -> None:
    message = build(text=text, html=f"<p>{text}</p>")
    assert message.count(b"quoted-printable") == 2
    assert body_of(message) == f"{text}\n"


@pytest.mark.parametrize("text", ["Привет, мир! Как у вас дела сегодня?", "日本語の手紙です。" * 20])
def test_short_text_in_another_script_is_quoted_printable(text: str) -> None:
    message = build(text=text)
    assert b"quoted-printable" in message
    assert b"base64" not in message
    assert body_of(message) == f"{text}\n"


@pytest.mark.parametrize("text", ["Привет, мир! Как у вас дела сегодня? " * 40, "日本語の手紙です。" * 100])
def test_text_that_quoted_printable_would_double_is_base64(text: str) -> None:
    message = build(text=text)
    assert b"base64" in message
    assert body_of(message) == f"{text}\n"


def test_a_long_list_of_recipients_is_folded() -> None:
    recipients = [Mailbox(f"Ännchen Nr. {number}", f"user{number}@x.example") for number in range(1000)]
    message = build(recipients=recipients)
    assert max(map(len, header_lines(message))) <= 78
    assert mailboxes(message, "To") == [(each.name, each.address) for each in recipients]


@pytest.mark.parametrize("subject", ["word " * 200 + "end", "Grüße " * 200, "ä" * 1000, "x y" * 300, "🎉" * 300])
def test_a_long_subject_is_folded(subject: str) -> None:
    message = build(subject=subject)
    assert max(map(len, header_lines(message))) <= 76
    assert read(message)["Subject"] == subject


def test_a_word_longer_than_a_line_may_be_is_encoded() -> None:
    message = build(subject="x" * 2000)
    assert_keeps_to_the_wire(message)
    assert read(message)["Subject"] == "x" * 2000


@given(BODY, BODY)
def test_any_bodies_are_read_back(text: str, html: str) -> None:
    message = build(text=text, html=html)
    assert_keeps_to_the_wire(message)
    assert body_of(message).rstrip("\n") == text.rstrip("\n")
    assert body_of(message, "html").rstrip("\n") == html.rstrip("\n")


@given(st.text(max_size=500).filter(lambda text: not is_blank(text)))
def test_a_body_of_any_characters_keeps_to_the_wire(text: str) -> None:
    assert_keeps_to_the_wire(build(text=text))


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_lines_of_a_body_end_with_crlf_however_they_were_written(line_end: str) -> None:
    assert build(text=line_end.join(["one", ".", "two"])).endswith(b"\r\n\r\none\r\n.\r\ntwo\r\n")


@pytest.mark.parametrize("text", ["x" * 5000, "word " * 1000, "ä" * 5000, "short\n" + "x" * 999])
def test_a_long_line_of_a_body_is_encoded_in_lines_of_76(text: str) -> None:
    message = build(text=text)
    assert max(map(len, message.split(b"\r\n"))) <= 76
    assert body_of(message) == text + "\n"


def test_control_characters_of_a_body_travel_encoded() -> None:
    message = build(text="a\x00b\x0bc\x1bd")
    assert_keeps_to_the_wire(message)
    assert body_of(message) == "a\x00b\x0bc\x1bd\n"


def test_a_line_that_begins_with_from_stays_as_it_is() -> None:
    assert build(text="From here on").endswith(b"\r\nFrom here on\r\n")


PLAIN = (
    st.lists(st.text(st.characters(min_codepoint=9, max_codepoint=127), max_size=90), max_size=8)
    .map("\n".join)
    .filter(lambda text: not is_blank(text))
)


@given(PLAIN | BODY, PLAIN | BODY | st.none())
def test_a_body_that_is_spliced_is_to_the_byte_what_composing_makes(text: str, html: str | None) -> None:
    spliced = build(text=text, html=html)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("actors.content.mime._as_it_stands", lambda _body: None)
        assert spliced == build(text=text, html=html)


def test_a_body_that_holds_the_skeletons_boundary_is_whole() -> None:
    body = f"--=_{'0' * 40}\nthe html body\n"
    assert body_of(build(text=body, html=body)) == body
    assert body_of(build(text=body, html=body), "html") == body
