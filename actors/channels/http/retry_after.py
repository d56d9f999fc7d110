"""When an answer asks to be tried again: Retry-After in its forms (RFC 9110 section 10.2.3)."""

import datetime as dt
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

#: Seconds. Who asks for a longer pause gets this one, and is asked again.
LONGEST: Final = 86_400.0

_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH: Final = rf"(?P<month>{'|'.join(_MONTHS)})"
_TIME: Final = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_DATES: Final = (
    re.compile(rf"[A-Z][a-z]{{2}}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT"),
    # RFC 850, and C's asctime: obsolete, and still to be understood.
    re.compile(rf"[A-Z][a-z]{{5,8}}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT"),
    re.compile(rf"[A-Z][a-z]{{2}} {_MONTH} (?P<day>[0-9]{{2}}| [0-9]) {_TIME} (?P<year>[0-9]{{4}})"),
)
#: `int` and `float` take more than the RFC does: 1_000, digits of other scripts, nan, inf.
_SECONDS: Final = re.compile(r"0*(?P<digits>[0-9]+)")


class RetryAfter(NamedTuple):
    """A pause that was asked for.

    Attributes:
        seconds: of it, from now on, `LONGEST` at the most.
        is_capped: whether more was asked for.
    """

    seconds: float
    is_capped: bool


def retry_after(values: Iterable[str], now: float) -> RetryAfter | None:
    """Reads the values of Retry-After: the longest pause among them; None where none asks for one.

    Nonsense, and what is past, asks for none.

    Args:
        values: of the header, each as it came.
        now: seconds since 1970.
    """
    asked = [pause for value in values if (pause := _seconds(value.strip(" \t"), now)) is not None]
    return capped(max(asked, default=0.0))


def capped(seconds: float) -> RetryAfter | None:
    """A pause of this many seconds, no longer than `LONGEST`; None where that is none (nan, inf, negative or 0)."""
    if not 0 < seconds < float("inf"):
        return None
    return RetryAfter(float(min(seconds, LONGEST)), seconds > LONGEST)


def _seconds(value: str, now: float) -> float | None:
    if number := _SECONDS.fullmatch(value):
        # Of more digits all are too many.
        return float(number["digits"][:18])
    for form in _DATES:
        if date := form.fullmatch(value):
            return _seconds_until(date, now)
    return None


def _seconds_until(date: re.Match[str], now: float) -> float | None:
    try:
        return _moment(date, now) - now
    except (ValueError, OverflowError):
        return None


def _moment(date: re.Match[str], now: float) -> float:
    year = int(date["year"])
    if len(date["year"]) == 2:
        # What seems to be more than 50 years ahead was the last such year.
        this_year = dt.datetime.fromtimestamp(now, dt.UTC).year
        year += this_year - this_year % 100
        year -= 100 if year > this_year + 50 else 0
    day, hour, minute, second = (int(date[name]) for name in ("day", "hour", "minute", "second"))
    month = _MONTHS.index(date["month"]) + 1
    return dt.datetime(year, month, day, hour, minute, second, tzinfo=dt.UTC).timestamp()
