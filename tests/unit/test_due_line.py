"""How a process goes through a line of due emails, by a clock that a test moves."""

import pytest

from actors.delivery.due_line import LEFT_TO_THE_SCHEDULER, LOOK_INTERVAL, OVERLAP, DueLine
from actors.delivery.throughput import WINDOW, Throughput
from models.database.full_scan_throttle import CHEAP, REST, SEVERAL
from models.emails import FIRST_PLACE, FIRST_PLACES, DueClaim, Place, Places

SIZE = 8


class Clock:
    """Seconds that only a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Table:
    """What claims find, and from where they were asked to go on."""

    def __init__(self, clock: Clock, *, seconds: float = 0.0) -> None:
        self._clock = clock
        self._seconds = seconds
        self.found = SIZE
        self.asked: list[tuple[Places, float]] = []

    def claim(self, places: Places, overlap: float) -> DueClaim:
        self.asked.append((places, overlap))
        self._clock.now += self._seconds
        normal = Place("2026-01-01", len(self.asked)) if self.found else None
        return DueClaim([], self.found, (None, normal, None))


@pytest.fixture
def clock() -> Clock:
    return Clock()


def slow_line(clock: Clock) -> tuple[DueLine, Table]:
    """A line whose beginning is expensive: the next claims go on from where the last one ended."""
    line, table = DueLine(clock), Table(clock, seconds=2 * CHEAP)
    for _ in range(SEVERAL):
        line.claim(SIZE, table.claim)
    assert table.asked == [(FIRST_PLACES, 0.0)] * SEVERAL
    table.asked.clear()
    return line, table


def test_a_claim_that_finds_all_it_asked_for_is_followed_by_the_next_at_once(clock: Clock) -> None:
    line = DueLine(clock)
    line.claim(SIZE, Table(clock).claim)
    assert line.is_look_due
    assert line.is_long


def test_one_that_finds_less_is_followed_after_a_while_or_when_something_falls_due(clock: Clock) -> None:
    line, table = DueLine(clock), Table(clock)
    table.found = SIZE - 1
    line.claim(SIZE, table.claim)
    assert not line.is_long
    assert not line.is_look_due
    line.look_soon()
    assert line.is_look_due
    line.claim(SIZE, table.claim)
    clock.now += LOOK_INTERVAL
    assert line.is_look_due


def test_a_cheap_line_is_claimed_from_its_beginning_each_time(clock: Clock) -> None:
    line, table = DueLine(clock), Table(clock)
    for _ in range(2 * SEVERAL):
        line.claim(SIZE, table.claim)
    assert table.asked == [(FIRST_PLACES, 0.0)] * 2 * SEVERAL


def test_an_expensive_one_goes_on_from_its_place_and_goes_back_once_a_second(clock: Clock) -> None:
    line, table = slow_line(clock)
    for _ in range(3):
        line.claim(SIZE, table.claim)
    assert [overlap for _, overlap in table.asked] == [OVERLAP, 0.0, 0.0]
    assert table.asked[1][0] == Places(FIRST_PLACE, Place("2026-01-01", 1), FIRST_PLACE)
    clock.now += OVERLAP
    line.claim(SIZE, table.claim)
    assert table.asked[-1][1] == OVERLAP


def test_it_begins_again_at_the_beginning_after_a_long_while(clock: Clock) -> None:
    line, table = slow_line(clock)
    clock.now += REST * 2 * CHEAP + 1
    line.claim(SIZE, table.claim)
    assert table.asked == [(FIRST_PLACES, 0.0)]


def test_a_place_is_kept_where_nothing_was_found(clock: Clock) -> None:
    line, table = slow_line(clock)
    line.claim(SIZE, table.claim)
    table.found = 0
    line.claim(SIZE, table.claim)
    line.claim(SIZE, table.claim)
    assert table.asked[-1][0] == Places(FIRST_PLACE, Place("2026-01-01", 1), FIRST_PLACE)


def test_a_line_that_cannot_be_claimed_together_is_left_to_the_scheduler_for_a_while(clock: Clock) -> None:
    def fail(places: Places, overlap: float) -> DueClaim:
        raise ValueError(places, overlap)

    line = DueLine(clock)
    with pytest.raises(ValueError, match="infinity"):
        line.claim(SIZE, fail)
    assert not line.is_long
    clock.now += LEFT_TO_THE_SCHEDULER - 0.1
    assert not line.is_look_due
    clock.now += 0.1
    assert line.is_look_due


def test_throughput_is_that_of_the_last_window(clock: Clock) -> None:
    throughput = Throughput(clock)
    assert throughput.a_second == 0
    for _ in range(50):
        throughput.note()
    clock.now += WINDOW
    assert throughput.a_second == pytest.approx(50 / WINDOW)
    clock.now += 4 * WINDOW
    assert throughput.a_second == 0
