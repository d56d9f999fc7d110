"""The main job, step by step: scheduled, enqueued, claimed, delivered, concluded."""

from concurrent.futures import ThreadPoolExecutor
from email import message_from_bytes, policy

import psycopg2
import psycopg2.errors
import pytest

from actors.ruling import Phase
from models import emails
from tests.app_harness import Harness
from tests.relays import Action, ScriptedRelay, accept, close, garbage, hang, last_word, reply, reset
from tests.waiting import wait_until


def recipients(relay: ScriptedRelay) -> list[str]:
    return sorted(recipient for message in relay.messages for recipient in message.recipients)


def test_a_due_email_is_delivered_and_moves_to_the_ledger(each_harness: Harness, relay: ScriptedRelay) -> None:
    harness = each_harness
    email_id = harness.schedule(address="ann@example.com")
    harness.deliver()
    assert recipients(relay) == ["ann@example.com"]
    assert harness.ledger(email_id) == ["sent"]
    assert harness.query("SELECT count(*) FROM duepost.scheduled_email") == [(0,)]
    assert harness.query("SELECT count(*) FROM dramatiq.queue") == [(0,)]
    [attempt] = harness.attempts(email_id)
    assert (attempt["verdict"], attempt["phase"], attempt["code"]) == ("sent", "dot", 250)


def test_an_email_that_is_not_due_stays(harness: Harness, relay: ScriptedRelay) -> None:
    email_id = harness.schedule(scheduled_at="2999-01-01T00:00:00Z")
    harness.deliver()
    assert relay.messages == []
    assert harness.row(email_id)["state"] == "scheduled"


def test_emails_leave_oldest_due_first(harness: Harness, relay: ScriptedRelay) -> None:
    for minutes in (5, 30, 10):
        harness.schedule(
            address=f"m{minutes}@example.com",
            scheduled_at=harness.query("SELECT (now() - make_interval(mins => %(m)s))::text", m=minutes)[0][0],
        )
    harness.deliver()
    assert [message.recipients[0] for message in relay.messages] == [f"m{m}@example.com" for m in (30, 10, 5)]


def test_a_page_is_enqueued_in_one_statement_and_each_email_has_one_message(harness: Harness) -> None:
    ids = [harness.schedule() for _ in range(5)]
    harness.enqueue()
    harness.enqueue()
    assert harness.query("SELECT key FROM dramatiq.queue ORDER BY eta") == [(email_id,) for email_id in ids]
    assert harness.query("SELECT count(DISTINCT xmin::text) FROM dramatiq.queue") == [(1,)]
    assert {harness.row(email_id)["state"] for email_id in ids} == {"queued"}


def test_a_row_that_fails_blocks_no_other(each_harness: Harness, relay: ScriptedRelay) -> None:
    harness = each_harness
    bad = [harness.schedule(kind="cursed") for _ in range(2)]
    good = [harness.schedule(address=f"a{number}@example.com") for number in range(3)]
    harness.schedule(kind="cursed")
    harness.query(
        "CREATE FUNCTION curse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF EXISTS (SELECT FROM duepost.item WHERE id = NEW.key AND kind = 'cursed') THEN RAISE 'cursed'; END IF;"
        " RETURN NEW; END $$;"
        "CREATE TRIGGER curse BEFORE INSERT ON dramatiq.queue FOR EACH ROW EXECUTE FUNCTION curse()"
    )
    with pytest.raises(psycopg2.errors.RaiseException, match="cursed"):
        harness.deliver()
    harness.send()
    assert [harness.ledger(each) for each in good] == [["sent"]] * 3
    assert [harness.row(each)["state"] for each in bad] == ["scheduled"] * 2
    assert len(relay.messages) == 3


