"""Addresses whose local part is not ASCII (RFC 6531): sent where the relay offers SMTPUTF8, else undeliverable."""

from email import message_from_string, policy
from email.message import EmailMessage

from tests.app_harness import Harness
from tests.relays import ScriptedRelay

OFFERED = ("8BITMIME", "SMTPUTF8")


def ledger(harness: Harness, email_id: int) -> dict[object, object]:
    rows = harness.query("SELECT address, outcome FROM duepost.delivery WHERE email_id = %(id)s", id=email_id)
    return {row[0]: row[1] for row in rows}


def said(relay: ScriptedRelay, verb: str) -> list[str]:
    return [line[3:] for line in relay.transcript if line.startswith(f"C: {verb}")]


def header_of(content: bytes) -> EmailMessage:
    found = message_from_string(content.decode(), policy=policy.default)
    assert isinstance(found, EmailMessage)
    return found


def test_it_is_sent_where_the_relay_offers_it(harness: Harness, relay: ScriptedRelay) -> None:
    relay.extensions = OFFERED
    email_id = harness.schedule(address="Jörg <jörg@münchen.example>", subject="ß")
    harness.deliver()
    [message] = relay.messages
    assert message.recipients == ("jörg@xn--mnchen-3ya.example",)
    [mail] = said(relay, "MAIL")
    assert mail.endswith(" BODY=8BITMIME SMTPUTF8")
    [to] = header_of(message.content)["To"].addresses
    assert (to.display_name, to.username, to.domain) == ("Jörg", "jörg", "xn--mnchen-3ya.example")
    assert ledger(harness, email_id) == {"jörg@münchen.example": "sent"}


def test_without_it_nothing_is_said_and_the_recipient_is_undeliverable(harness: Harness, relay: ScriptedRelay) -> None:
    email_id = harness.schedule(address="jörg@example.com")
    other = harness.schedule(address="ann@example.com")
    harness.deliver()
    assert [message.recipients for message in relay.messages] == [("ann@example.com",)]
    assert ledger(harness, email_id) == {"jörg@example.com": "undeliverable"}
    assert ledger(harness, other) == {"ann@example.com": "sent"}
    [attempt] = harness.attempts(email_id)
    assert "SMTPUTF8" in str(attempt["reply"])
    assert harness.query("SELECT count(*) FROM duepost.suppression") == [(0,)]


def test_8bitmime_has_to_come_with_it(harness: Harness, relay: ScriptedRelay) -> None:
    relay.extensions = ("SMTPUTF8",)
    email_id = harness.schedule(address="jörg@example.com")
    harness.deliver()
    assert relay.messages == []
    assert ledger(harness, email_id) == {"jörg@example.com": "undeliverable"}


def test_what_is_ascii_is_never_marked(harness: Harness, relay: ScriptedRelay) -> None:
    relay.extensions = OFFERED
    harness.schedule(address="Jörg <info@münchen.example>", subject="ß", body_text="ß")
    harness.deliver()
    [message] = relay.messages
    assert message.recipients == ("info@xn--mnchen-3ya.example",)
    assert message.content.isascii()
    assert "SMTPUTF8" not in said(relay, "MAIL")[0]


def test_of_two_who_see_each_other_the_one_who_needs_it_is_left_out_without_it(
    harness: Harness, relay: ScriptedRelay
) -> None:
    email_id = harness.schedule(address=None, addresses=["ann@example.com", "Jörg <jörg@example.com>"])
    harness.deliver()
    [message] = relay.messages
    assert message.recipients == ("ann@example.com",)
    assert message.content.isascii()
    assert header_of(message.content)["To"] == "ann@example.com"
    assert ledger(harness, email_id) == {"ann@example.com": "sent", "jörg@example.com": "undeliverable"}


def test_of_two_who_see_each_other_both_get_it_with_it(harness: Harness, relay: ScriptedRelay) -> None:
    relay.extensions = OFFERED
    email_id = harness.schedule(address=None, addresses=["ann@example.com", "Jörg <jörg@example.com>"])
    harness.deliver()
    [message] = relay.messages
    assert sorted(message.recipients) == ["ann@example.com", "jörg@example.com"]
    assert "jörg@example.com".encode() in message.content.split(b"\r\n\r\n")[0]
    assert set(ledger(harness, email_id).values()) == {"sent"}


def test_users_are_told_apart_by_what_each_needs(harness: Harness, relay: ScriptedRelay) -> None:
    harness.recipient("1", "jörg@example.com")
    harness.recipient("2", "ann@example.com")
    harness.schedule(users=["1", "2"])
    harness.deliver()
    assert [message.recipients for message in relay.messages] == [("ann@example.com",)]
    assert harness.query("SELECT user_id, outcome FROM duepost.delivery ORDER BY user_id") == [
        ("1", "undeliverable"),
        ("2", "sent"),
    ]
