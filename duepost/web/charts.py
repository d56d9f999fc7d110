"""Numbers as charts: bars whose corners the server has worked out, so that a page needs no script for them."""

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from models import reports
from models.database.connections import Database
from models.reports import Minute

#: Units of a chart, in its own coordinates: the page stretches it.
WIDTH, HEIGHT = 600.0, 120.0

MINUTES = 60


#: Seconds for which the last hour is not read again: many tabs ask for it.
FRESH = 5.0


class Minutes:
    """The last hour's minutes, read once for all who ask at about the same time. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read_at: float | None = None
        self._found: Sequence[Minute] = ()

    def read(self, database: Database) -> Sequence[Minute]:
        """As they were at most `FRESH` seconds ago; the lock is held while they are read, so that one thread does."""
        with self._lock:
            if self._read_at is None or time.monotonic() - self._read_at > FRESH:
                self._found = reports.last_hour(database)
                self._read_at = time.monotonic()
            return self._found


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a chart, and what it says to those who read it."""

    x: float
    y: float
    width: float
    height: float
    sort: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of the last hour, a minute a place.

    Attributes:
        bars: from the left.
        top: what the highest place stands for, a round number.
        words: the same in a sentence.
    """

    bars: Sequence[Bar]
    top: float
    words: str


@dataclass(frozen=True, slots=True)
class Hour:
    """The last hour: what ended in each minute, and how late what was sent was.

    Attributes:
        rates: bars of what was sent, and of what did not arrive above them.
        lateness: bars of the 95th percentile, the median in front.
        minutes: the numbers, the newest first; minutes without any are left out.
    """

    rates: Chart
    lateness: Chart
    minutes: Sequence[Minute]


def last_hour(minutes: Sequence[Minute]) -> Hour:
    """The charts of it."""
    sent, others = sum(each.sent for each in minutes), sum(each.others for each in minutes)
    late = max((each.late_p95 for each in minutes if each.late_p95 is not None), default=0.0)
    most = round_top(max((each.sent + each.others for each in minutes), default=0))
    latest = round_top(late)
    return Hour(
        rates=Chart(
            [bar for each in minutes for bar in _stacked(each, most)],
            most,
            f"{sent} sent and {others} ended otherwise in the last hour; at most {most:g} a minute",
        ),
        lateness=Chart(
            [bar for each in minutes for bar in _lateness(each, latest)],
            latest,
            f"of each minute's emails, 95 of 100 were at most {late:.1f} s late in the worst one",
        ),
        minutes=minutes,
    )


def round_top(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, … that is not below a value."""
    if value <= 1:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1.0, 2.0, 5.0, 10.0) if step * power >= value)


def _stacked(minute: Minute, top: float) -> list[Bar]:
    sent, others = HEIGHT * minute.sent / top, HEIGHT * minute.others / top
    return [
        bar
        for bar in (
            _bar(minute, HEIGHT - sent, sent, "sent"),
            _bar(minute, HEIGHT - sent - others, others, "others"),
        )
        if bar.height
    ]


def _lateness(minute: Minute, top: float) -> list[Bar]:
    if minute.late_p95 is None or minute.late_p50 is None:
        return []
    p95, p50 = HEIGHT * max(minute.late_p95, 0) / top, HEIGHT * max(minute.late_p50, 0) / top
    return [_bar(minute, HEIGHT - p95, p95, "p95"), _bar(minute, HEIGHT - p50, p50, "p50")]


def _bar(minute: Minute, y: float, height: float, sort: str) -> Bar:
    step = WIDTH / MINUTES
    return Bar(round((MINUTES - 1 - minute.ago) * step + 1, 1), round(y, 1), step - 2, round(height, 1), sort)