def test_a_message_is_what_makes_an_email_queued(harness: Harness) -> None:
    email_id = harness.schedule()
    harness.enqueue()
    assert harness.query(
        "SELECT count(*) FROM duepost.scheduled_email e JOIN dramatiq.queue q ON q.message_id = e.message_id"
    ) == [(1,)]
    harness.query("DELETE FROM dramatiq.queue")
    assert harness.row(email_id)["state"] == "scheduled"


def test_a_message_carries_the_id_and_nothing_else(harness: Harness) -> None:
    email_id = harness.schedule(address="secret.person@example.com", subject="Confidential")
    harness.enqueue()
    [(message, args, kwargs)] = harness.query(
        "SELECT message::text, message->'args', message->'kwargs' FROM dramatiq.queue"
    )
    assert (args, kwargs) == ([email_id], {})
    assert "secret" not in str(message)
    assert "Confidential" not in str(message)


def test_a_locked_row_does_not_hold_up_the_others(harness: Harness, relay: ScriptedRelay) -> None:
    first, second = (
        harness.schedule(address="first@example.com"),
        harness.schedule(address="second@example.com"),
    )
    with harness.application.transaction() as cursor:
        cursor.execute("SELECT FROM duepost.scheduled_email WHERE id = %s FOR UPDATE", (first,))
        harness.deliver()
    assert recipients(relay) == ["second@example.com"]
    harness.deliver()
    assert harness.ledger(first) == harness.ledger(second) == ["sent"]


def test_a_row_that_is_locked_when_its_message_comes_is_looked_at_again(harness: Harness, relay: ScriptedRelay) -> None:
    email_id = harness.schedule()
    harness.enqueue()
    with harness.application.transaction() as cursor:
        cursor.execute("SELECT FROM duepost.scheduled_email WHERE id = %s FOR UPDATE", (email_id,))
        harness.send()
    assert relay.messages == []
    harness.query("UPDATE dramatiq.queue SET eta = now()")
    harness.send()
    assert harness.ledger(email_id) == ["sent"]


def test_a_doubled_message_sends_once(harness: Harness, relay: ScriptedRelay) -> None:
    email_id = harness.schedule()
    harness.enqueue()
    harness.app.routes["default"].send_email.send(email_id)
    harness.app.routes["default"].send_email.send(email_id)
    harness.send()
    assert len(relay.messages) == 1


def test_a_lost_message_is_brought_back(harness: Harness, relay: ScriptedRelay) -> None:
    email_id = harness.schedule()
    harness.enqueue()
    harness.query("DELETE FROM dramatiq.queue")
    harness.query("UPDATE duepost.control SET swept_at = NULL")
    harness.deliver()
    assert harness.ledger(email_id) == ["sent"]
    assert len(relay.messages) == 1


def test_an_early_message_sends_nothing(harness: Harness, relay: ScriptedRelay) -> None:
    email_id = harness.schedule()
    harness.enqueue()
    harness.query("UPDATE duepost.scheduled_email SET due_at = now() + interval '1 day'")
    harness.send()
    assert relay.messages == []
    assert harness.row(email_id)["attempts"] == 0


def test_of_three_users_each_has_its_own_outcome_and_none_is_sent_to_twice(
    each_harness: Harness, relay: ScriptedRelay
) -> None:
    harness = each_harness
    for user in ("ann", "bob", "cleo"):
        harness.recipient(user, f"{user}@example.com")
    relay.on(Phase.RCPT, reply("550 5.1.1 no such user"), when=lambda line: "bob" in line)
    email_id = harness.schedule(users=["ann", "bob", "cleo"])
    harness.deliver()
    harness.make_due()
    harness.deliver()
    assert recipients(relay) == ["ann@example.com", "cleo@example.com"]
    assert harness.ledger(email_id) == ["sent", "undeliverable", "sent"]


