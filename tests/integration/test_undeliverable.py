"""No drop is final at once: what was undeliverable can be reopened, and refusals of everybody are about us."""

from collections.abc import Callable

import pytest

from actors.smtp.verdicts import Phase
from models import undeliverable
from models.words import Reopening
from tests.postroom import Postroom
from tests.relays import ScriptedRelay, reply

REFUSED = "554 5.7.1 Denied by the policy of this house"


def reopen(postroom: Postroom, email_id: int) -> Reopening:
    with postroom.application.transaction() as cursor:
        return undeliverable.reopen(cursor, email_id)


def kept(postroom: Postroom) -> list[int]:
    return undeliverable.find(postroom.application, kind=None, since=None, reply=None)


def refused(postroom: Postroom, relay: ScriptedRelay, *, text: str = REFUSED, **arguments: object) -> int:
    relay.on(Phase.RCPT, reply(text))
    email_id = postroom.schedule(**arguments)
    postroom.deliver()
    relay.forget()
    return email_id


@pytest.mark.parametrize("phase", [Phase.RCPT, Phase.DATA, Phase.DOT])
def test_what_was_undeliverable_is_sent_once_it_is_reopened(
    each_postroom: Postroom, relay: ScriptedRelay, phase: Phase
) -> None:
    postroom = each_postroom
    relay.on(phase, reply("554 5.6.0 no"))
    email_id = postroom.schedule(
        key="once", headers={"X-Order": "12"}, subject="Grüße", body_text="b" * 3000, body_html="<p>h</p>",
        sender="Shop <shop@example.com>", reply_to="help@example.com",
    )  # fmt: skip
    before = postroom.row(email_id)
    postroom.deliver()
    assert postroom.ledger(email_id) == ["undeliverable"]
    relay.forget()
    assert reopen(postroom, email_id) is Reopening.REOPENED
    after = postroom.row(email_id)
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
    postroom.deliver()
    assert sorted(postroom.ledger(email_id)) == ["sent", "undeliverable"]
    assert len(relay.messages) == 1
    assert kept(postroom) == []


def test_a_context_comes_back_as_it_was(postroom: Postroom, relay: ScriptedRelay) -> None:
    postroom.template("bill", subject="Bill", text="{{ amount }}")
    relay.on(Phase.RCPT, reply(REFUSED))
    email_id = postroom.schedule(template="bill", context={"amount": 12345678901234567890, "a": {"b": [1, None]}})
    before = postroom.row(email_id)["context"]
    postroom.deliver()
    assert reopen(postroom, email_id) is Reopening.REOPENED
    assert postroom.row(email_id)["context"] == before


def test_the_same_key_gives_the_same_id_before_and_after(postroom: Postroom, relay: ScriptedRelay) -> None:
    email_id = refused(postroom, relay, key="lost-1")
    assert postroom.schedule(key="lost-1") == email_id
    reopen(postroom, email_id)
    assert postroom.schedule(key="lost-1") == email_id


def test_the_suppression_that_came_with_it_is_lifted(postroom: Postroom, relay: ScriptedRelay) -> None:
    email_id = refused(postroom, relay, text="550 5.1.1 no such user", address="Ann@example.com")
    assert postroom.query("SELECT address FROM duepost.suppression") == [("ann@example.com",)]
    reopen(postroom, email_id)
    assert postroom.query("SELECT address FROM duepost.suppression") == []
    postroom.deliver()
    assert sorted(postroom.ledger(email_id)) == ["sent", "undeliverable"]


def test_only_those_who_could_not_be_reached_get_it(postroom: Postroom, relay: ScriptedRelay) -> None:
    for user in ("ann", "bob", "cem"):
        postroom.recipient(user, f"{user}@example.com")
    relay.on(Phase.RCPT, reply(REFUSED), when=lambda line: "bob" in line)
    email_id = postroom.schedule(users=["ann", "bob", "cem"])
    postroom.deliver()
    assert postroom.ledger(email_id) == ["sent", "undeliverable", "sent"]
    relay.forget()
    reopen(postroom, email_id)
    postroom.deliver()
    assert sorted(list(message.recipients) for message in relay.messages) == [
        ["ann@example.com"], ["bob@example.com"], ["cem@example.com"]
    ]  # fmt: skip


