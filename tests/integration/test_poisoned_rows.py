"""Rows as a hand, or a language's zero time, may have written them: they fail alone, or are sent; nobody else waits."""

from collections import Counter

import pytest

from tests.app_harness import Harness
from tests.integration.test_containment import send_together
from tests.relays import ScriptedRelay

#: What a row is set to, past every check.
WRITTEN = {
    "attempts at the end of their type": "attempts = 2147483647",
    "unknowns at the end of their type": "unknowns = 2147483647",
    "attempts many": "attempts = 100000",
    "a mailbox full since for ever": "mailbox_full_since = '-infinity'",
    "a mailbox full from the future": "mailbox_full_since = 'infinity'",
    "a Date before Christ": "date_header = '0044-03-15 BC'",
    "a Date without end": "date_header = 'infinity'",
    "a Date without beginning": "date_header = '-infinity'",
    "a Date after 9999": "date_header = '20000-01-01'",
    "due before Christ": "due_at = '0044-03-15 BC', scheduled_at = '0044-03-15 BC'",
    "due at a zero time": "due_at = '0001-01-01 00:00+02', scheduled_at = '0001-01-01 00:00+02'",
    "due since for ever": "due_at = '-infinity', scheduled_at = '-infinity'",
    "expires after 9999": "expires_at = '20000-01-01'",
    "expires never": "expires_at = 'infinity'",
    "an empty kind": "kind = ''",
    "a long kind": "kind = repeat('k', 100000)",
    "a key of many bytes": "key = repeat('k', 2000)",
    "a last error of megabytes": "last_error = repeat('x', 3000000)",
    "a Message-ID that adds headers": "message_id_header = E'<a@b>\\r\\nBcc: eve@example.com'",
    "an empty Message-ID": "message_id_header = ''",
    "an address that is none": "address = 'nobody'",
    "an empty address": "address = ''",
    "a long address": "address = repeat('a', 3000) || '@example.com'",
    "an address with a line break": "address = E'ann@example.com\\r\\nRCPT TO:<eve@example.com>'",
    "a sender that is none": "sender = E'x\\n'",
    "a reply-to that is none": "reply_to = '<<>>'",
    "no body at all": "body_text = NULL, body_html = NULL",
    "a subject of megabytes": "subject = repeat('s', 2000000)",
    "a body of control characters": "body_text = E'\\x01\\x02\\x1b[31m\\x7f'",
    "headers of other types": "headers = '{\"X-A\": {\"b\": [1]}, \"X-N\": null}'",
    "a header that is ours": "headers = '{\"Bcc\": \"eve@example.com\", \"From\": \"x\"}'",
    "a probe": "probe = true",
}  # fmt: skip


@pytest.mark.parametrize("written", WRITTEN.values(), ids=list(WRITTEN))
def test_a_row_that_was_written_by_hand_is_in_nobodys_way(harness: Harness, relay: ScriptedRelay, written: str) -> None:
    before = [harness.schedule(address=f"a{number}@example.com") for number in range(3)]
    poisoned = harness.schedule(address="poison@example.com")
    after = [harness.schedule(address=f"b{number}@example.com") for number in range(3)]
    harness.query(f"UPDATE duepost.scheduled_email SET {written} WHERE id = %(id)s", id=poisoned)
    harness.enqueue()
    send_together(harness)
    harness.deliver()
    copies = Counter(recipient for message in relay.messages for recipient in message.recipients)
    assert [harness.ledger(each) for each in (*before, *after)] == [["sent"]] * 6
    assert {count for who, count in copies.items() if "poison" not in who} == {1}
    assert "eve@example.com" not in copies
    [(state, attempts, error)] = harness.query(
        "SELECT state, attempts, left(last_error, 300) FROM duepost.scheduled_email WHERE id = %(id)s", id=poisoned
    ) or [("gone", 0, None)]
    assert state in ("gone", "scheduled", "unknown")
    assert state == "gone" or (attempts != 0 and error), "it waits, and nobody is told why"
    assert max(copies.values()) == 1


@pytest.mark.parametrize("due_at", ["0001-01-01 00:00+00", "0001-01-01 00:00+02", "-infinity"])
def test_one_that_is_due_since_a_zero_time_is_sent_and_a_pass_comes_to_its_end(harness: Harness, due_at: str) -> None:
    email_id = harness.schedule()
    harness.query(
        "UPDATE duepost.scheduled_email SET due_at = %(due)s, scheduled_at = %(due)s WHERE id = %(id)s",
        due=due_at, id=email_id,
    )  # fmt: skip
    harness.deliver()
    assert harness.ledger(email_id) == ["sent"]