def test_users_who_have_it_are_left_out_when_the_others_are_retried(harness: Harness, relay: ScriptedRelay) -> None:
    for user in ("ann", "bob", "cleo"):
        harness.recipient(user, f"{user}@example.com")
    relay.on(Phase.RCPT, reply("450 4.2.0 busy"), when=lambda line: "bob" in line, times=1)
    email_id = harness.schedule(users=["ann", "bob", "cleo"])
    harness.deliver()
    assert harness.ledger(email_id) == []
    harness.make_due()
    harness.deliver()
    assert recipients(relay) == ["ann@example.com", "bob@example.com", "cleo@example.com"]
    assert harness.ledger(email_id) == ["sent", "sent", "sent"]


def test_each_user_sees_only_the_own_address(harness: Harness, relay: ScriptedRelay) -> None:
    for user in ("ann", "bob"):
        harness.recipient(user, f"{user}@example.com", user.title())
    harness.schedule(users=["ann", "bob"])
    harness.deliver()
    seen = [message_from_bytes(message.content, policy=policy.default)["To"] for message in relay.messages]
    assert sorted(map(str, seen)) == ["Ann <ann@example.com>", "Bob <bob@example.com>"]


def test_a_changed_address_is_followed(harness: Harness, relay: ScriptedRelay) -> None:
    harness.recipient("ann", "old@example.com")
    harness.schedule(users=["ann"])
    harness.query("UPDATE duepost.recipient SET address = 'new@example.com'")
    harness.deliver()
    assert recipients(relay) == ["new@example.com"]


def test_an_inactive_user_gets_nothing(harness: Harness, relay: ScriptedRelay) -> None:
    harness.recipient("ann", "ann@example.com", active=False)
    email_id = harness.schedule(users=["ann"])
    harness.deliver()
    assert relay.messages == []
    assert harness.ledger(email_id) == ["cleared"]


@pytest.mark.parametrize("address", [None, "ünreachable@example.com"])
def test_a_user_without_a_usable_address_is_undeliverable(
    harness: Harness, relay: ScriptedRelay, address: str | None
) -> None:
    harness.recipient("ann", address)
    email_id = harness.schedule(users=["ann"])
    harness.deliver()
    assert harness.ledger(email_id) == ["undeliverable"]
    assert relay.messages == []
    # Whether an address beyond ASCII can be had, the relay says.
    assert relay.connections == (0 if address is None else 1)


def test_an_unknown_user_is_undeliverable(harness: Harness) -> None:
    email_id = harness.schedule(users=["nobody"])
    harness.deliver()
    assert harness.ledger(email_id) == ["undeliverable"]


def test_a_domain_that_is_not_ascii_goes_out_as_idna(harness: Harness, relay: ScriptedRelay) -> None:
    harness.schedule(address="ann@exämple.com")
    harness.deliver()
    assert recipients(relay) == ["ann@xn--exmple-cua.com"]


def test_a_dead_address_is_suppressed_and_not_asked_again(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.RCPT, reply("550 5.1.1 no such user"))
    harness.schedule(address="Dead@example.com")
    harness.deliver()
    asked = len(relay.transcript)
    email_id = harness.schedule(address="dead@example.com")
    harness.deliver()
    assert harness.ledger(email_id) == ["suppressed"]
    assert len(relay.transcript) == asked


def test_a_refusal_by_policy_does_not_suppress(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.RCPT, reply("550 5.7.1 not from you"))
    email_id = harness.schedule()
    harness.deliver()
    assert harness.ledger(email_id) == ["undeliverable"]
    assert harness.query("SELECT count(*) FROM duepost.suppression") == [(0,)]


