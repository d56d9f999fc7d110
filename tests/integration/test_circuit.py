"""The circuit: faults of the relay or of our settings are no email's fault, and do not hammer the relay."""

from pathlib import Path

import pytest

from actors.smtp.verdicts import Phase
from tests.postroom import Postroom
from tests.relays import Action, ScriptedRelay, close, reply

RELAY_FAULTS = [
    pytest.param(Phase.BANNER, (reply("554 5.7.1 go away"),), id="banner 554"),
    pytest.param(Phase.BANNER, (reply("421 4.3.2 busy"),), id="banner 421"),
    pytest.param(Phase.BANNER, (close(),), id="no banner"),
    pytest.param(Phase.EHLO, (reply("550 5.0.0 no"),), id="EHLO refused"),
    pytest.param(Phase.MAIL, (reply("530 5.7.0 log in first"),), id="MAIL 530"),
    pytest.param(Phase.MAIL, (reply("550 5.7.1 sender refused"),), id="MAIL 550"),
]


def control(postroom: Postroom) -> tuple[object, ...]:
    [row] = postroom.query("SELECT circuit_open, probe_pause, circuit_reason FROM duepost.control")
    return row


def probe_now(postroom: Postroom) -> None:
    postroom.query("UPDATE duepost.control SET probe_at = now()")
    postroom.deliver()


@pytest.mark.parametrize(("phase", "actions"), RELAY_FAULTS)
def test_a_fault_of_the_relay_opens_the_circuit_and_drops_nothing(
    postroom: Postroom, relay: ScriptedRelay, phase: Phase, actions: tuple[Action, ...]
) -> None:
    relay.on(phase, *actions)
    ids = [postroom.schedule() for _ in range(5)]
    postroom.deliver()
    assert control(postroom)[0] is True
    assert [postroom.row(each)["state"] for each in ids] == ["scheduled"] * 5


def test_a_relay_that_is_not_there_opens_the_circuit(postroom: Postroom, relay: ScriptedRelay) -> None:
    email_id = postroom.schedule()
    relay.stop()
    postroom.deliver()
    assert control(postroom)[0] is True
    assert postroom.row(email_id)["attempts"] == 0


def test_while_open_nothing_is_attempted_but_one_probe_in_each_pause(postroom: Postroom, relay: ScriptedRelay) -> None:
    relay.on(Phase.BANNER, reply("554 5.7.1 go away"))
    for _ in range(20):
        postroom.schedule()
    postroom.deliver()
    assert relay.connections == 1
    for _ in range(3):
        postroom.deliver()
    assert relay.connections == 1
    probe_now(postroom)
    postroom.deliver()
    assert relay.connections == 2


def test_pauses_between_probes_double_up_to_five_minutes(postroom: Postroom, relay: ScriptedRelay) -> None:
    relay.on(Phase.BANNER, reply("554 5.7.1 go away"))
    postroom.schedule()
    postroom.deliver()
    pauses = [control(postroom)[1]]
    for _ in range(8):
        probe_now(postroom)
        pauses.append(control(postroom)[1])
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300, 300]


def test_a_clock_that_goes_back_does_not_put_off_the_next_probe(postroom: Postroom, relay: ScriptedRelay) -> None:
    relay.on(Phase.BANNER, reply("554 5.7.1 go away"), times=1)
    email_id = postroom.schedule()
    postroom.deliver()
    postroom.query("UPDATE duepost.control SET probe_at = probe_at + interval '1 h', swept_at = now() + interval '1 h'")
    postroom.deliver()
    assert postroom.ledger(email_id) == ["sent"]


def test_the_first_success_closes_it_and_everything_flows_on(postroom: Postroom, relay: ScriptedRelay) -> None:
    relay.on(Phase.BANNER, reply("554 5.7.1 go away"))
    ids = [postroom.schedule() for _ in range(10)]
    postroom.deliver()
    relay.forget()
    probe_now(postroom)
    assert control(postroom)[0] is False
    postroom.deliver()
    assert [postroom.ledger(each) for each in ids] == [["sent"]] * 10


def test_a_refused_recipient_of_the_probe_closes_it_for_the_relay_works(
    postroom: Postroom, relay: ScriptedRelay
) -> None:
    relay.on(Phase.BANNER, reply("554 5.7.1 go away"))
    postroom.schedule()
    postroom.deliver()
    relay.forget()
    relay.on(Phase.RCPT, reply("550 5.1.1 no such user"))
    probe_now(postroom)
    assert control(postroom)[0] is False


