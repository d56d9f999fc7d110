"""What people may be shown of an answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.channels.http.excerpt import SHOWN, excerpt
from actors.channels.http.request import Request

REQUEST = Request(
    "POST",
    "/services/T0AA/TOKEN-x_1?key=QUERY%20STRING",
    (("authorization", "Basic dXNlcjpCT1RLRVk="), ("webhook-signature", "v1,SIGNATURE+/=")),
    b'{"name":"Ann Example","card":"4111-1111"}',
)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (b"", ""),
        (b"invalid_blocks", "invalid_blocks"),
        (b"no route to /services/T0AA/TOKEN-x_1", "no route to ***"),
        (b"TOKEN-x is wrong, token-X_1 too, QUERY STRING", "*** is wrong, *** too, *** ***"),
        (b"BOTKEY dXNlcjpCT1RLRVk= SIGNATURE+/= Example 4111-1111", "*** *** *** *** ***"),
        (b"<html><head><style>x</style><script>y</script></head><h1>Not\r\n\tFound</h1>", "Not Found"),
        (b"\x1b[31mred\x07", "\N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}"),
        (b"\x00\x01binary", ""),
        ("für Sie".encode(), "für Sie"),
        (b"\xff\xfe", "\N{REPLACEMENT CHARACTER}" * 2),
    ],
)
def test_words_that_the_request_had_are_hidden(said: bytes, shown: str) -> None:
    assert excerpt(said, REQUEST) == shown


@given(st.binary(max_size=3_000))
def test_it_is_one_short_line_whatever_was_said(said: bytes) -> None:
    shown = excerpt(said, REQUEST)
    assert len(shown) <= SHOWN * 3
    assert "\n" not in shown
