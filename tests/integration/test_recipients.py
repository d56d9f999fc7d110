"""Recipients who see each other: one message, one transaction with the relay, and a verdict for each."""

from email import message_from_bytes, policy
from email.message import EmailMessage

import psycopg2
import pytest

from actors.ruling import Phase
from tests.app_harness import Harness
from tests.relays import ScriptedRelay, reply

TO, CC, BCC = ["Ann Example <ann@example.com>", "bob@example.com"], ["cy@example.com"], ["dot@example.com"]


def parsed(content: bytes) -> EmailMessage:
    message = message_from_bytes(content, policy=policy.default)
    assert isinstance(message, EmailMessage)
    return message


def make_due(harness: Harness) -> None:
    harness.query("UPDATE duepost.item SET due_at = now()")


def pairs(rows: list[tuple[object, ...]]) -> dict[str, object]:
    return {str(name): value for name, value in rows}


def ledger(harness: Harness, email_id: int) -> dict[str, object]:
    return pairs(harness.query("SELECT address, outcome FROM duepost.delivery WHERE email_id = %(id)s", id=email_id))


def seen(harness: Harness, email_id: int) -> list[tuple[object, ...]]:
    return harness.query(
        "SELECT field, address, name FROM duepost.email_recipient WHERE email_id = %(id)s ORDER BY place", id=email_id
    )


def test_one_message_goes_to_all_in_one_transaction_and_bcc_is_named_nowhere(
    harness: Harness, relay: ScriptedRelay
) -> None:
    email_id = harness.schedule(address=None, addresses=TO, cc=CC, bcc=BCC)
    harness.deliver()
    [message] = relay.messages
    assert sorted(message.recipients) == ["ann@example.com", "bob@example.com", "cy@example.com", "dot@example.com"]
    assert b"dot@example.com" not in message.content
    found = parsed(message.content)
    assert (found["To"], found["Cc"], found["Bcc"]) == (
        "Ann Example <ann@example.com>, bob@example.com",
        "cy@example.com",
        None,
    )
    assert set(ledger(harness, email_id).values()) == {"sent"}
    assert len(ledger(harness, email_id)) == 4
    assert harness.query("SELECT count(*) FROM duepost.email_recipient") == [(0,)]


def test_a_retry_goes_to_those_only_who_are_still_to_get_it_with_the_same_bytes(
    harness: Harness, relay: ScriptedRelay
) -> None:
    relay.on(Phase.RCPT, reply("550 5.1.1 no such user"), when=lambda line: "bob" in line)
    relay.on(Phase.RCPT, reply("450 4.2.0 try again"), when=lambda line: "cy" in line, times=1)
    email_id = harness.schedule(address=None, addresses=TO, cc=CC)
    harness.deliver()
    assert pairs(
        harness.query(
            "SELECT address, outcome FROM duepost.email_recipient WHERE email_id = %(id)s AND outcome IS NOT NULL",
            id=email_id,
        )
    ) == {"ann@example.com": "sent", "bob@example.com": "undeliverable"}
    make_due(harness)
    harness.deliver()
    first, second = relay.messages
    assert (first.recipients, second.recipients) == (("ann@example.com",), ("cy@example.com",))
    assert first.content == second.content
    assert ledger(harness, email_id) == {
        "ann@example.com": "sent",
        "bob@example.com": "undeliverable",
        "cy@example.com": "sent",
    }
    assert harness.query(
        "SELECT address, verdict FROM duepost.attempt WHERE email_id = %(id)s ORDER BY started_at, address", id=email_id
    ) == [
        ("ann@example.com", "sent"),
        ("bob@example.com", "undeliverable"),
        ("cy@example.com", "retry"),
        ("cy@example.com", "sent"),
    ]


def test_a_relay_that_takes_two_at_a_time_gets_the_others_later(harness: Harness, relay: ScriptedRelay) -> None:
    taken: list[str] = []

    def is_one_too_many(line: str) -> bool:
        taken.append(line)
        return len(taken) in {3, 4, 5}

    relay.on(Phase.RCPT, reply("452 4.5.3 too many recipients"), when=is_one_too_many)
    email_id = harness.schedule(address=None, addresses=[f"a{number}@example.com" for number in range(5)])
    harness.deliver()
    make_due(harness)
    harness.deliver()
    assert sorted(each for message in relay.messages for each in message.recipients) == [
        f"a{number}@example.com" for number in range(5)
    ]
    assert set(ledger(harness, email_id).values()) == {"sent"}