@pytest.mark.parametrize(
    ("phase", "text", "least", "most"),
    [
        (Phase.MAIL, "450 4.3.0 later", 12, 18),
        (Phase.RCPT, "450 4.2.0 busy", 12, 18),
        (Phase.RCPT, "451 4.7.1 Greylisted, come back", 300, 300),
        (Phase.RCPT, "552 5.2.2 mailbox full", 3600, 3600),
        (Phase.DATA, "451 4.3.0 later", 12, 18),
        (Phase.DOT, "451 4.3.0 later", 12, 18),
    ],
)
def test_a_definite_not_now_is_retried_after_a_pause(
    harness: Harness, relay: ScriptedRelay, phase: Phase, text: str, least: float, most: float
) -> None:
    relay.on(phase, reply(text), times=1)
    email_id = harness.schedule()
    harness.deliver()
    row = harness.row(email_id)
    assert (row["state"], row["attempts"]) == ("scheduled", 1)
    assert least - 2 <= harness.due_in(email_id) <= most
    harness.make_due()
    harness.deliver()
    assert harness.ledger(email_id) == ["sent"]


def test_pauses_double(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.RCPT, reply("450 4.2.0 busy"))
    email_id = harness.schedule()
    pauses = []
    for _ in range(4):
        harness.make_due()
        harness.deliver()
        pauses.append(harness.due_in(email_id))
    for pause, middle in zip(pauses, (15, 30, 60, 120), strict=True):
        assert middle * 0.8 - 2 < pause <= middle * 1.2


@pytest.mark.parametrize(
    ("phase", "text"),
    [
        (Phase.MAIL, "552 5.3.4 too big"),
        (Phase.RCPT, "553 5.1.3 bad address"),
        (Phase.DATA, "554 5.6.0 no"),
        (Phase.DOT, "554 5.7.1 spam"),
    ],
)
def test_a_definite_no_is_undeliverable(harness: Harness, relay: ScriptedRelay, phase: Phase, text: str) -> None:
    relay.on(phase, reply(text))
    email_id = harness.schedule()
    harness.deliver()
    assert harness.ledger(email_id) == ["undeliverable"]


@pytest.mark.parametrize(
    "lost",
    [(accept(), close()), (accept(), reset()), (accept(), hang()), (accept(), garbage())],
    ids=["close", "reset", "timeout", "garbage"],
)
def test_what_is_lost_after_the_dot_is_unknown_and_resent_once_with_the_same_message_id(
    harness: Harness, relay: ScriptedRelay, lost: tuple[Action, ...]
) -> None:
    relay.on(Phase.DOT, *lost, times=1)
    email_id = harness.schedule()
    harness.deliver()
    assert harness.row(email_id)["unknowns"] == 1
    harness.deliver()
    assert harness.ledger(email_id) == ["sent"]
    first, second = relay.messages
    assert first.content == second.content


def test_a_second_unknown_is_held_until_a_person_decides(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.DOT, close())
    email_id = harness.schedule()
    harness.deliver()
    harness.deliver()
    assert harness.row(email_id)["state"] == "unknown"
    relay.forget()
    harness.deliver()
    assert harness.row(email_id)["state"] == "unknown"


def test_a_kind_that_says_hold_is_held_at_once(harness: Harness, relay: ScriptedRelay) -> None:
    harness.query("INSERT INTO duepost.email_kind (kind, on_unknown) VALUES ('invoice', 'hold')")
    relay.on(Phase.DOT, close())
    email_id = harness.schedule(kind="invoice")
    harness.deliver()
    assert harness.row(email_id)["state"] == "unknown"


def test_lost_before_the_dot_is_retried_and_not_unknown(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.DATA, last_word("354 go ahead"), times=1)
    email_id = harness.schedule()
    harness.deliver()
    row = harness.row(email_id)
    assert (row["state"], row["unknowns"], row["attempts"]) == ("scheduled", 0, 1)


def test_an_expired_email_is_not_sent(harness: Harness, relay: ScriptedRelay) -> None:
    email_id = harness.schedule(scheduled_at="2020-01-01T00:00:00Z", expires_at="2020-01-02T00:00:00Z")
    harness.deliver()
    assert relay.messages == []
    assert harness.ledger(email_id) == ["expired"]


