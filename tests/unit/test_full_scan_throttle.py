from models.database.full_scan_throttle import CHEAP, REST, SEVERAL, FullScanThrottle
from tests.clock import Clock


def look(full_scan_throttle: FullScanThrottle, clock: Clock, seconds: float) -> None:
    assert full_scan_throttle.is_due
    with full_scan_throttle.measured():
        clock.now += seconds


def test_cheap_looks_from_the_beginning_are_free_and_costly_ones_are_throttled() -> None:
    clock = Clock()
    full_scan_throttle = FullScanThrottle(clock)
    for _ in range(SEVERAL):
        look(full_scan_throttle, clock, CHEAP)
    for _ in range(SEVERAL):
        look(full_scan_throttle, clock, 1.0)
    assert not full_scan_throttle.is_due
    clock.now += REST * 1.0 - 0.01
    assert not full_scan_throttle.is_due
    clock.now += 0.02
    assert full_scan_throttle.is_due


def test_a_look_that_is_slow_for_another_reason_changes_nothing() -> None:
    clock = Clock()
    full_scan_throttle = FullScanThrottle(clock)
    for seconds in (1.0, CHEAP, 1.0, 1.0, CHEAP, 1.0):
        look(full_scan_throttle, clock, seconds)
    assert full_scan_throttle.is_due
