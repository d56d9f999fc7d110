"""No drop is final at once: what was undeliverable can be reopened, and refusals of everybody are about us."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from actors.ruling import Phase
from models import operations, undeliverable
from models.finding import Filter
from models.words import Reopening
from tests.app_harness import Harness
from tests.relays import ScriptedRelay, reply
from tests.waiting import wait_until

REFUSED = "554 5.7.1 Denied by the policy of this house"


def reopen(harness: Harness, email_id: int) -> Reopening:
    with harness.application.transaction() as cursor:
        return undeliverable.reopen(cursor, email_id)


def kept(harness: Harness) -> list[int]:
    return operations.reopenable(harness.application, Filter())


def refused(harness: Harness, relay: ScriptedRelay, *, text: str = REFUSED, **arguments: object) -> int:
    relay.on(Phase.RCPT, reply(text))
    email_id = harness.schedule(**arguments)
    harness.deliver()
    relay.forget()
    return email_id


@pytest.mark.parametrize("phase", [Phase.RCPT, Phase.DATA, Phase.DOT])
def test_what_was_undeliverable_is_sent_once_it_is_reopened(
    each_harness: Harness, relay: ScriptedRelay, phase: Phase
) -> None:
    harness = each_harness
    relay.on(phase, reply("554 5.6.0 no"))
    email_id = harness.schedule(
        key="once", headers={"X-Order": "12"}, subject="Grüße", body_text="b" * 3000, body_html="<p>h</p>",
        sender="Shop <shop@example.com>", reply_to="help@example.com",
    )  # fmt: skip
    before = harness.row(email_id)
    harness.deliver()
    assert harness.ledger(email_id) == ["undeliverable"]
    relay.forget()
    assert reopen(harness, email_id) is Reopening.REOPENED
    after = harness.row(email_id)
    fixed = (
        "message_id_header",
        "date_header",
        "key",
        "subject",
        "body_text",
        "body_html",
        "headers",
        "sender",
        "reply_to",
    )
    assert {name: after[name] for name in fixed} == {name: before[name] for name in fixed}
    assert after["attempts"] == 1
    harness.deliver()
    assert sorted(harness.ledger(email_id)) == ["sent", "undeliverable"]
    assert len(relay.messages) == 1
    assert kept(harness) == []


def test_a_context_comes_back_as_it_was(harness: Harness, relay: ScriptedRelay) -> None:
    harness.template("bill", subject="Bill", text="{{ amount }}")
    relay.on(Phase.RCPT, reply(REFUSED))
    email_id = harness.schedule(template="bill", context={"amount": 12345678901234567890, "a": {"b": [1, None]}})
    before = harness.row(email_id)["context"]
    harness.deliver()
    assert reopen(harness, email_id) is Reopening.REOPENED
    assert harness.row(email_id)["context"] == before


def test_the_same_key_gives_the_same_id_before_and_after(harness: Harness, relay: ScriptedRelay) -> None:
    email_id = refused(harness, relay, key="lost-1")
    assert harness.schedule(key="lost-1") == email_id
    reopen(harness, email_id)
    assert harness.schedule(key="lost-1") == email_id


def test_the_suppression_that_came_with_it_is_lifted(harness: Harness, relay: ScriptedRelay) -> None:
    email_id = refused(harness, relay, text="550 5.1.1 no such user", address="Ann@example.com")
    assert harness.query("SELECT address FROM duepost.suppression") == [("ann@example.com",)]
    reopen(harness, email_id)
    assert harness.query("SELECT address FROM duepost.suppression") == []
    harness.deliver()
    assert sorted(harness.ledger(email_id)) == ["sent", "undeliverable"]


def test_only_those_who_could_not_be_reached_get_it(harness: Harness, relay: ScriptedRelay) -> None:
    for user in ("ann", "bob", "cem"):
        harness.recipient(user, f"{user}@example.com")
    relay.on(Phase.RCPT, reply(REFUSED), when=lambda line: "bob" in line)
    email_id = harness.schedule(users=["ann", "bob", "cem"])
    harness.deliver()
    assert harness.ledger(email_id) == ["sent", "undeliverable", "sent"]
    relay.forget()
    reopen(harness, email_id)
    harness.deliver()
    assert sorted(list(message.recipients) for message in relay.messages) == [
        ["ann@example.com"], ["bob@example.com"], ["cem@example.com"]
    ]  # fmt: skip


def test_one_user_of_an_email_that_goes_on_is_reopened_too(harness: Harness, relay: ScriptedRelay) -> None:
    for user in ("ann", "bob"):
        harness.recipient(user, f"{user}@example.com")
    relay.on(Phase.RCPT, reply(REFUSED), when=lambda line: "ann" in line)
    relay.on(Phase.RCPT, reply("450 4.2.0 later"), when=lambda line: "bob" in line)
    email_id = harness.schedule(users=["ann", "bob"])
    harness.deliver()
    relay.forget()
    assert reopen(harness, email_id) is Reopening.REOPENED
    harness.make_due()
    harness.deliver()
    assert harness.ledger(email_id) == ["sent", "sent"]


def test_what_was_kept_as_a_row_of_the_view_comes_back_too(harness: Harness, relay: ScriptedRelay) -> None:
    email_id = refused(harness, relay, headers={"X-Order": "12"})
    harness.query(
        "UPDATE duepost.undeliverable_email SET email = email - ARRAY['channel', 'is_held', 'item_id']"
        """ || '{"state": "sending", "claim": 1, "worker_id": 1, "route": null}'"""
    )
    assert reopen(harness, email_id) is Reopening.REOPENED
    harness.deliver()
    assert sorted(harness.ledger(email_id)) == ["sent", "undeliverable"]
    assert b"X-Order: 12" in relay.messages[0].content


def test_what_is_over_is_not_sent_late(harness: Harness, relay: ScriptedRelay) -> None:
    email_id = refused(harness, relay, expires_at="2100-01-01T00:00:00Z")
    harness.query(
        "UPDATE duepost.undeliverable_email"
        " SET email = jsonb_set(email, '{expires_at}', to_jsonb(now() - interval '1 s'))"
    )
    assert reopen(harness, email_id) is Reopening.EXPIRED
    assert harness.query("SELECT count(*) FROM duepost.scheduled_email") == [(0,)]


def test_what_is_not_undeliverable_is_left_alone(harness: Harness) -> None:
    sent, waiting = harness.schedule(), harness.schedule(scheduled_at="2100-01-01T00:00:00Z")
    harness.deliver()
    for email_id in (sent, waiting, 2**62):
        assert reopen(harness, email_id) is Reopening.NOT_UNDELIVERABLE


def test_it_is_kept_for_its_days_and_no_longer(harness: Harness, relay: ScriptedRelay) -> None:
    email_id = refused(harness, relay)
    [(days,)] = harness.query("SELECT kept_until - finished_at = interval '7 days' FROM duepost.undeliverable_email")
    assert days is True
    harness.query("UPDATE duepost.undeliverable_email SET kept_until = now() - interval '1 s'")
    harness.query("UPDATE duepost.control SET maintained_at = NULL")
    harness.enqueue()
    assert harness.query("SELECT count(*) FROM duepost.undeliverable_email") == [(0,)]
    assert harness.query("SELECT count(*) FROM duepost.undeliverable_recipient") == [(0,)]
    assert reopen(harness, email_id) is Reopening.NOT_KEPT


def test_zero_days_keep_no_content(harness: Harness, relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUEPOST_KEEP_UNDELIVERABLE_DAYS", "0")
    harness.restart()
    email_id = refused(harness, relay)
    assert harness.query("SELECT email FROM duepost.undeliverable_email") == [(None,)]
    assert reopen(harness, email_id) is Reopening.NOT_KEPT


def circuit(harness: Harness) -> bool:
    [(is_open,)] = harness.query("SELECT circuit_open FROM duepost.route")
    return is_open is True


def probe(harness: Harness) -> None:
    harness.make_due()
    harness.query("UPDATE duepost.route SET probe_at = now()")
    harness.deliver()


@pytest.mark.parametrize("phase", [Phase.RCPT, Phase.DATA, Phase.DOT])
def test_ten_in_a_row_refused_alike_go_back_and_the_circuit_opens(
    each_harness: Harness, relay: ScriptedRelay, phase: Phase
) -> None:
    harness = each_harness
    relay.on(phase, reply("554 5.7.1 <x@example.com>: computer says no (id 4bXq1)"))
    ids = [harness.schedule(address=f"user{number}@example.com") for number in range(10)]
    harness.deliver()
    assert circuit(harness)
    assert [harness.row(each)["state"] for each in ids] == ["scheduled"] * 10
    relay.forget()
    probe(harness)
    assert not circuit(harness)
    harness.make_due()
    harness.deliver()
    assert len(relay.messages) == 10
    assert kept(harness) == []


def test_five_of_different_domains_suffice(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.RCPT, reply(REFUSED))
    ids = [harness.schedule(address=f"ann@{number}.example.com") for number in range(5)]
    harness.deliver()
    assert circuit(harness)
    assert [harness.row(each)["state"] for each in ids] == ["scheduled"] * 5
    assert harness.query("SELECT circuit_reason FROM duepost.route") == [("rcpt 554 5.7.1, all recipients alike",)]


def test_refusals_among_acceptances_are_the_recipients_own(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.RCPT, reply(REFUSED), when=lambda line: "dead" in line)
    for number in range(30):
        harness.schedule(address=f"{'dead' if number % 3 else 'ann'}{number}@{number}.example.com")
        harness.deliver()
    assert not circuit(harness)
    assert harness.query("SELECT outcome, count(*) FROM duepost.delivery GROUP BY 1 ORDER BY 1") == [
        ("sent", 10), ("undeliverable", 20)
    ]  # fmt: skip


def test_refusals_with_different_words_are_the_recipients_own(harness: Harness, relay: ScriptedRelay) -> None:
    words = [
        "alpha",
        "bravo",
        "charlie",
        "delta",
        "echo",
        "foxtrot",
        "golf",
        "hotel",
        "india",
        "juliet",
        "kilo",
        "lima",
    ]
    for word in words:
        refused(harness, relay, text=f"550 5.7.1 mailbox of {word} is closed", address=f"{word}@{word}.example.com")
    assert not circuit(harness)


def test_dead_addresses_in_a_row_are_dropped_until_they_are_fifty(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.RCPT, reply("550 5.1.1 no such user here"))
    for number in range(49):
        harness.schedule(address=f"user{number}@{number}.example.com")
    harness.deliver()
    assert not circuit(harness)
    harness.schedule(address="user@example.com")
    harness.deliver()
    assert circuit(harness)
    assert harness.query("SELECT count(*) FROM duepost.scheduled_email") == [(50,)]
    assert harness.query("SELECT count(*) FROM duepost.suppression") == [(0,)]


def test_a_probe_that_is_refused_alike_has_failed_and_nobody_is_dropped(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.RCPT, reply(REFUSED))
    for number in range(10):
        harness.schedule(address=f"user{number}@example.com")
    harness.deliver()
    for _ in range(4):
        probe(harness)
        assert circuit(harness)
    assert harness.query("SELECT count(*) FROM duepost.scheduled_email") == [(10,)]
    relay.forget()
    relay.on(Phase.RCPT, reply("550 5.1.1 no such user"))
    probe(harness)
    assert not circuit(harness)


def test_users_of_one_email_who_are_all_refused_alike_go_back_too(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.RCPT, reply(REFUSED))
    users = [f"user{number:02}" for number in range(12)]
    for user in users:
        harness.recipient(user, f"{user}@example.com")
    email_id = harness.schedule(users=users)
    harness.deliver()
    assert circuit(harness)
    assert harness.ledger(email_id) == []
    relay.forget()
    probe(harness)
    assert harness.ledger(email_id) == ["sent"] * 12


def test_the_sign_in_code_has_its_turn_at_the_probe_beside_a_refused_campaign(
    harness: Harness, relay: ScriptedRelay
) -> None:
    relay.on(Phase.DOT, reply("550 5.7.1 we do not like this"))
    for number in range(40):
        harness.schedule(kind="digest", address=f"user{number}@example.com")
    harness.deliver()
    assert circuit(harness)
    relay.forget()
    relay.on(Phase.RCPT, reply("550 5.7.1 we do not like this"), when=lambda line: "user" in line)
    code = harness.schedule(kind="code", address="ann@example.com")
    for _ in range(30):
        if not circuit(harness):
            break
        probe(harness)
    assert harness.ledger(code) == ["sent"]


def test_what_is_kept_is_found_by_kind_time_and_words(harness: Harness, relay: ScriptedRelay, url: str) -> None:
    first = refused(harness, relay, kind="invoice", text="550 5.7.1 Mailbox ON holiday 100%_")
    second = refused(harness, relay, kind="digest", text="550 5.6.0 bad content", address="bob@example.com")

    def find(kind: str | None = None, reply: str | None = None) -> list[int]:
        return operations.reopenable(harness.application, Filter(kind=kind, reply=reply))

    assert find(kind="invoice") == [first]
    assert find(reply="mailbox on") == [first]
    assert find(reply="100%_") == [first]
    assert find(reply="%") == [first]
    assert find() == [first, second]
    assert find(kind="digest", reply="mailbox") == []


#: What refuses a recipient waits, while it holds the email's row, for whoever holds the lock.
SLOW_REFUSAL = """
CREATE FUNCTION slow_refusal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(4711);
    RETURN new;