def test_an_email_that_expires_while_it_is_queued_is_not_sent(harness: Harness, relay: ScriptedRelay) -> None:
    email_id = harness.schedule()
    harness.enqueue()
    harness.query(
        "UPDATE duepost.scheduled_email SET scheduled_at = now() - interval '2 s', expires_at = now() - interval '1 s'"
    )
    harness.send()
    assert relay.messages == []
    assert harness.ledger(email_id) == ["expired"]


def test_a_retry_is_never_due_later_than_the_expiry(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.RCPT, reply("451 4.7.1 greylisted"))
    [(soon,)] = harness.query("SELECT (now() + interval '20 s')::text")
    email_id = harness.schedule(expires_at=soon)
    harness.deliver()
    assert harness.due_in(email_id) <= 20


def test_a_template_is_rendered_when_the_email_is_sent(harness: Harness, relay: ScriptedRelay) -> None:
    harness.recipient("ann", "ann@example.com", "Änn")
    harness.template("hi", subject="Hi {{ recipient.name }}", text="You have {{ n }} points.", html="<p>{{ w }}</p>")
    harness.schedule(users=["ann"], template="hi", context={"n": 3, "w": "<b>"})
    harness.deliver()
    message = message_from_bytes(relay.messages[0].content, policy=policy.default)
    assert message["Subject"] == "Hi Änn"
    text, html = message.iter_parts()
    assert text.get_content().strip() == "You have 3 points."
    assert html.get_content().strip() == "<p>&lt;b&gt;</p>"


def test_a_template_error_is_retried_with_long_pauses_and_heals(harness: Harness, relay: ScriptedRelay) -> None:
    harness.template("hi", subject="Hi", text="{{ mistyped }}")
    email_id = harness.schedule(template="hi")
    other = harness.schedule()
    harness.deliver()
    assert harness.due_in(email_id) > 290
    assert "mistyped" in str(harness.row(email_id)["last_error"])
    assert harness.ledger(other) == ["sent"], "others flow on"
    harness.template("hi", text="mended")
    harness.make_due()
    harness.deliver()
    assert harness.ledger(email_id) == ["sent"]


def test_an_unknown_template_is_retried_with_long_pauses(harness: Harness) -> None:
    email_id = harness.schedule(template="missing")
    harness.deliver()
    assert harness.due_in(email_id) > 290
    assert harness.row(email_id)["state"] == "scheduled"


def test_message_id_and_date_are_the_same_on_every_attempt(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.DOT, accept(), reply("451 4.3.0 later"), times=2)
    email_id = harness.schedule()
    message_id = harness.row(email_id)["message_id_header"]
    for _ in range(3):
        harness.make_due()
        harness.deliver()
    assert len({message.content for message in relay.messages}) == 1
    assert message_from_bytes(relay.messages[0].content)["Message-ID"] == message_id
    assert harness.query("SELECT message_id_header FROM duepost.delivery") == [(message_id,)]


def test_the_message_is_as_a_relay_wants_it(harness: Harness, relay: ScriptedRelay) -> None:
    harness.schedule(
        address="ann@example.com",
        subject="Grüße",
        body_text="line\n.dot\n",
        sender="Böss <boss@example.org>",
        reply_to="help@example.org",
        headers={"List-Unsubscribe": "<mailto:u@example.org>"},
    )
    harness.deliver()
    [taken] = relay.messages
    assert taken.sender == "boss@example.org"
    message = message_from_bytes(taken.content, policy=policy.default)
    assert message["From"] == "Böss <boss@example.org>"
    assert message["Reply-To"] == "help@example.org"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["List-Unsubscribe"] == "<mailto:u@example.org>"
    assert message["Subject"] == "Grüße"
    assert message.get_content().splitlines() == ["line", ".dot"]
    assert b"\n" not in taken.content.replace(b"\r\n", b"")


