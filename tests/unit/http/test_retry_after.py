"""When an answer asks to be tried again."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.channels.http.retry_after import LONGEST, RetryAfter, capped, retry_after

NOW = dt.datetime(2026, 11, 25, 22, 58, tzinfo=dt.UTC).timestamp()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120),
        (" 120\t", 120),
        ("000120", 120),
        ("Wed, 25 Nov 2026 23:00:00 GMT", 120),
        ("Wednesday, 25-Nov-26 23:00:00 GMT", 120),
        ("Wed Nov 25 23:00:00 2026", 120),
        ("Thu Nov 26 00:00:00 2026", 3720),
    ],
)
def test_all_forms_are_understood(value: str, seconds: float) -> None:
    assert retry_after([value], NOW) == RetryAfter(seconds, is_capped=False)


@pytest.mark.parametrize(
    "value",
    ["86401", "99999999999999999999", "9" * 65_536, "Fri, 31 Dec 9999 23:59:59 GMT", "Tue, 24 Nov 2076 22:58:00 GMT"],
)
def test_what_is_too_long_is_capped_and_said_to_be(value: str) -> None:
    assert retry_after([value], NOW) == RetryAfter(LONGEST, is_capped=True)


@pytest.mark.parametrize(
    "value",
    [
        *(
            "",
            "0",
            "000",
            "-5",
            "+5",
            "nan",
            "inf",
            "1e400",
            "1_000",
            "１２",
            "1.5",
            "0x10",
            "12 seconds",
            "12, 13",
            "5;",
        ),
        *("Wed, 25 Nov 2026 22:00:00 GMT", "Sun Nov  1 08:49:37 2026", "Sunday, 06-Nov-94 08:49:37 GMT"),
        *("Wed, 21 Oct 9999 99:99:99 GMT", "Wed, 31 Feb 2027 00:00:00 GMT", "Wed, 25 Nov 0000 00:00:00 GMT"),
        *("Wed, 25 Nov 2026 23:00:00", "Wed, 25 Nov 2026 23:00:00 CET", "Wed, 25 Nov 2026 23:00:00 +0100"),
        *("25 Nov 2026 23:00:00 GMT", "Wed, 25 nov 2026 23:00:00 GMT", "Sunday, 06-Nov-77 08:49:37 GMT"),
    ],
)
def test_what_is_past_and_nonsense_ask_for_nothing(value: str) -> None:
    assert retry_after([value], NOW) is None


def test_of_several_the_longest_counts() -> None:
    assert retry_after(["5", "nonsense", "7", "Wed, 25 Nov 2026 22:58:06 GMT"], NOW) == RetryAfter(7, is_capped=False)
    assert retry_after([], NOW) is None


@given(st.text(max_size=40))
def test_no_text_raises(value: str) -> None:
    pause = retry_after([value], NOW)
    assert pause is None or 0 < pause.seconds <= LONGEST


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), -float("inf")])
def test_what_is_no_pause_is_none(seconds: float) -> None:
    assert capped(seconds) is None
