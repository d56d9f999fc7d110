"""The circuit: faults of the relay or of our settings are no email's fault, and do not hammer the relay."""

from pathlib import Path

import pytest

from actors.ruling import Phase
from tests.app_harness import Harness
from tests.relays import Action, ScriptedRelay, close, reply

RELAY_FAULTS = [
    pytest.param(Phase.BANNER, (reply("554 5.7.1 go away"),), id="banner 554"),
    pytest.param(Phase.BANNER, (reply("421 4.3.2 busy"),), id="banner 421"),
    pytest.param(Phase.BANNER, (close(),), id="no banner"),
    pytest.param(Phase.EHLO, (reply("550 5.0.0 no"),), id="EHLO refused"),
    pytest.param(Phase.MAIL, (reply("530 5.7.0 log in first"),), id="MAIL 530"),
    pytest.param(Phase.MAIL, (reply("550 5.7.1 sender refused"),), id="MAIL 550"),
]


def control(harness: Harness) -> tuple[object, ...]:
    [row] = harness.query("SELECT circuit_open, probe_pause, circuit_reason FROM duepost.route")
    return row


def probe_now(harness: Harness) -> None:
    harness.query("UPDATE duepost.route SET probe_at = now() WHERE circuit_open")
    harness.deliver()


@pytest.mark.parametrize(("phase", "actions"), RELAY_FAULTS)
def test_a_fault_of_the_relay_opens_the_circuit_and_drops_nothing(
    harness: Harness, relay: ScriptedRelay, phase: Phase, actions: tuple[Action, ...]
) -> None:
    relay.on(phase, *actions)
    ids = [harness.schedule() for _ in range(5)]
    harness.deliver()
    assert control(harness)[0] is True
    assert [harness.row(each)["state"] for each in ids] == ["scheduled"] * 5


def test_a_relay_that_is_not_there_opens_the_circuit(harness: Harness, relay: ScriptedRelay) -> None:
    email_id = harness.schedule()
    relay.stop()
    harness.deliver()
    assert control(harness)[0] is True
    assert harness.row(email_id)["attempts"] == 0


def test_while_open_nothing_is_attempted_but_one_probe_in_each_pause(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.BANNER, reply("554 5.7.1 go away"))
    for _ in range(20):
        harness.schedule()
    harness.deliver()
    assert relay.connections == 1
    for _ in range(3):
        harness.deliver()
    assert relay.connections == 1
    probe_now(harness)
    harness.deliver()
    assert relay.connections == 2


def test_pauses_between_probes_double_up_to_five_minutes(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.BANNER, reply("554 5.7.1 go away"))
    harness.schedule()
    harness.deliver()
    pauses = [control(harness)[1]]
    for _ in range(8):
        probe_now(harness)
        pauses.append(control(harness)[1])
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300, 300]


def test_a_clock_that_goes_back_does_not_put_off_the_next_probe(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.BANNER, reply("554 5.7.1 go away"), times=1)
    email_id = harness.schedule()
    harness.deliver()
    harness.query("UPDATE duepost.route SET probe_at = probe_at + interval '1 h'")
    harness.deliver()
    assert harness.ledger(email_id) == ["sent"]


def test_the_first_success_closes_it_and_everything_flows_on(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.BANNER, reply("554 5.7.1 go away"))
    ids = [harness.schedule() for _ in range(10)]
    harness.deliver()
    relay.forget()
    probe_now(harness)
    assert control(harness)[0] is False
    harness.deliver()
    assert [harness.ledger(each) for each in ids] == [["sent"]] * 10


def test_a_refused_recipient_of_the_probe_closes_it_for_the_relay_works(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.BANNER, reply("554 5.7.1 go away"))
    harness.schedule()
    harness.deliver()
    relay.forget()
    relay.on(Phase.RCPT, reply("550 5.1.1 no such user"))
    probe_now(harness)
    assert control(harness)[0] is False


