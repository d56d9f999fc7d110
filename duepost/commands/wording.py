"""Times and numbers in words."""

from collections.abc import Mapping
from datetime import UTC, datetime

from models.suppression import Suppression

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def span(seconds: float) -> str:
    """A span of time: `11 s`, `131 s`, `5 min`, `2 h 5 min`, `3 days`."""
    whole = max(0, round(seconds))
    if whole < 3 * _MINUTE:
        return f"{whole} s"
    if whole < 2 * _HOUR:
        return f"{whole // _MINUTE} min"
    if whole < 2 * _DAY:
        hours, minutes = divmod(whole // _MINUTE, 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{whole // _DAY} days"


def moment(value: object) -> str:
    """A moment, from the database or from its JSON, to the second, in UTC."""
    found = value if isinstance(value, datetime) else read_moment(str(value))
    return f"{found.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if found is not None else str(value)


def seconds_until(value: object) -> float | None:
    """Seconds until a moment of the database's JSON, by this machine's clock; None where it is none."""
    found = read_moment(str(value))
    return None if found is None else (found - datetime.now(UTC)).total_seconds()


def read_moment(text: str) -> datetime | None:
    """A moment of the database's JSON; None where it is one that Python does not know, such as `infinity`."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def count(number: int, word: str, words: str | None = None) -> str:
    """`1 email`, `2 emails`."""
    return f"{number} {word if number == 1 else words or word + 's'}"


def suppression_words(found: Suppression) -> str:
    """Who is suppressed, for what, since and until when, and why; without a full stop."""
    scope = f" for kind {found.kind}" if found.kind is not None else ""
    until = f" until {moment(found.until)}" if found.until is not None else ""
    why = "; ".join(part for part in (found.reason, found.reply) if part)
    return f"{found.address} is suppressed{scope} since {moment(found.suppressed_at)}{until} ({found.source})" + (
        f": {why}" if why else ""
    )


def counts(numbers: Mapping[str, int]) -> str:
    """`2 sent, 1 undeliverable`; those that are 0 are left out."""
    return ", ".join(f"{number} {word}" for word, number in numbers.items() if number) or "none"
