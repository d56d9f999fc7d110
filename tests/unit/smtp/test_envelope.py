import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.channels.smtp.envelope import END_OF_DATA, Envelope, normalise, stuff_dots

contents = st.lists(
    st.one_of(st.binary(max_size=5), st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"..", b"\r\n.\r\n", b"\n.\n"]))
).map(b"".join)


def unstuff(stuffed: bytes) -> bytes:
    """What a relay does (RFC 5321 section 4.5.2)."""
    return re.sub(rb"(?m)^\.", b"", stuffed)


@pytest.mark.parametrize(
    ("content", "normal"),
    [
        (b"", b""),
        (b"a", b"a\r\n"),
        (b"a\nb\n", b"a\r\nb\r\n"),
        (b"a\rb\r", b"a\r\nb\r\n"),
        (b"a\r\nb\r\n", b"a\r\nb\r\n"),
        (b"a\n\rb", b"a\r\n\r\nb\r\n"),
        (b"a\r\r\nb", b"a\r\n\r\nb\r\n"),
    ],
)
def test_every_line_end_becomes_crlf(content: bytes, normal: bytes) -> None:
    assert normalise(content) == normal


@given(contents)
def test_normal_content_has_no_bare_cr_or_lf_and_stays_as_it_is(content: bytes) -> None:
    normal = normalise(content)
    assert re.search(rb"\r(?!\n)|(?<!\r)\n", normal) is None
    assert normalise(normal) == normal


@given(contents)
def test_a_relay_reads_back_the_normal_content(content: bytes) -> None:
    assert unstuff(stuff_dots(normalise(content))) == normalise(content)


@given(contents)
def test_the_end_of_data_comes_at_the_end_and_nowhere_else(content: bytes) -> None:
    wire = b"\r\n" + stuff_dots(normalise(content)) + END_OF_DATA
    assert wire.index(b"\r\n.\r\n") == len(wire) - 5


@pytest.mark.parametrize("character", ["\r", "\n", "\0", " ", "<", ">", "\t", "\x7f", "é"])
def test_an_address_cannot_break_out_of_its_command(character: str) -> None:
    bad = f"ada{character}@example.com"
    with pytest.raises(ValueError, match="an address in an envelope must be ASCII without"):
        Envelope("from@example.com", ("ok@example.com", bad), b"")
    with pytest.raises(ValueError, match="an address in an envelope must be ASCII without"):
        Envelope(bad, ("ok@example.com",), b"")


@pytest.mark.parametrize("recipients", [(), ("",)])
def test_an_envelope_without_a_recipient_is_refused(recipients: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="at least one recipient"):
        Envelope("from@example.com", recipients, b"")


def test_the_return_path_may_be_empty() -> None:
    assert Envelope("", ("ada@example.com",), b"").sender == ""