def test_one_user_of_an_email_that_goes_on_is_reopened_too(postroom: Postroom, relay: ScriptedRelay) -> None:
    for user in ("ann", "bob"):
        postroom.recipient(user, f"{user}@example.com")
    relay.on(Phase.RCPT, reply(REFUSED), when=lambda line: "ann" in line)
    relay.on(Phase.RCPT, reply("450 4.2.0 later"), when=lambda line: "bob" in line)
    email_id = postroom.schedule(users=["ann", "bob"])
    postroom.deliver()
    relay.forget()
    assert reopen(postroom, email_id) is Reopening.REOPENED
    postroom.make_due()
    postroom.deliver()
    assert postroom.ledger(email_id) == ["sent", "sent"]


def test_what_is_over_is_not_sent_late(postroom: Postroom, relay: ScriptedRelay) -> None:
    email_id = refused(postroom, relay, expires_at="2100-01-01T00:00:00Z")
    postroom.query(
        "UPDATE duepost.undeliverable_email"
        " SET email = jsonb_set(email, '{expires_at}', to_jsonb(now() - interval '1 s'))"
    )
    assert reopen(postroom, email_id) is Reopening.EXPIRED
    assert postroom.query("SELECT count(*) FROM duepost.scheduled_email") == [(0,)]


def test_what_is_not_undeliverable_is_left_alone(postroom: Postroom) -> None:
    sent, waiting = postroom.schedule(), postroom.schedule(scheduled_at="2100-01-01T00:00:00Z")
    postroom.deliver()
    for email_id in (sent, waiting, 2**62):
        assert reopen(postroom, email_id) is Reopening.NOT_UNDELIVERABLE


def test_it_is_kept_for_its_days_and_no_longer(postroom: Postroom, relay: ScriptedRelay) -> None:
    email_id = refused(postroom, relay)
    [(days,)] = postroom.query("SELECT kept_until - finished_at = interval '7 days' FROM duepost.undeliverable_email")
    assert days is True
    postroom.query("UPDATE duepost.undeliverable_email SET kept_until = now() - interval '1 s'")
    postroom.query("UPDATE duepost.control SET maintained_at = NULL")
    postroom.enqueue()
    assert postroom.query("SELECT count(*) FROM duepost.undeliverable_email") == [(0,)]
    assert postroom.query("SELECT count(*) FROM duepost.undeliverable_recipient") == [(0,)]
    assert reopen(postroom, email_id) is Reopening.NOT_KEPT


