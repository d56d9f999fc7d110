"""Names and addresses out of a team's own table, which nobody has checked: mail goes out all the same."""

from email import message_from_bytes, policy
from email.utils import getaddresses

import pytest

from tests.app_harness import Harness
from tests.relays import ScriptedRelay


def test_a_name_in_several_lines_keeps_nobodys_mail_back(harness: Harness, relay: ScriptedRelay) -> None:
    for user, name in (("g1", "Ann"), ("g2", "Bob\nJones"), ("g3", "\tEve\r\n\x1b Doe ")):
        harness.recipient(user, f"{user}@example.com", name)
    email_id = harness.schedule(users=["g1", "g2", "g3"])
    harness.deliver()
    assert harness.ledger(email_id) == ["sent"] * 3
    written = [message_from_bytes(message.content, policy=policy.compat32)["To"] for message in relay.messages]
    assert getaddresses(written) == [
        ("Ann", "g1@example.com"), ("Bob Jones", "g2@example.com"), ("Eve Doe", "g3@example.com"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "address", [" ann@example.com", "ann@example.com\n", "\u00a0ann@EXAMPLE.com ", "\u202aann@example.com\u202c"]
)
def test_what_is_around_a_stored_address_is_no_reason_to_drop_mail(
    harness: Harness, relay: ScriptedRelay, address: str
) -> None:
    harness.recipient("ann", address)
    email_id = harness.schedule(users=["ann"])
    harness.deliver()
    assert harness.ledger(email_id) == ["sent"]
    assert [message.recipients for message in relay.messages] == [("ann@example.com",)]


def test_a_suppressed_mailbox_is_known_by_every_spelling(harness: Harness, relay: ScriptedRelay) -> None:
    harness.query("INSERT INTO duepost.suppression (address) VALUES ('ann@xn--mnchen-3ya.example')")
    harness.recipient("ann", " ANN@MÜNCHEN.example")
    ids = [harness.schedule(users=["ann"]), harness.schedule(address="Ann@münchen.example")]
    harness.deliver()
    assert [harness.ledger(email_id) for email_id in ids] == [["suppressed"]] * 2
    assert relay.messages == []


def test_an_error_of_a_field_names_it(harness: Harness) -> None:
    email_id = harness.schedule()
    harness.query("UPDATE duepost.scheduled_email SET sender = 'nobody' WHERE id = %(id)s", id=email_id)
    templated = harness.schedule(template="half")
    harness.template("half", subject="{{ '\\ud800' }}", text="Hello")
    harness.deliver()
    assert "sender: must be an ASCII address" in str(harness.row(email_id)["last_error"])
    assert "subject: must not contain a lone surrogate" in str(harness.row(templated)["last_error"])