def test_a_thousand_due_emails_against_a_refused_login_make_few_connections_and_count_no_attempt(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.integration.conftest import settings_of

    with ScriptedRelay(auth=("user", "right")) as relay:
        wrong = relay.url.replace("right", "wrong")
        for name, value in settings_of(url, wrong, tmp_path).items():
            monkeypatch.setenv(name, value)
        postroom = Postroom(url, tmp_path)
        try:
            postroom.query(
                "SELECT count(duepost.schedule_email(kind => 'w', address => 'a' || i || '@example.com',"
                " subject => 's', body_text => 'b')) FROM generate_series(1, 1000) AS i"
            )
            postroom.deliver()
            # However long that took: it is not yet time for a probe.
            postroom.query("UPDATE duepost.control SET probe_at = now() + make_interval(secs => probe_pause)")
            postroom.deliver()
            assert relay.connections <= 3
            assert relay.messages == []
            assert postroom.query("SELECT state, attempts, count(*) FROM duepost.scheduled_email GROUP BY 1, 2") == [
                ("scheduled", 0, 1000)
            ]
            probe_now(postroom)
            assert postroom.query("SELECT sum(attempts) FROM duepost.scheduled_email") == [(1,)]
            assert control(postroom)[2] == "auth 535 5.7.8"
        finally:
            postroom.close()


def test_an_email_whose_own_sender_is_refused_does_not_block_the_line(postroom: Postroom, relay: ScriptedRelay) -> None:
    relay.on(Phase.MAIL, reply("550 5.7.1 not yours"), when=lambda line: "forged" in line)
    forged = postroom.schedule(sender="forged@example.org")
    other = postroom.schedule()
    postroom.deliver()
    assert postroom.row(forged)["attempts"] == 1
    probe_now(postroom)
    postroom.deliver()
    assert postroom.ledger(other) == ["sent"]


def test_the_circuit_asks_for_its_own_probe(postroom: Postroom, relay: ScriptedRelay) -> None:
    relay.on(Phase.BANNER, reply("554 5.7.1 go away"))
    postroom.schedule()
    postroom.deliver()
    assert postroom.query(
        "SELECT q.eta = c.probe_at FROM dramatiq.queue q, duepost.control c WHERE queue_name = 'duepost_scheduler'"
    ) == [(True,)]


@pytest.mark.parametrize("text", ["450 4.3.0 too busy", "503 5.5.1 bad sequence"])
def test_a_probe_that_the_relay_does_not_really_answer_has_failed(
    postroom: Postroom, relay: ScriptedRelay, text: str
) -> None:
    relay.on(Phase.BANNER, reply("554 5.7.1 go away"))
    postroom.schedule()
    postroom.deliver()
    relay.forget()
    relay.on(Phase.MAIL, reply(text))
    probe_now(postroom)
    assert control(postroom) == (True, 10, "banner 554 5.7.1")


ABOUT_US = [
    pytest.param(Phase.RCPT, "554 5.7.1 <noreply@example.com>: Sender address rejected: Access denied", id="sender"),
    pytest.param(Phase.RCPT, "554 5.7.1 <ada@example.com>: Relay access denied", id="relaying"),
    pytest.param(Phase.RCPT, "454 4.7.1 <ada@example.com>: Relay access denied", id="relaying, for now"),
    pytest.param(Phase.RCPT, "554 5.7.1 <unknown[127.0.0.1]>: Client host rejected: Access denied", id="host"),
    pytest.param(Phase.RCPT, "504 5.5.2 <web>: Helo command rejected: need fully-qualified hostname", id="HELO"),
    pytest.param(Phase.RCPT, "550 5.1.1 <noreply@example.com>: Sender address rejected: User unknown", id="by 5.1.1"),
    pytest.param(Phase.DATA, "554 5.7.1 <DATA>: Data command rejected: limit of 400 rcpts per 24 hours", id="quota"),
    pytest.param(Phase.DOT, "554 5.2.252 SendAsDenied; not allowed to send as noreply@example.com", id="send as"),
    pytest.param(Phase.DOT, "554 Duplicate header 'DKIM-Signature'", id="header"),
]


@pytest.mark.parametrize(("phase", "said"), ABOUT_US)
def test_what_is_about_us_drops_nothing_opens_the_circuit_and_is_one_alert_in_whatever_phase(
    postroom: Postroom, relay: ScriptedRelay, phase: Phase, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alerts: list[object] = []
    monkeypatch.setattr("actors.reporting.circuit_opened", alerts.append)
    relay.on(phase, reply(said))
    ids = [postroom.schedule() for _ in range(20)]
    for _ in range(3):
        postroom.deliver()
        probe_now(postroom)
    assert [postroom.row(each)["state"] for each in ids] == ["scheduled"] * 20
    assert postroom.query("SELECT count(*) FROM duepost.delivery") == [(0,)]
    assert postroom.query("SELECT count(*) FROM duepost.suppression") == [(0,)]
    assert control(postroom)[0] is True
    reason = str(control(postroom)[2])
    assert reason.startswith(f"{phase} {said[:3]}")
    assert ", about " in reason
    assert "example.com" not in reason
    assert len(alerts) == 1
    relay.forget()
    probe_now(postroom)
    postroom.make_due()
    postroom.deliver()
    assert [postroom.ledger(each) for each in ids] == [["sent"]] * 20


@pytest.mark.parametrize(("phase", "said"), ABOUT_US)
def test_who_has_an_email_keeps_it_when_another_recipients_copy_is_refused_for_our_sake(
    postroom: Postroom, relay: ScriptedRelay, phase: Phase, said: str
) -> None:
    for user in ("ann", "bob", "eve"):
        postroom.recipient(user, f"{user}@example.com")
    # The first copy is taken, whoever's it is.
    relay.on(phase, reply(said))
    relay.on(phase, reply("354 go ahead" if phase is Phase.DATA else "250 2.0.0 ok"), times=1)
    email_id = postroom.schedule(users=["ann", "bob", "eve"])
    postroom.deliver()
    assert len(relay.messages) == 1
    assert postroom.row(email_id)["state"] == "scheduled"
    relay.forget()
    probe_now(postroom)
    postroom.make_due()
    postroom.deliver()
    assert postroom.ledger(email_id) == ["sent"] * 3
    assert sorted(to for message in relay.messages for to in message.recipients) == [
        "ann@example.com",
        "bob@example.com",
        "eve@example.com",
    ]