def test_a_thousand_due_emails_against_a_refused_login_make_few_connections_and_count_no_attempt(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.integration.conftest import settings_of

    with ScriptedRelay(auth=("user", "right")) as relay:
        wrong = relay.url.replace("right", "wrong")
        for name, value in settings_of(url, wrong, tmp_path).items():
            monkeypatch.setenv(name, value)
        harness = Harness(url, tmp_path)
        try:
            harness.query(
                "SELECT count(duepost.schedule_email(kind => 'w', address => 'a' || i || '@example.com',"
                " subject => 's', body_text => 'b')) FROM generate_series(1, 1000) AS i"
            )
            harness.deliver()
            # However long that took: it is not yet time for a probe.
            harness.query("UPDATE duepost.route SET probe_at = now() + make_interval(secs => probe_pause)")
            harness.deliver()
            assert relay.connections <= 3
            assert relay.messages == []
            assert harness.query("SELECT state, attempts, count(*) FROM duepost.scheduled_email GROUP BY 1, 2") == [
                ("scheduled", 0, 1000)
            ]
            probe_now(harness)
            assert harness.query("SELECT sum(attempts) FROM duepost.scheduled_email") == [(1,)]
            assert control(harness)[2] == "auth 535 5.7.8"
        finally:
            harness.close()


def test_an_email_whose_own_sender_is_refused_does_not_block_the_line(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.MAIL, reply("550 5.7.1 not yours"), when=lambda line: "forged" in line)
    forged = harness.schedule(sender="forged@example.org")
    other = harness.schedule()
    harness.deliver()
    assert harness.row(forged)["attempts"] == 1
    probe_now(harness)
    harness.deliver()
    assert harness.ledger(other) == ["sent"]


def test_the_circuit_asks_for_its_own_probe(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.BANNER, reply("554 5.7.1 go away"))
    harness.schedule()
    harness.deliver()
    assert harness.query(
        "SELECT q.eta = c.probe_at FROM dramatiq.queue q, duepost.route c WHERE queue_name = 'duepost_scheduler'"
    ) == [(True,)]


@pytest.mark.parametrize("text", ["450 4.3.0 too busy", "503 5.5.1 bad sequence"])
def test_a_probe_that_the_relay_does_not_really_answer_has_failed(
    harness: Harness, relay: ScriptedRelay, text: str
) -> None:
    relay.on(Phase.BANNER, reply("554 5.7.1 go away"))
    harness.schedule()
    harness.deliver()
    relay.forget()
    relay.on(Phase.MAIL, reply(text))
    probe_now(harness)
    assert control(harness) == (True, 10, "banner 554 5.7.1")


def test_a_probe_that_fails_before_the_relay_is_asked_leaves_its_turn_to_another(
    harness: Harness, relay: ScriptedRelay
) -> None:
    relay.on(Phase.BANNER, reply("554 5.7.1 go away"))
    well = harness.schedule()
    harness.deliver()
    relay.forget()
    harness.query("UPDATE duepost.scheduled_email SET due_at = now() + interval '1 h'")
    harness.schedule(template="missing")
    probe_now(harness)
    harness.deliver()
    assert control(harness) == (True, 5, "banner 554 5.7.1")
    assert harness.query("SELECT probe_at <= now() FROM duepost.route") == [(True,)]
    harness.query("UPDATE duepost.scheduled_email SET due_at = now() WHERE id = %(id)s", id=well)
    harness.deliver()
    assert harness.ledger(well) == ["sent"]
    assert control(harness)[0] is False


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
    harness: Harness, relay: ScriptedRelay, phase: Phase, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alerts: list[object] = []
    monkeypatch.setattr("actors.alerts.alerts.circuit_opened", lambda ruling, _: alerts.append(ruling))
    relay.on(phase, reply(said))
    ids = [harness.schedule() for _ in range(20)]
    for _ in range(3):
        harness.deliver()
        probe_now(harness)
    assert [harness.row(each)["state"] for each in ids] == ["scheduled"] * 20
    assert harness.query("SELECT count(*) FROM duepost.delivery") == [(0,)]
    assert harness.query("SELECT count(*) FROM duepost.suppression") == [(0,)]
    assert control(harness)[0] is True
    reason = str(control(harness)[2])
    assert reason.startswith(f"{phase} {said[:3]}")
    assert ", about " in reason
    assert "example.com" not in reason
    assert len(alerts) == 1
    relay.forget()
    probe_now(harness)
    harness.make_due()
    harness.deliver()
    assert [harness.ledger(each) for each in ids] == [["sent"]] * 20


@pytest.mark.parametrize(("phase", "said"), ABOUT_US)
def test_who_has_an_email_keeps_it_when_another_recipients_copy_is_refused_for_our_sake(
    harness: Harness, relay: ScriptedRelay, phase: Phase, said: str
) -> None:
    for user in ("ann", "bob", "eve"):
        harness.recipient(user, f"{user}@example.com")
    # The first copy is taken, whoever's it is.
    relay.on(phase, reply(said))
    relay.on(phase, reply("354 go ahead" if phase is Phase.DATA else "250 2.0.0 ok"), times=1)
    email_id = harness.schedule(users=["ann", "bob", "eve"])
    harness.deliver()
    assert len(relay.messages) == 1
    assert harness.row(email_id)["state"] == "scheduled"
    relay.forget()
    probe_now(harness)
    harness.make_due()
    harness.deliver()
    assert harness.ledger(email_id) == ["sent"] * 3
    assert sorted(to for message in relay.messages for to in message.recipients) == [
        "ann@example.com",
        "bob@example.com",
        "eve@example.com",
    ]