def test_of_one_mailbox_in_two_spellings_the_first_gets_it(harness: Harness, relay: ScriptedRelay) -> None:
    email_id = harness.schedule(address="ann@example.com", cc=["Ann <ANN@EXAMPLE.com>"], bcc=["bob@example.com"])
    assert seen(harness, email_id) == [("to", "ann@example.com", None), ("bcc", "bob@example.com", None)]
    harness.deliver()
    [message] = relay.messages
    assert sorted(message.recipients) == ["ann@example.com", "bob@example.com"]
    assert parsed(message.content)["Cc"] is None


def test_those_who_cannot_get_it_keep_it_from_nobody(harness: Harness, relay: ScriptedRelay) -> None:
    harness.query("INSERT INTO duepost.suppression (address) VALUES ('bob@example.com')")
    email_id = harness.schedule(address=None, addresses=["ann@example.com", "bob@example.com", "jörg@example.com"])
    harness.deliver()
    [message] = relay.messages
    assert message.recipients == ("ann@example.com",)
    outcomes = ledger(harness, email_id)
    assert outcomes["ann@example.com"] == "sent"
    assert len(outcomes) == 3


def test_where_nobody_can_get_it_nothing_is_said_to_the_relay(harness: Harness, relay: ScriptedRelay) -> None:
    harness.query("INSERT INTO duepost.suppression (address) VALUES ('ann@example.com'), ('bob@example.com')")
    email_id = harness.schedule(address=None, addresses=["ann@example.com", "bob@example.com"])
    harness.deliver()
    assert relay.messages == []
    assert len(ledger(harness, email_id)) == 2
    assert harness.query("SELECT count(*) FROM duepost.item") == [(0,)]


def test_all_may_be_named_nowhere(harness: Harness, relay: ScriptedRelay) -> None:
    harness.schedule(address=None, addresses=[], bcc=["ann@example.com", "bob@example.com"])
    harness.deliver()
    [message] = relay.messages
    assert b"@example.com" not in message.content.split(b"\r\n\r\n")[0].replace(b"From:", b"").split(b"To:")[1][:40]
    assert parsed(message.content)["To"] == "undisclosed-recipients:;"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ('"Doe, Jane" <a@example.com>', ("Doe, Jane", "a@example.com")),
        ("=?utf-8?q?Doe=2C_J?= <a@example.com>", ("=?utf-8?q?Doe=2C_J?=", "a@example.com")),
        (
            "=?utf-8?q?x=0D=0ABcc=3A_b=40example.com?= <a@example.com>",
            ("=?utf-8?q?x=0D=0ABcc=3A_b=40example.com?=", "a@example.com"),
        ),
        ("b@example.com <a@example.com>", ("b@example.com", "a@example.com")),
        ("b@x.example( <a@example.com>", ("b@x.example(", "a@example.com")),
        ("Doe, Jane <a@example.com>", ("Doe, Jane", "a@example.com")),
        ("Jörg Müller <a@example.com>", ("Jörg Müller", "a@example.com")),
        (r'"a \"q\" b" <a@example.com>', ('a "q" b', "a@example.com")),
        ("<a@example.com>", ("", "a@example.com")),
    ],
)
def test_a_name_beside_an_address_makes_one_mailbox_never_two(
    harness: Harness, relay: ScriptedRelay, given: str, named: tuple[str, str]
) -> None:
    email_id = harness.schedule(address=given)
    assert harness.query("SELECT address FROM duepost.scheduled_email WHERE id = %(id)s", id=email_id) == [
        ("a@example.com",)
    ]
    harness.deliver()
    [message] = relay.messages
    assert message.recipients == ("a@example.com",)
    found = parsed(message.content)
    [address] = found["To"].addresses
    assert (address.display_name, address.addr_spec) == named
    assert found["Bcc"] is None
    assert ledger(harness, email_id) == {"a@example.com": "sent"}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"address": "ann@example.com", "addresses": ["bob@example.com"]}, "address: give either"),
        ({"address": None}, "address: give either"),
        ({"address": None, "addresses": []}, "addresses: must name at least one recipient"),
        ({"address": None, "users": ["1"], "cc": ["a@example.com"]}, "cc: goes with address or addresses"),
        ({"address": None, "addresses": ["a@example.com", "b"]}, "addresses[1]: must be one address"),
        ({"cc": ["a@example.com", None]}, "cc[1]: must be one address"),
        ({"bcc": ["a@example.com\r\nX: y"]}, "bcc[0]: must be one line"),
        ({"cc": ["a@example.com, b@example.com"]}, "cc[0]: must be one address"),
        ({"address": "Ann <a@example.com>, b@example.com"}, "address: must be one address"),
        ({"address": "Ann <a@example.com\r\n>"}, "address: must be one line"),
        ({"cc": [f"a{number}@example.com" for number in range(100)]}, "cc: an email must have at most 100"),
    ],
)
def test_what_cannot_be_sent_is_refused_and_names_its_place(
    harness: Harness, arguments: dict[str, object], error: str
) -> None:
    with pytest.raises(psycopg2.Error) as refused:
        harness.schedule(**arguments)
    assert refused.value.pgcode == "22023"
    assert str(refused.value).startswith(error)
    assert harness.query("SELECT count(*) FROM duepost.item") == [(0,)]