END
$$;
CREATE TRIGGER slow_refusal BEFORE INSERT ON duepost.undeliverable_recipient
FOR EACH ROW EXECUTE FUNCTION slow_refusal()
"""


def test_two_that_bring_each_other_back_wait_for_each_other_in_one_order(
    harness: Harness, relay: ScriptedRelay, caplog: pytest.LogCaptureFixture
) -> None:
    relay.on(Phase.RCPT, reply(REFUSED))
    users = [f"user{number}" for number in range(6)]
    for user in users:
        harness.recipient(user, f"{user}@{user}.example.com")
    ids = [harness.schedule(users=users) for _ in range(2)]
    harness.enqueue()
    claimed = [email for each in ids if (email := harness.claim(each)) is not None]
    judged = [list(harness.deliveries(email)) for email in claimed]
    # All but one are noted while the relay is still asked for the last.
    for email, rulings in zip(claimed, judged, strict=True):
        for each in rulings[:3]:
            harness.app.records.note(email, each)
    harness.query(SLOW_REFUSAL)

    with ThreadPoolExecutor(2) as pool, closing(harness.application.connect()) as holder:
        with holder.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(4711)")
            concluding = [pool.submit(harness.conclude, *each) for each in zip(claimed, judged, strict=True)]
            wait_until(
                lambda: (
                    harness.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") == [(2,)]
                ),
                what="each to hold its own row",
            )
            cursor.execute("SELECT pg_advisory_unlock(4711)")
        for each_one in concluding:
            each_one.result(timeout=60)
    assert "DeadlockDetected" not in caplog.text
    assert circuit(harness)
    assert [harness.row(each)["state"] for each in ids] == ["scheduled"] * 2
    assert harness.query("SELECT count(*) FROM duepost.scheduled_email_user WHERE outcome IS NULL") == [(12,)]