def test_zero_days_keep_no_content(postroom: Postroom, relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    from actors.settings import settings

    monkeypatch.setenv("DUEPOST_KEEP_UNDELIVERABLE_DAYS", "0")
    settings.cache_clear()
    email_id = refused(postroom, relay)
    assert postroom.query("SELECT email FROM duepost.undeliverable_email") == [(None,)]
    assert reopen(postroom, email_id) is Reopening.NOT_KEPT


def circuit(postroom: Postroom) -> bool:
    [(is_open,)] = postroom.query("SELECT circuit_open FROM duepost.control")
    return is_open is True


def probe(postroom: Postroom) -> None:
    postroom.make_due()
    postroom.query("UPDATE duepost.control SET probe_at = now()")
    postroom.deliver()


@pytest.mark.parametrize("phase", [Phase.RCPT, Phase.DATA, Phase.DOT])
def test_ten_in_a_row_refused_alike_go_back_and_the_circuit_opens(
    each_postroom: Postroom, relay: ScriptedRelay, phase: Phase
) -> None:
    postroom = each_postroom
    relay.on(phase, reply("554 5.7.1 <x@example.com>: computer says no (id 4bXq1)"))
    ids = [postroom.schedule(address=f"user{number}@example.com") for number in range(10)]
    postroom.deliver()
    assert circuit(postroom)
    assert [postroom.row(each)["state"] for each in ids] == ["scheduled"] * 10
    relay.forget()
    probe(postroom)
    assert not circuit(postroom)
    postroom.make_due()
    postroom.deliver()
    assert len(relay.messages) == 10
    assert kept(postroom) == []


def test_five_of_different_domains_suffice(postroom: Postroom, relay: ScriptedRelay) -> None:
    relay.on(Phase.RCPT, reply(REFUSED))
    ids = [postroom.schedule(address=f"ann@{number}.example.com") for number in range(5)]
    postroom.deliver()
    assert circuit(postroom)
    assert [postroom.row(each)["state"] for each in ids] == ["scheduled"] * 5
    assert postroom.query("SELECT circuit_reason FROM duepost.control") == [("rcpt 554 5.7.1, all recipients alike",)]


def test_refusals_among_acceptances_are_the_recipients_own(postroom: Postroom, relay: ScriptedRelay) -> None:
    relay.on(Phase.RCPT, reply(REFUSED), when=lambda line: "dead" in line)
    for number in range(30):
        postroom.schedule(address=f"{'dead' if number % 3 else 'ann'}{number}@{number}.example.com")
        postroom.deliver()
    assert not circuit(postroom)
    assert postroom.query("SELECT outcome, count(*) FROM duepost.delivery GROUP BY 1 ORDER BY 1") == [
        ("sent", 10), ("undeliverable", 20)
    ]  # fmt: skip


def test_refusals_with_different_words_are_the_recipients_own(postroom: Postroom, relay: ScriptedRelay) -> None:
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
        refused(postroom, relay, text=f"550 5.7.1 mailbox of {word} is closed", address=f"{word}@{word}.example.com")
    assert not circuit(postroom)


def test_dead_addresses_in_a_row_are_dropped_until_they_are_fifty(postroom: Postroom, relay: ScriptedRelay) -> None:
    relay.on(Phase.RCPT, reply("550 5.1.1 no such user here"))
    for number in range(49):
        postroom.schedule(address=f"user{number}@{number}.example.com")
    postroom.deliver()
    assert not circuit(postroom)
    postroom.schedule(address="user@example.com")
    postroom.deliver()
    assert circuit(postroom)
    assert postroom.query("SELECT count(*) FROM duepost.scheduled_email") == [(50,)]
    assert postroom.query("SELECT count(*) FROM duepost.suppression") == [(0,)]


def test_a_probe_that_is_refused_alike_has_failed_and_nobody_is_dropped(
    postroom: Postroom, relay: ScriptedRelay
) -> None:
    relay.on(Phase.RCPT, reply(REFUSED))
    for number in range(10):
        postroom.schedule(address=f"user{number}@example.com")
    postroom.deliver()
    for _ in range(4):
        probe(postroom)
        assert circuit(postroom)
    assert postroom.query("SELECT count(*) FROM duepost.scheduled_email") == [(10,)]
    relay.forget()
    relay.on(Phase.RCPT, reply("550 5.1.1 no such user"))
    probe(postroom)
    assert not circuit(postroom)


def test_users_of_one_email_who_are_all_refused_alike_go_back_too(postroom: Postroom, relay: ScriptedRelay) -> None:
    relay.on(Phase.RCPT, reply(REFUSED))
    users = [f"user{number:02}" for number in range(12)]
    for user in users:
        postroom.recipient(user, f"{user}@example.com")
    email_id = postroom.schedule(users=users)
    postroom.deliver()
    assert circuit(postroom)
    assert postroom.ledger(email_id) == []
    relay.forget()
    probe(postroom)
    assert postroom.ledger(email_id) == ["sent"] * 12


def test_the_sign_in_code_has_its_turn_at_the_probe_beside_a_refused_campaign(
    postroom: Postroom, relay: ScriptedRelay
) -> None:
    relay.on(Phase.DOT, reply("550 5.7.1 we do not like this"))
    for number in range(40):
        postroom.schedule(kind="digest", address=f"user{number}@example.com")
    postroom.deliver()
    assert circuit(postroom)
    relay.forget()
    relay.on(Phase.RCPT, reply("550 5.7.1 we do not like this"), when=lambda line: "user" in line)
    code = postroom.schedule(kind="code", address="ann@example.com")
    for _ in range(30):
        if not circuit(postroom):
            break
        probe(postroom)
    assert postroom.ledger(code) == ["sent"]


def test_what_is_kept_is_found_by_kind_time_and_words(postroom: Postroom, relay: ScriptedRelay, url: str) -> None:
    first = refused(postroom, relay, kind="invoice", text="550 5.7.1 Mailbox ON holiday 100%_")
    second = refused(postroom, relay, kind="digest", text="550 5.6.0 bad content", address="bob@example.com")
    find: Callable[..., list[int]] = lambda **given: undeliverable.find(  # noqa: E731
        postroom.application, **{"kind": None, "since": None, "reply": None, **given}
    )
    assert find(kind="invoice") == [first]
    assert find(reply="mailbox on") == [first]
    assert find(reply="100%_") == [first]
    assert find(reply="%") == [first]
    assert find() == [first, second]
    assert find(kind="digest", reply="mailbox") == []
