"""When everybody is refused with the same words."""

import pytest

from actors.delivery.safety_net import DEAD_IN_A_ROW, DOMAINS_IN_A_ROW, IN_A_ROW, is_everybody_refused


def of_one_domain(count: int) -> list[str]:
    return [f"user{number}@example.com" for number in range(count)]


def of_many_domains(count: int) -> list[str]:
    return [f"user@{number}.example.com" for number in range(count)]


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ([], False),
        (of_one_domain(IN_A_ROW - 1), False),
        (of_one_domain(IN_A_ROW), True),
        (of_many_domains(DOMAINS_IN_A_ROW - 1), False),
        (of_many_domains(DOMAINS_IN_A_ROW), True),
        (["ann@example.com"] * IN_A_ROW, False),
        (["ann@example.com", "ANN@EXAMPLE.COM"] * IN_A_ROW, False),
    ],
)
def test_ten_recipients_or_five_domains_are_no_accident(addresses: list[str], expected: bool) -> None:
    assert is_everybody_refused(addresses, says_dead=False) is expected


def test_dead_addresses_may_well_come_in_a_row() -> None:
    assert not is_everybody_refused(of_many_domains(DEAD_IN_A_ROW - 1), says_dead=True)
    assert is_everybody_refused(of_many_domains(DEAD_IN_A_ROW), says_dead=True)
