from actors.ration import CHEAP, REST, Ration


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_cheap_looks_from_the_beginning_are_free_and_dear_ones_take_a_tenth_of_the_time() -> None:
    clock = Clock()
    ration = Ration(clock)
    assert ration.is_due
    with ration.measured():
        clock.now += CHEAP
    assert ration.is_due
    with ration.measured():
        clock.now += 1.0
    assert not ration.is_due
    clock.now += REST * 1.0 - 0.01
    assert not ration.is_due
    clock.now += 0.02
    assert ration.is_due