def test_while_disabled_nothing_is_enqueued_or_sent(
    harness: Harness, relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    email_id = harness.schedule()
    harness.enqueue()

    monkeypatch.setenv("DUEPOST_DISABLED", "1")
    harness.restart()
    harness.send()
    harness.deliver()
    assert relay.messages == []
    assert harness.row(email_id)["state"] == "scheduled"
    monkeypatch.setenv("DUEPOST_DISABLED", "0")
    harness.restart()
    harness.deliver()
    assert harness.ledger(email_id) == ["sent"]


def test_while_paused_nothing_is_enqueued_or_sent_and_no_attempt_is_counted(
    harness: Harness, relay: ScriptedRelay
) -> None:
    queued = harness.schedule()
    harness.enqueue()
    waiting = harness.schedule()
    harness.query("UPDATE duepost.control SET paused = true")
    harness.deliver()
    assert relay.messages == []
    assert [harness.row(each)["state"] for each in (queued, waiting)] == ["scheduled", "scheduled"]
    harness.query("UPDATE duepost.control SET paused = false")
    harness.deliver()
    assert len(relay.messages) == 2


def test_a_mailbox_is_full_for_days_from_when_it_was_full_first(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.RCPT, reply("450 4.2.0 busy"), times=1)
    email_id = harness.schedule()
    harness.deliver()
    assert harness.row(email_id)["mailbox_full_since"] is None
    relay.on(Phase.RCPT, reply("552 5.2.2 mailbox full"))
    harness.make_due()
    harness.deliver()
    assert harness.row(email_id)["mailbox_full_since"] is not None
    harness.query("UPDATE duepost.scheduled_email SET mailbox_full_since = now() - interval '6 days'")
    harness.make_due()
    harness.deliver()
    assert harness.ledger(email_id) == ["undeliverable"]
    assert harness.query("SELECT count(*) FROM duepost.suppression") == [(0,)]


def test_a_retry_by_hand_before_its_time_leaves_no_date_in_the_future(harness: Harness, relay: ScriptedRelay) -> None:
    email_id = harness.schedule(scheduled_at="2999-01-01T00:00:00Z")
    with harness.application.transaction() as cursor:
        assert emails.retry_now(cursor, email_id)
    harness.deliver()
    assert "2999" not in message_from_bytes(relay.messages[0].content)["Date"]


def test_what_the_relay_has_refused_for_now_is_a_definite_no_and_can_be_cleared(
    harness: Harness, relay: ScriptedRelay
) -> None:
    relay.on(Phase.DOT, reply("451 4.3.0 later"), times=1)
    email_id = harness.schedule()
    harness.deliver()
    assert harness.query("SELECT duepost.clear_scheduled_email(%(id)s)", id=email_id) == [("cleared",)]
    harness.deliver()
    assert harness.ledger(email_id) == ["cleared"]
    assert relay.messages == []


def test_a_relay_that_hangs_at_one_email_keeps_no_other_waiting(
    harness: Harness, relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It hangs for longer than the others may take: the limit of a reply is not what lets them go.
    monkeypatch.setenv("DUEPOST_SMTP_TIMEOUT", "60")
    harness.restart()
    relay.on(Phase.RCPT, hang(), reply("250 Ok"), when=lambda line: "slow" in line)
    ids = [harness.schedule(address=f"{name}@example.com") for name in ("a", "slow", "b", "c", "d")]
    harness.enqueue()
    consumer = harness.app.broker.consume("duepost_send", prefetch=100, timeout=1000)
    with ThreadPoolExecutor(len(ids)) as pool:
        done = [pool.submit(harness.process, message) for _ in ids if (message := next(consumer))]
        others = [email_id for number, email_id in enumerate(ids) if number != 1]
        wait_until(lambda: all(harness.ledger(email_id) == ["sent"] for email_id in others))
        assert harness.row(ids[1])["state"] == "sending"
        relay.release()
        for each in done:
            each.result(30)
    consumer.close()
    assert harness.ledger(ids[1]) == ["sent"]
