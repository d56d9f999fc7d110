from actors.ration import CHEAP, REST, SEVERAL, Ration
from tests.clock import Clock


def look(ration: Ration, clock: Clock, seconds: float) -> None:
    assert ration.is_due
    with ration.measured():
        clock.now += seconds


def test_cheap_looks_from_the_beginning_are_free_and_dear_ones_are_rationed() -> None:
    clock = Clock()
    ration = Ration(clock)
    for _ in range(SEVERAL):
        look(ration, clock, CHEAP)
    for _ in range(SEVERAL):
        look(ration, clock, 1.0)
    assert not ration.is_due
    clock.now += REST * 1.0 - 0.01
    assert not ration.is_due
    clock.now += 0.02
    assert ration.is_due


def test_a_look_that_is_slow_for_another_reason_changes_nothing() -> None:
    clock = Clock()
    ration = Ration(clock)
    for seconds in (1.0, CHEAP, 1.0, 1.0, CHEAP, 1.0):
        look(ration, clock, seconds)
    assert ration.is_due
