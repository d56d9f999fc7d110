"""Numbers of a context reach the reader as they were given."""

import pytest

from tests.app_harness import Harness
from tests.relays import ScriptedRelay


@pytest.mark.parametrize("number", ["12345678901234567890.12", "0.10", "1.5", "123456789012345678901234567890"])
def test_a_number_of_a_context_is_shown_to_its_last_digit(harness: Harness, relay: ScriptedRelay, number: str) -> None:
    harness.template("bill", subject="Bill", text="{{ amount }} {{ amount > 0 }}")
    harness.query(
        "SELECT duepost.schedule_email(kind => 'bill', address => 'ann@example.com', template => 'bill',"
        " context => %(context)s::jsonb)",
        context=f'{{"amount": {number}}}',
    )
    harness.deliver()
    assert f"{number} True".encode() in relay.messages[0].content
