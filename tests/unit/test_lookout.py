"""How often workers look for what has fallen due."""

import pytest

from actors.lookout import FARTHEST_APART, LONGEST_PAUSE, SHORTEST_PAUSE, STAYS_SHORT_FOR, Pace


def looks_of_all_in_an_idle_second(workers: int) -> float:
    pace = Pace(workers)
    for _ in range(10):
        pause = pace.after(1000.0, found=False)
    return workers / pause


@pytest.mark.parametrize("workers", [1, 2, 5, 20])
def test_however_many_workers_look_they_look_at_most_twenty_times_a_second_together(workers: int) -> None:
    assert looks_of_all_in_an_idle_second(workers) == pytest.approx(max(1 / LONGEST_PAUSE, workers / FARTHEST_APART))
    assert looks_of_all_in_an_idle_second(workers) <= 20


def test_no_worker_waits_for_longer_than_a_second() -> None:
    assert Pace(1000).after(0.0, found=False) == FARTHEST_APART


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_what_was_found_lets_all_look_a_hundred_times_a_second_together(workers: int) -> None:
    assert workers / Pace(workers).after(0.0, found=True) == pytest.approx(100)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_pause_stays_short_while_others_may_find_the_next_one_and_grows_then(workers: int) -> None:
    pace = Pace(workers)
    pace.after(0.0, found=True)
    stays_until = STAYS_SHORT_FOR * workers
    assert pace.after(stays_until - 0.01, found=False) == SHORTEST_PAUSE * workers
    assert pace.after(stays_until, found=False) == 2 * SHORTEST_PAUSE * workers
    assert pace.after(stays_until, found=False) == 4 * SHORTEST_PAUSE * workers
    assert pace.after(stays_until, found=False) == LONGEST_PAUSE * workers
