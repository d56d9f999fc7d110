import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.channels.smtp.replies import MAX_LINE, MAX_REPLY, MalformedReply, Reply, ReplyParser
from actors.ruling import MAX_TEXT


def parse(*chunks: bytes) -> tuple[list[Reply], str | None]:
    """Gives all replies, and the fault that ended them, if one did."""
    parser, replies = ReplyParser(), []
    try:
        for chunk in chunks:
            parser.feed(chunk)
            while (reply := parser.next_reply()) is not None:
                replies.append(reply)
    except MalformedReply as malformed:
        return replies, str(malformed)
    return replies, None


def one(data: bytes) -> Reply:
    replies, fault = parse(data)
    assert fault is None
    (reply,) = replies
    return reply


def test_a_reply_has_its_code_and_text() -> None:
    reply = one(b"250 2.1.0 ok\r\n")
    assert (reply.code, reply.enhanced_code, reply.text) == (250, "2.1.0", "2.1.0 ok")


def test_the_lines_of_a_reply_are_joined_to_one() -> None:
    reply = one(b"550-5.1.1 no such user\r\n550-\r\n550 5.1.1 here\r\n")
    assert reply.lines == ("5.1.1 no such user", "", "5.1.1 here")
    assert reply.text == "5.1.1 no such user 5.1.1 here"


def test_a_code_alone_is_a_reply() -> None:
    assert one(b"250\r\n") == Reply(250, ("",))


def test_a_bare_line_feed_ends_a_line_too() -> None:
    assert one(b"250 ok\n").text == "ok"


def test_several_replies_in_one_piece_come_one_by_one() -> None:
    replies, _ = parse(b"250 a\r\n550 b\r\n354 c\r\n")
    assert [reply.code for reply in replies] == [250, 550, 354]


def test_an_unfinished_reply_is_none_yet() -> None:
    parser = ReplyParser()
    parser.feed(b"250-one\r\n250 tw")
    assert parser.next_reply() is None
    assert parser.pending


def test_nothing_is_pending_after_the_last_reply() -> None:
    parser = ReplyParser()
    parser.feed(b"250-one\r\n250 two\r\n")
    assert parser.next_reply() is not None
    assert not parser.pending


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"hello\r\n",
        b"25\r\n",
        b"2500 ok\r\n",
        b"250:ok\r\n",
        b" 250 ok\r\n",
        b"199 ok\r\n",
        b"600 ok\r\n",
    ],
)
def test_what_is_no_reply_is_malformed(data: bytes) -> None:
    assert parse(data)[1] is not None


def test_a_reply_with_two_codes_is_malformed() -> None:
    assert parse(b"250-ok\r\n550 no\r\n")[1] == "a reply with two codes, 250 and 550"


@pytest.mark.parametrize(("length", "fits"), [(MAX_LINE, True), (MAX_LINE + 1, False)])
def test_a_line_has_a_greatest_length(length: int, fits: bool) -> None:
    assert (parse(b"250 " + b"x" * (length - 6) + b"\r\n")[1] is None) is fits


def test_a_line_that_never_ends_is_malformed() -> None:
    assert parse(b"250 " + b"x" * MAX_LINE)[1] is not None


def test_a_reply_that_never_ends_is_malformed() -> None:
    line = b"250-" + b"x" * 1000 + b"\r\n"
    assert parse(*[line] * (MAX_REPLY // len(line)))[1] is None
    assert parse(*[line] * (MAX_REPLY // len(line) + 1))[1] is not None


def test_once_malformed_always_malformed() -> None:
    parser = ReplyParser()
    parser.feed(b"what\r\n250 ok\r\n")
    for _ in range(2):
        with pytest.raises(MalformedReply):
            parser.next_reply()


@pytest.mark.parametrize(
    ("line", "enhanced"),
    [
        (b"550 5.1.10 null MX", "5.1.10"),
        (b"550 5.7.509", "5.7.509"),
        (b"550 4.1.1 class of another code", None),
        (b"550 see 5.1.1 elsewhere", None),
        (b"550 5.1.1234 too long", None),
        (b"550 5.1.1.1 an address", None),
        (b"550 5.1 too short", None),
        (b"354 3.0.0 no such class", None),
    ],
)
def test_an_enhanced_code_stands_first_and_has_the_codes_class(line: bytes, enhanced: str | None) -> None:
    assert one(line + b"\r\n").enhanced_code == enhanced


def test_text_is_one_short_line_without_control_characters() -> None:
    text = one(b"550 a\x00\x1b[31m\rb" + b"x" * 1000 + b"\r\n").text
    assert text.isprintable()
    assert len(text) == MAX_TEXT


reply_like = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([b"250", b"550", b"250 ", b"250-", b"\r\n", b"\n", b"5.1.1 no", b"354 go\r\n", b"x" * 4090]),
)


@given(st.lists(reply_like, max_size=30).map(b"".join))
def test_arbitrary_bytes_give_replies_or_malformed_reply_and_nothing_else(data: bytes) -> None:
    replies, _ = parse(data)
    for reply in replies:
        assert 200 <= reply.code <= 599
        assert len(reply.text) <= MAX_TEXT
        assert reply.text.isprintable() or not reply.text.isascii()


@given(st.lists(reply_like, max_size=30))
def test_how_bytes_are_cut_into_pieces_does_not_matter(chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    assert parse(*chunks) == parse(whole) == parse(*(bytes([byte]) for byte in whole))