def test_a_clear_takes_one_off_and_the_last_one_clears_it(harness: Harness, relay: ScriptedRelay) -> None:
    email_id = harness.schedule(address=None, addresses=["ann@example.com", "bob@example.com"])
    clear = "SELECT email_id, receipt FROM duepost.clear_scheduled_emails_to(%(address)s)"
    assert harness.query(clear, address="ANN@example.com") == [(email_id, "user_removed")]
    assert harness.query(clear, address="ann@example.com") == []
    assert seen(harness, email_id) == [("to", "bob@example.com", None)]
    assert harness.query(clear, address="Bob <bob@example.com>") == [(email_id, "cleared")]
    assert ledger(harness, email_id) == {"bob@example.com": "cleared"}
    harness.deliver()
    assert relay.messages == []


def test_who_has_it_cannot_be_taken_off_and_who_is_taken_off_then_stays_in_the_header(
    harness: Harness, relay: ScriptedRelay
) -> None:
    relay.on(Phase.RCPT, reply("450 4.2.0 try again"), when=lambda line: "ann" not in line, times=2)
    email_id = harness.schedule(address=None, addresses=["ann@example.com", "bob@example.com", "cy@example.com"])
    harness.deliver()
    clear = "SELECT receipt FROM duepost.clear_scheduled_emails_to(%(address)s)"
    assert harness.query(clear, address="ann@example.com") == [("too_late",)]
    assert harness.query(clear, address="bob@example.com") == [("user_removed",)]
    make_due(harness)
    harness.deliver()
    first, second = relay.messages
    assert second.recipients == ("cy@example.com",)
    assert first.content == second.content
    assert ledger(harness, email_id) == {
        "ann@example.com": "sent",
        "bob@example.com": "cleared",
        "cy@example.com": "sent",
    }


def test_an_expired_one_is_in_the_ledger_for_each(harness: Harness) -> None:
    email_id = harness.schedule(
        address=None, addresses=["ann@example.com"], bcc=["bob@example.com"], expires_at="2999-01-01T00:00:00Z"
    )
    harness.query(
        "UPDATE duepost.item SET scheduled_at = '2000-01-01', due_at = '2000-01-01', expires_at = '2000-01-02'"
    )
    harness.enqueue()
    assert ledger(harness, email_id) == {"ann@example.com": "expired", "bob@example.com": "expired"}


def test_one_that_was_refused_is_reopened_alone_with_the_same_header(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.RCPT, reply("550 5.1.1 no such user"), when=lambda line: "bob" in line, times=1)
    email_id = harness.schedule(address=None, addresses=["ann@example.com"], cc=["bob@example.com"])
    harness.deliver()
    assert ledger(harness, email_id) == {"ann@example.com": "sent", "bob@example.com": "undeliverable"}
    assert harness.query("SELECT duepost.reopen_email(%(id)s)", id=email_id) == [("reopened",)]
    harness.deliver()
    first, second = relay.messages
    assert second.recipients == ("bob@example.com",)
    assert first.content == second.content
    assert harness.query(
        "SELECT address, outcome FROM duepost.delivery WHERE email_id = %(id)s ORDER BY finished_at, outcome",
        id=email_id,
    ) == [
        ("ann@example.com", "sent"),
        ("bob@example.com", "undeliverable"),
        ("bob@example.com", "sent"),
    ]


def test_a_user_in_a_template_that_several_see_is_nobody(harness: Harness, relay: ScriptedRelay) -> None:
    (harness.templates / "seen.subject.txt").write_text("For {{ recipient.name or 'all' }}")
    (harness.templates / "seen.txt").write_text("Hello {{ recipient.address or 'all' }}")
    harness.schedule(
        address=None, addresses=["Ann <ann@example.com>"], template="seen", context={}, subject=None, body_text=None
    )
    harness.deliver()
    [message] = relay.messages
    assert parsed(message.content)["Subject"] == "For all"


def test_forgetting_and_finding_know_each_of_them(harness: Harness) -> None:
    email_id = harness.schedule(address=None, addresses=["ann@example.com", "bob@example.com"])
    [(action,)] = harness.query("SELECT id FROM duepost.begin_action('forget', 'me', 'command', NULL, '{}')")
    found = pairs(
        harness.query(
            "SELECT what, number FROM duepost.forget_some(%(action)s, address => 'ann@example.com')", action=action
        )
    )
    assert found["cleared"] == 1
    assert found["left"] == 0
    assert seen(harness, email_id) == [("to", "bob@example.com", None)]
