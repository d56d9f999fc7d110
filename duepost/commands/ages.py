"""Moments on the command line, ISO 8601 with a zone or an age; and durations."""

from datetime import UTC, datetime, timedelta

from duepost.commands.context import BadInput

#: Seconds of the units of `--since`.
UNITS = {"m": 60, "h": 3600, "d": 86_400}


def moment_of(text: str, option: str = "--since") -> datetime:
    """The moment that an option such as `--since` means, in UTC.

    Raises:
        BadInput: it is neither an ISO 8601 time with its zone nor an age.
    """
    seconds = _seconds(text)
    if seconds is not None:
        return datetime.now(UTC) - timedelta(seconds=seconds)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise BadInput(
            f"{option}: must be an ISO 8601 time with its zone such as 2026-11-25T18:00Z, or an age such as 2h"
        )
    return moment.astimezone(UTC)


def duration_of(text: str, option: str) -> float:
    """The seconds that an option means.

    Raises:
        BadInput: it is no number of minutes, hours or days, or more than a year.
    """
    seconds = _seconds(text)
    if seconds is None or seconds > 366 * UNITS["d"]:
        raise BadInput(f"{option}: must be a number of minutes, hours or days, such as 0m, 90m, 2h or 3d")
    return float(seconds)


def _seconds(text: str) -> int | None:
    number, unit = text[:-1], text[-1:]
    is_age = unit in UNITS and number.isascii() and number.isdigit() and len(number) <= 6
    return int(number) * UNITS[unit] if is_age else None
