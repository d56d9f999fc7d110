"""The connection on real sockets; what each reply means is tested without them."""

import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest

from actors.channels import starting
from actors.channels.channel import Rulings
from actors.channels.smtp import relay as relay_module
from actors.channels.smtp import session as module
from actors.channels.smtp import transaction
from actors.channels.smtp.envelope import Envelope
from actors.channels.smtp.rehearsal import Inspection, inspect
from actors.channels.smtp.relay import Relay, Timeouts
from actors.channels.smtp.session import SmtpSession
from actors.delivery.event_loop import EventLoop, Slot
from actors.ruling import Phase, Ruling, Scope
from models.words import Verdict
from tests.relays import (
    Action,
    Message,
    ScriptedRelay,
    accept,
    close,
    drip,
    garbage,
    hang,
    last_word,
    reply,
    reset,
    stall,
)
from tests.smtp_client import AnyTime, Client, drive, wait_for

ADA, BOB, EVE = "ada@example.com", "bob@example.com", "eve@example.com"
PATIENT = Timeouts(connect=20, command=20, block=20, dot=20)
BRIEF = 0.15

Connect = Callable[..., Client]


@pytest.fixture(params=[wait_for, drive])
def connect(relay: ScriptedRelay, request: pytest.FixtureRequest) -> Iterator[Connect]:
    opened: list[Client] = []

    def make(timeouts: Timeouts = PATIENT, may_send: Callable[[], bool] = lambda: True) -> Client:
        opened.append(Client(Relay.from_url(relay.url), timeouts, permit=AnyTime(may_send), deliver=request.param))
        return opened[-1]

    yield make
    relay.release()
    for connection in opened:
        connection.close()


def email(*to: str, content: bytes = b"Subject: hi\n\nhello\n") -> Envelope:
    return Envelope("from@example.com", to or (ADA,), content)


def only(rulings: dict[str, Ruling]) -> Ruling:
    (ruling,) = rulings.values()
    return ruling


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_each_mechanism_logs_in(mechanism: str) -> None:
    with (
        ScriptedRelay(auth=("ada", "hunter2"), mechanisms=f"{mechanism} XOAUTH2") as relay,
        closing(Client(Relay.from_url(relay.url), PATIENT)) as connection,
    ):
        assert only(connection.deliver(email())).verdict is Verdict.SENT


def test_a_relay_that_hangs_up_on_a_refused_login_is_logged_in_to_by_the_next_mechanism() -> None:
    with ScriptedRelay(auth=("ada", "hunter2"), mechanisms="PLAIN LOGIN") as relay:
        relay.on(Phase.AUTH, last_word("535 5.7.8 no"), when=lambda line: "PLAIN" in line)
        with closing(Client(Relay.from_url(relay.url), PATIENT)) as connection:
            assert only(connection.deliver(email())).verdict is Verdict.SENT
        assert relay.connections == 2


def open_together(relay: ScriptedRelay, timeouts: Timeouts = PATIENT, count: int = 8) -> list[Ruling | None]:
    """Opens connections that share what is known of logins, at once; returns what was wrong with each.

    None is greeted before all are connected.
    """
    together = threading.Barrier(count)

    def wait(_session: object) -> None:
        together.wait(20)

    relay.on(Phase.EHLO, wait, reply(f"250-relay\n250 AUTH {relay.mechanisms}"))
    channel = Client(Relay.from_url(relay.url), timeouts).channel
    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(lambda _: channel.connect(), range(count)))
    for each in found:
        if isinstance(each, SmtpSession):
            each.close()
    return [each if isinstance(each, Ruling) else None for each in found]


def logins_at(relay: ScriptedRelay) -> list[str]:
    """The mechanisms that were tried, in order."""
    return [line.split()[2] for line in relay.transcript if line.startswith("C: AUTH ")]


def test_what_is_refused_to_one_connection_is_not_tried_over_those_that_are_opened_with_it() -> None:
    with ScriptedRelay(auth=("ada", "hunter2"), mechanisms="PLAIN LOGIN") as relay:
        relay.on(Phase.AUTH, reply("535 5.7.8 no"))
        refusals = open_together(relay)
        assert {refusal.code for refusal in refusals if refusal is not None} == {535}
        assert len([refusal for refusal in refusals if refusal is not None]) == 8
        assert logins_at(relay) == ["PLAIN", "LOGIN"]


def test_a_relay_that_is_silent_at_a_login_is_waited_for_once() -> None:
    with ScriptedRelay(auth=("ada", "hunter2"), mechanisms="PLAIN LOGIN") as relay:
        relay.on(Phase.AUTH, hang())
        refusals = open_together(relay, Timeouts(connect=20, command=5, block=20, dot=20))
        assert len([refusal for refusal in refusals if refusal is not None]) == 8
        assert logins_at(relay) == ["PLAIN"]


def test_the_mechanism_that_one_connection_has_found_is_the_first_of_all_others() -> None:
    with ScriptedRelay(auth=("ada", "hunter2"), mechanisms="PLAIN LOGIN") as relay:
        relay.on(Phase.AUTH, reply("535 5.7.8 no"), when=lambda line: "PLAIN" in line)
        assert open_together(relay) == [None] * 8
        assert logins_at(relay) == ["PLAIN"] + 8 * ["LOGIN"]


def test_a_relay_that_hangs_up_on_every_login_is_asked_once_by_each_mechanism() -> None:
    with ScriptedRelay(auth=("ada", "hunter2"), mechanisms="PLAIN LOGIN CRAM-MD5") as relay:
        relay.on(Phase.AUTH, last_word("535 5.7.8 no"))
        with closing(Client(Relay.from_url(relay.url), PATIENT)) as connection:
            ruling = only(connection.deliver(email()))
        assert (ruling.scope, ruling.phase, ruling.code) == (Scope.RELAY, Phase.AUTH, 535)
        assert relay.connections == 3


def test_the_name_in_ehlo_is_the_one_that_is_set_or_the_connections_own_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "web")
    for hello, said in ((None, "[127.0.0.1]"), ("mail.example.com", "mail.example.com")):
        with ScriptedRelay() as relay:
            where = replace(Relay.from_url(relay.url), hello=hello)
            with closing(Client(where, PATIENT)) as connection:
                connection.deliver(email())
            assert f"C: EHLO {said}" in relay.transcript


def test_an_inspection_goes_as_far_as_nothing_is_sent() -> None:
    with ScriptedRelay() as relay:
        found = inspect(Relay.from_url(relay.url), PATIENT, "from@example.com", (ADA, BOB))
        assert found == Inspection(None, None, is_checked=False, answers=(None, None))
        assert [line.split()[1] for line in relay.transcript if line.startswith("C: ")] == [
            "EHLO", "MAIL", "RCPT", "RCPT", "RSET", "QUIT",
        ]  # fmt: skip
        assert relay.messages == []


@pytest.mark.parametrize(
    ("phase", "said", "is_refused"),
    [
        (Phase.MAIL, "452 4.3.1 Insufficient system storage", True),
        (Phase.MAIL, "550 5.7.1 no", True),
        (Phase.RCPT, "554 5.7.1 Sender address rejected: Access denied", True),
        (Phase.RCPT, "454 4.7.1 Relay access denied", True),
        (Phase.RCPT, "421 4.7.0 bye", True),
        (Phase.RCPT, "550 5.1.1 no such user", False),
        (Phase.RCPT, "450 4.2.0 greylisted", False),
    ],
)
def test_an_inspection_tells_a_relay_that_refuses_us_from_one_that_does_not_know_a_mailbox(
    phase: Phase, said: str, is_refused: bool
) -> None:
    with ScriptedRelay() as relay:
        relay.on(phase, reply(said))
        found = inspect(Relay.from_url(relay.url), PATIENT, "from@example.com", ("a@example.com",))
    assert (found.refusal is not None) is is_refused


def test_an_email_arrives_as_it_was_but_for_its_line_ends(relay: ScriptedRelay, connect: Connect) -> None:
    ruling = only(connect().deliver(email(content=b".dot\n..\n.\nlast")))
    assert (ruling.verdict, ruling.code, ruling.reply) == (Verdict.SENT, 250, "2.0.0 taken")
    assert relay.messages == [Message("from@example.com", (ADA,), b".dot\r\n..\r\n.\r\nlast\r\n")]


@pytest.mark.parametrize("content", [b"", b".", b"\n", b"0123456789abcdef\r\n" * 300_000], ids=len)
def test_content_of_any_size_arrives(relay: ScriptedRelay, connect: Connect, content: bytes) -> None:
    assert only(connect().deliver(email(content=content))).verdict is Verdict.SENT
    assert relay.messages[0].content.rstrip(b"\r\n") == content.rstrip(b"\r\n")


@pytest.mark.parametrize("pipelining", [True, False])
def test_each_recipient_gets_a_verdict_and_the_accepted_ones_the_email(pipelining: bool) -> None:
    with ScriptedRelay(pipelining=pipelining) as relay:
        relay.on(Phase.RCPT, reply("550 5.1.1 no such user"), when=lambda line: BOB in line)
        with closing(Client(Relay.from_url(relay.url), PATIENT)) as connection:
            rulings = connection.deliver(email(ADA, BOB, EVE))
        assert {to: ruling.verdict for to, ruling in rulings.items()} == {
            ADA: Verdict.SENT,
            BOB: Verdict.UNDELIVERABLE,
            EVE: Verdict.SENT,
        }
        assert rulings[BOB].suppress
        assert relay.messages[0].recipients == (ADA, EVE)


def test_a_thousand_recipients_do_not_lock_both_sides(relay: ScriptedRelay, connect: Connect) -> None:
    to = tuple(f"user{number}@example.com" for number in range(1000))
    rulings = connect().deliver(email(*to))
    assert {ruling.verdict for ruling in rulings.values()} == {Verdict.SENT}
    assert relay.messages[0].recipients == to


FAULTS = {"close": close(), "reset": reset(), "garbage": garbage(), "hang": hang(), "drip": drip("250-" * 99)}
PHASES = [Phase.CONNECT, Phase.BANNER, Phase.EHLO, Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.DOT]


@pytest.mark.parametrize(("phase", "fault"), list(itertools.product(PHASES, FAULTS)))
@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "one by one"])
def test_a_fault_is_unknown_after_the_dot_and_a_retry_before(phase: Phase, fault: str, pipelining: bool) -> None:
    timeouts = replace(PATIENT, dot=BRIEF) if phase is Phase.DOT else replace(PATIENT, command=BRIEF)
    patient = timeouts if fault in {"hang", "drip"} else PATIENT
    with ScriptedRelay(pipelining=pipelining) as relay:
        relay.on(phase, FAULTS[fault])
        with closing(Client(Relay.from_url(relay.url), patient)) as connection:
            ruling = only(connection.deliver(email()))
        assert ruling.verdict is (Verdict.UNKNOWN if phase is Phase.DOT else Verdict.RETRY), ruling
        assert (ruling.scope is Scope.RELAY) is (phase in PHASES[:3]), ruling
        assert ruling.code is None
        assert ("timed out" in ruling.reply) is (fault in {"hang", "drip"}), ruling
        assert relay.messages == []


def test_a_reply_that_got_lost_is_unknown_though_the_relay_has_the_email(
    relay: ScriptedRelay, connect: Connect
) -> None:
    relay.on(Phase.DOT, accept(), close())
    assert only(connect().deliver(email())).verdict is Verdict.UNKNOWN
    assert len(relay.messages) == 1


def test_the_reply_to_the_dot_may_come_late(relay: ScriptedRelay, connect: Connect) -> None:
    relay.on(Phase.DOT, drip("250 2.0.0 taken", every=0.01))
    connection = connect(replace(PATIENT, command=2.0))
    assert only(connection.deliver(email())).verdict is Verdict.SENT


@pytest.mark.parametrize("end", [close(), reset()])
def test_a_relay_that_goes_before_the_dot_is_a_retry(relay: ScriptedRelay, connect: Connect, end: Action) -> None:
    def gone() -> bool:
        relay.release()
        return relay.wait_until_idle()

    relay.on(Phase.DATA, reply("354 go"), hang(), end)
    ruling = only(connect(may_send=gone).deliver(email()))
    assert (ruling.verdict, ruling.scope, ruling.phase) == (Verdict.RETRY, Scope.MESSAGE, Phase.BODY)


def test_a_reply_that_came_before_the_dot_is_none_to_it(relay: ScriptedRelay, connect: Connect) -> None:
    relay.on(Phase.DATA, reply("354 go\n250 2.0.0 taken already"))
    ruling = only(connect(may_send=lambda: relay.wait_for(lambda it: len(it.transcript) > 8)).deliver(email()))
    assert (ruling.verdict, ruling.phase) == (Verdict.RETRY, Phase.BODY)
    assert relay.wait_until_idle()
    assert "C: ." not in relay.transcript


def test_a_relay_that_takes_no_more_content_does_not_hold_the_worker(relay: ScriptedRelay, connect: Connect) -> None:
    relay.on(Phase.BODY, stall())
    ruling = only(connect(replace(PATIENT, block=BRIEF)).deliver(email(content=(b"x" * 70 + b"\n") * 300_000)))
    assert (ruling.verdict, ruling.phase) == (Verdict.RETRY, Phase.BODY)
    assert ruling.reply == "timed out after 0.15 seconds"


def test_a_worker_that_may_not_send_hangs_up_before_the_content(relay: ScriptedRelay, connect: Connect) -> None:
    ruling = only(connect(may_send=lambda: False).deliver(email()))
    assert (ruling.verdict, ruling.scope, ruling.phase) == (Verdict.RETRY, Scope.MESSAGE, Phase.BODY)
    assert relay.wait_until_idle()
    assert relay.transcript[-1] == "S: 354 go ahead"


def test_whether_it_may_send_is_asked_once_when_the_relay_waits_for_the_content(
    relay: ScriptedRelay, connect: Connect
) -> None:
    last_lines: list[str] = []

    def may_send() -> bool:
        last_lines.append(relay.transcript[-1])
        return True

    connect(may_send=may_send).deliver(email())
    assert last_lines == ["S: 354 go ahead"]


class LatePermit:
    """It is given once it was asked for so often."""

    def __init__(self, asked: int) -> None:
        self.left = asked

    def is_given(self) -> bool:
        self.left -= 1
        return self.left < 0

    def may_come(self) -> bool:
        return True


@pytest.mark.parametrize("deliver", [wait_for, drive])
def test_content_waits_for_the_permit_and_goes_out_once_it_is_given(
    relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch, deliver: Callable[[SmtpSession, Envelope], Rulings | None]
) -> None:
    monkeypatch.setattr(starting, "PERMIT_INTERVAL", 0.01)
    permit = LatePermit(3)
    with closing(Client(Relay.from_url(relay.url), PATIENT, permit=permit, deliver=deliver)) as client:
        assert only(client.deliver(email())).verdict is Verdict.SENT
    assert permit.left == -1


def test_while_content_waits_for_the_permit_other_dialogues_go_on_and_content_starts_nowhere_without_it(
    relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "PERMIT_INTERVAL", 0.01)
    waiting, given = LatePermit(1_000_000), LatePermit(0)
    loop: EventLoop[Envelope] = EventLoop()
    ended: list[Rulings | None] = []
    sessions: list[SmtpSession] = []
    for permit in (waiting, given):
        session = Client(Relay.from_url(relay.url), PATIENT, permit=permit).channel.connect()
        assert isinstance(session, SmtpSession)
        sessions.append(session)
        loop.drive(Slot(session), session.deliver(email()), lambda rulings, _failure: ended.append(rulings))
    while not ended:
        loop.wait(60)
    assert (len(loop), len(relay.messages)) == (1, 1)
    waiting.left = 0
    while loop:
        loop.wait(60)
    for session in sessions:
        session.close()
    assert len(relay.messages) == 2


@pytest.mark.parametrize("end", [[close()], [reset()], [reply("421 4.4.2 too slow"), close()]])
def test_a_relay_that_does_not_wait_for_the_permit_gets_nothing(relay: ScriptedRelay, end: list[Action]) -> None:
    relay.on(Phase.DATA, reply("354 go"), *end)
    with closing(Client(Relay.from_url(relay.url), PATIENT, permit=LatePermit(1_000_000))) as client:
        ruling = only(client.deliver(email()))
    assert (ruling.verdict, ruling.scope, ruling.phase) == (Verdict.RETRY, Scope.MESSAGE, Phase.BODY)
    assert relay.messages == []


def test_an_error_of_ours_comes_through_and_costs_the_connection(relay: ScriptedRelay, connect: Connect) -> None:
    answers = iter([True, False])

    def may_send() -> bool:
        if next(answers):
            raise KeyError("ours")
        return True

    connection = connect(may_send=may_send)
    with pytest.raises(KeyError, match="ours"):
        connection.deliver(email())
    assert only(connection.deliver(email())).verdict is Verdict.SENT
    assert relay.connections == 2


def test_emails_share_a_connection(relay: ScriptedRelay, connect: Connect) -> None:
    connection = connect()
    for _ in range(5):
        assert only(connection.deliver(email())).verdict is Verdict.SENT
    assert (relay.connections, len(relay.messages)) == (1, 5)
    assert "C: RSET" not in relay.transcript


@pytest.mark.parametrize(
    ("phase", "text"),
    [
        (Phase.MAIL, "450 busy"),
        (Phase.RCPT, "550 no"),
        (Phase.DATA, "451 error"),
        (Phase.DOT, "451 error"),
    ],
)
@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "one by one"])
def test_a_failed_email_does_not_spoil_the_next(phase: Phase, text: str, pipelining: bool) -> None:
    with ScriptedRelay(pipelining=pipelining) as relay:
        relay.on(phase, reply(text), times=1)
        with closing(Client(Relay.from_url(relay.url), PATIENT)) as connection:
            assert only(connection.deliver(email())).verdict is not Verdict.SENT
            assert only(connection.deliver(email())).verdict is Verdict.SENT
        assert relay.connections == 1
        assert "C: RSET" in relay.transcript


def test_a_relay_that_does_not_answer_a_reset_gets_a_new_connection(
    relay: ScriptedRelay, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "BRIEFLY", BRIEF)
    relay.on(Phase.DATA, reply("451 error"), times=1)
    relay.on("rset", hang())
    connection = connect()
    connection.deliver(email())
    assert only(connection.deliver(email())).verdict is Verdict.SENT
    assert relay.connections == 2


@pytest.mark.parametrize("text", ["503 5.5.1 nested MAIL", "421 4.3.2 closing", "354 what"])
def test_a_connection_in_doubt_is_not_used_again(relay: ScriptedRelay, connect: Connect, text: str) -> None:
    relay.on(Phase.MAIL, reply(text), times=1)
    connection = connect()
    assert only(connection.deliver(email())).verdict is Verdict.RETRY
    assert relay.connections == 1
    assert only(connection.deliver(email())).verdict is Verdict.SENT
    assert relay.connections == 2


@pytest.mark.parametrize("end", [[close()], [reset()], [reply("421 4.4.2 idle too long"), close()]])
def test_a_kept_connection_that_died_is_replaced_in_silence(
    relay: ScriptedRelay, connect: Connect, end: list[Action]
) -> None:
    connection = connect()
    connection.deliver(email())
    relay.on(Phase.MAIL, *end, times=1)
    assert only(connection.deliver(email())).verdict is Verdict.SENT
    assert (relay.connections, len(relay.messages)) == (2, 2)


@pytest.mark.parametrize("last", [[close()], [reply("421 4.4.2 idle too long"), close()]])
def test_a_relay_that_hung_up_between_emails_is_called_again(
    relay: ScriptedRelay, connect: Connect, last: list[Action]
) -> None:
    relay.on(Phase.DOT, reply("250 ok"), *last, times=1)
    connection = connect()
    connection.deliver(email())
    assert relay.wait_until_idle()
    assert only(connection.deliver(email())).verdict is Verdict.SENT
    assert len(relay.messages) == 2


def test_a_dead_connection_is_replaced_only_once(relay: ScriptedRelay, connect: Connect) -> None:
    connection = connect()
    connection.deliver(email())
    relay.on(Phase.MAIL, close())
    assert only(connection.deliver(email())).verdict is Verdict.RETRY
    assert relay.connections == 2


@pytest.mark.parametrize("phase", [Phase.RCPT, Phase.DATA, Phase.DOT])
def test_once_the_relay_has_answered_nothing_is_repeated(relay: ScriptedRelay, connect: Connect, phase: Phase) -> None:
    connection = connect()
    connection.deliver(email())
    relay.on(phase, close())
    expected = Verdict.UNKNOWN if phase is Phase.DOT else Verdict.RETRY
    assert only(connection.deliver(email())).verdict is expected
    assert relay.connections == 1


def test_a_connection_is_renewed_after_many_emails(
    relay: ScriptedRelay, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_EMAILS", 2)
    connection = connect()
    for _ in range(5):
        connection.deliver(email())
    assert (relay.connections, len(relay.messages)) == (3, 5)
    assert relay.transcript.count("C: QUIT") == 2


def test_a_connection_is_renewed_after_a_while(
    relay: ScriptedRelay, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_IDLE", -1.0)
    connection = connect()
    connection.deliver(email())
    connection.deliver(email())
    assert relay.connections == 2


@pytest.mark.parametrize("last", [reset(), close(), hang(), garbage()])
def test_a_failed_farewell_changes_nothing(
    relay: ScriptedRelay, connect: Connect, monkeypatch: pytest.MonkeyPatch, last: Action
) -> None:
    monkeypatch.setattr(relay_module, "BRIEFLY", BRIEF)
    relay.on(Phase.QUIT, last)
    connection = connect()
    assert only(connection.deliver(email())).verdict is Verdict.SENT
    connection.close()
    connection.close()
    assert relay.transcript.count("C: QUIT") == 1


def test_an_address_that_breaks_out_is_refused_before_anything_is_sent(relay: ScriptedRelay, connect: Connect) -> None:
    with pytest.raises(ValueError, match="address"):
        connect().deliver(email("ada@example.com>\r\nRCPT TO:<eve@example.com"))
    assert relay.connections == 0


def test_a_relay_that_is_not_there_is_the_relays_fault() -> None:
    with ScriptedRelay() as relay:
        pass
    with closing(Client(Relay.from_url(relay.url), PATIENT)) as connection:
        rulings = connection.deliver(email(ADA, BOB))
    assert set(rulings) == {ADA, BOB}
    for ruling in rulings.values():
        assert (ruling.verdict, ruling.scope, ruling.phase) == (Verdict.RETRY, Scope.RELAY, Phase.CONNECT)
        assert ruling.reply == "connection failed: Connection refused"


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (socket.gaierror(-2, "Name or service not known"), "does not resolve"),
        (UnicodeError("label too long"), "does not resolve"),
        (TimeoutError("timed out"), "timed out after 20 seconds"),
        (OSError(113, "No route to host"), "No route to host"),
    ],
)
def test_a_relay_that_cannot_be_reached_is_the_relays_fault(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, text: str
) -> None:
    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(socket, "create_connection", fail)
    ruling = only(Client(Relay("relay.invalid", 25), PATIENT).deliver(email()))
    assert (ruling.verdict, ruling.scope, ruling.phase) == (Verdict.RETRY, Scope.RELAY, Phase.CONNECT)
    assert text in ruling.reply


@pytest.mark.parametrize("mechanisms", ["PLAIN", "LOGIN"])
def test_a_login_goes_to_a_relay_on_this_machine(mechanisms: str) -> None:
    with ScriptedRelay(auth=("ada", "hunter2"), mechanisms=mechanisms) as relay:
        with closing(Client(Relay.from_url(relay.url), PATIENT)) as connection:
            assert only(connection.deliver(email())).verdict is Verdict.SENT
        assert "S: 235 2.7.0 welcome" in relay.transcript


def test_a_wrong_password_is_our_fault_and_drops_nothing() -> None:
    with ScriptedRelay(auth=("ada", "hunter2")) as relay:
        wrong = replace(Relay.from_url(relay.url), password="wrong")
        with closing(Client(wrong, PATIENT)) as connection:
            ruling = only(connection.deliver(email()))
            assert inspect(wrong, PATIENT).refusal == ruling
    assert (ruling.verdict, ruling.scope, ruling.phase, ruling.code) == (
        Verdict.RETRY,
        Scope.RELAY,
        Phase.AUTH,
        535,
    )


def test_a_check_of_a_good_relay_finds_nothing_and_sends_nothing(relay: ScriptedRelay) -> None:
    assert inspect(Relay.from_url(relay.url), PATIENT).refusal is None
    assert relay.wait_until_idle()
    assert [line for line in relay.transcript if line.startswith("C:")][1:] == ["C: QUIT"]


def test_a_check_says_what_is_wrong(relay: ScriptedRelay) -> None:
    relay.on(Phase.BANNER, reply("554 5.7.1 go away"))
    ruling = inspect(Relay.from_url(relay.url), PATIENT).refusal
    assert ruling is not None
    assert (ruling.scope, ruling.phase, ruling.code) == (Scope.RELAY, Phase.BANNER, 554)


def test_a_check_of_no_relay_says_so() -> None:
    with ScriptedRelay() as relay:
        pass
    ruling = inspect(Relay.from_url(relay.url), PATIENT).refusal
    assert ruling is not None
    assert ruling.phase is Phase.CONNECT


def test_what_the_relay_does_can_change_while_it_runs(relay: ScriptedRelay, connect: Connect) -> None:
    connection = connect()
    relay.on(Phase.RCPT, reply("450 busy"))
    assert only(connection.deliver(email())).verdict is Verdict.RETRY
    relay.forget(Phase.RCPT)
    assert only(connection.deliver(email())).verdict is Verdict.SENT


@pytest.fixture
def ahead(relay: ScriptedRelay) -> ScriptedRelay:
    """The relay's URL asks for the next envelope behind the dot."""
    relay.query = "?pipelining=ahead"
    return relay


class Trail:
    """Emails over one connection, each of which goes out behind the one before where that is allowed."""

    def __init__(self, relay: ScriptedRelay, connection: Client) -> None:
        self.behind: list[bool] = []
        self._connection = connection
        # One dot after the other, the relay sees what has come with it.
        relay.on(Phase.DOT, self._look, reply("250 2.0.0 taken"))

    def deliver(self, *envelopes: Envelope) -> list[Ruling]:
        """One after the other."""
        return [
            only(self._connection.deliver(envelope, following))
            for envelope, following in itertools.zip_longest(envelopes, envelopes[1:])
        ]

    @property
    def pipelined(self) -> int:
        """How many emails a session has had behind another one."""
        return self._connection.pipelined

    def _look(self, session: object) -> None:
        self.behind.append(getattr(session, "buffer", b"").startswith(b"MAIL"))


@pytest.mark.usefixtures("ahead")
def test_the_next_envelope_goes_out_with_the_dot_once_the_relay_has_shown_that_it_is_prompt(
    relay: ScriptedRelay, connect: Connect
) -> None:
    trail = Trail(relay, connect())
    rulings = trail.deliver(email(ADA), email(BOB), email(EVE), email(ADA))
    assert [ruling.verdict for ruling in rulings] == [Verdict.SENT] * 4
    assert trail.behind == [False, True, True, False]
    assert [message.recipients for message in relay.messages] == [(ADA,), (BOB,), (EVE,), (ADA,)]
    assert relay.connections == 1


@pytest.mark.usefixtures("ahead")
def test_a_relay_that_takes_its_time_gets_nothing_behind_a_dot(
    relay: ScriptedRelay, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROMPT", 0)
    trail = Trail(relay, connect())
    trail.deliver(email(ADA), email(BOB), email(EVE))
    assert trail.pipelined == 0
    assert trail.behind == [False, False, False]


@pytest.mark.usefixtures("ahead")
def test_nothing_goes_behind_the_last_dot_of_a_connection(
    relay: ScriptedRelay, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_EMAILS", 3)
    trail = Trail(relay, connect())
    trail.deliver(*[email(ADA)] * 3, *[email(BOB)] * 3)
    assert trail.behind == [False, True, False, True, True, False]
    assert relay.connections == 2


@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize(
    ("answer", "verdict"), [("451 4.3.0 not now", Verdict.RETRY), ("554 5.6.0 no", Verdict.UNDELIVERABLE)]
)
def test_a_refused_content_does_not_matter_to_the_email_behind_it(
    relay: ScriptedRelay, connect: Connect, answer: str, verdict: Verdict
) -> None:
    trail = Trail(relay, connect())
    trail.deliver(email(ADA))
    relay.on(Phase.DOT, reply(answer), times=1)
    first, second = trail.deliver(email(BOB), email(EVE))
    assert (first.verdict, second.verdict) == (verdict, Verdict.SENT)
    assert [message.recipients for message in relay.messages] == [(ADA,), (EVE,)]
    assert relay.connections == 1
    assert "C: RSET" not in relay.transcript


@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize(
    ("actions", "verdict"),
    [
        ([reply("250 2.0.0 taken"), close()], Verdict.SENT),
        ([reply("421 4.7.0 enough"), close()], Verdict.RETRY),
        ([accept(), close()], Verdict.UNKNOWN),
        ([garbage()], Verdict.UNKNOWN),
    ],
    ids=["taken and closed", "421", "no reply", "garbage"],
)
def test_an_email_behind_a_dot_after_which_the_connection_ends_goes_over_another_one(
    relay: ScriptedRelay, connect: Connect, actions: list[Action], verdict: Verdict
) -> None:
    trail = Trail(relay, connect())
    trail.deliver(email(ADA))
    relay.on(Phase.DOT, *actions, times=1)
    first, second = trail.deliver(email(BOB), email(EVE))
    assert (first.verdict, second.verdict) == (verdict, Verdict.SENT)
    assert [message.recipients for message in relay.messages].count((EVE,)) == 1
    assert relay.connections == 2


@pytest.mark.usefixtures("ahead")
def test_a_relay_that_loses_what_is_behind_a_dot_gets_nothing_there_any_more(
    relay: ScriptedRelay, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "ANSWER_BEHIND", BRIEF)
    trail = Trail(relay, connect(replace(PATIENT, command=3600)))
    trail.deliver(email(ADA))
    relay.on(Phase.MAIL, hang(), when=lambda line: trail.behind[-1], times=1)
    rulings = trail.deliver(email(BOB), email(EVE), email(ADA))
    assert [ruling.verdict for ruling in rulings] == [Verdict.SENT] * 3
    assert trail.behind == [False, True, False, False]
    assert relay.connections == 2


@pytest.mark.usefixtures("ahead")
def test_a_relay_that_says_two_things_to_a_dot_does_not_decide_about_the_email_behind_it(
    relay: ScriptedRelay, connect: Connect
) -> None:
    trail = Trail(relay, connect())
    trail.deliver(email(ADA))
    relay.on(Phase.DOT, reply("250 2.0.0 taken"), reply("552 5.3.4 too big"), times=1)
    first, second = trail.deliver(email(BOB), email(EVE))
    assert (first.verdict, second.verdict) == (Verdict.SENT, Verdict.SENT)
    assert [message.recipients for message in relay.messages] == [(ADA,), (BOB,), (EVE,)]


@pytest.mark.usefixtures("ahead")
def test_a_relay_that_hangs_up_on_what_is_behind_a_dot_gets_nothing_there_any_more(
    relay: ScriptedRelay, connect: Connect
) -> None:
    trail = Trail(relay, connect())
    relay.on(Phase.MAIL, close(), when=lambda line: bool(trail.behind) and trail.behind[-1])
    # A fresh connection's first MAIL has nothing before it.
    relay.on(Phase.EHLO, lambda session: trail.behind.append(False), reply("250-relay.test\n250 PIPELINING"))
    rulings = trail.deliver(*[email(ADA)] * 9)
    assert [ruling.verdict for ruling in rulings] == [Verdict.SENT] * 9
    assert trail.behind.count(True) == module.MAX_LOSSES
    assert relay.connections == 1 + module.MAX_LOSSES


@pytest.mark.usefixtures("ahead")
def test_a_connection_that_an_email_behind_the_dot_left_is_not_used_again(
    relay: ScriptedRelay, connect: Connect
) -> None:
    connection = connect()
    trail = Trail(relay, connection)
    trail.deliver(email(ADA))
    left = email(BOB)
    connection.deliver(email(ADA), left)
    connection.deliver(email(EVE))
    assert [message.recipients for message in relay.messages] == [(ADA,), (ADA,), (EVE,)]
    assert relay.connections == 2


@pytest.mark.usefixtures("ahead")
def test_what_goes_out_with_the_dot_is_fixed_before_the_last_look_whether_content_may_start(
    relay: ScriptedRelay,
) -> None:
    taken: list[bool] = []

    def may_start() -> bool:
        assert client.session is not None
        taken.append(client.session.pipeline(email(EVE)))
        return True

    with closing(Client(Relay.from_url(relay.url), PATIENT, permit=AnyTime(may_start))) as client:
        trail = Trail(relay, client)
        trail.deliver(email(ADA), email(BOB))
        assert taken == [False, False]
        assert client.session is not None
        assert client.session.pipeline(email(EVE))


@pytest.mark.usefixtures("ahead")
def test_an_email_that_was_pipelined_and_is_not_out_can_be_withdrawn_at_no_cost(
    relay: ScriptedRelay, connect: Connect
) -> None:
    client = connect()
    trail = Trail(relay, client)
    trail.deliver(email(ADA))
    assert client.session is not None
    assert client.session.pipeline(email(BOB))
    client.session.withdraw()
    trail.deliver(email(EVE))
    assert trail.behind == [False, False]
    assert relay.connections == 1


def test_nothing_goes_behind_a_dot_unless_the_url_asks_for_it(relay: ScriptedRelay, connect: Connect) -> None:
    trail = Trail(relay, connect())
    trail.deliver(email(ADA), email(BOB), email(EVE))
    assert trail.pipelined == 0
    assert trail.behind == [False, False, False]


@pytest.mark.usefixtures("ahead")
def test_a_relay_that_keeps_the_email_and_ends_at_what_lies_behind_puts_one_email_in_doubt(
    relay: ScriptedRelay, connect: Connect
) -> None:
    relay.behind = "close"
    trail = Trail(relay, connect())
    rulings = trail.deliver(*[email(ADA)] * 9)
    assert [ruling.verdict for ruling in rulings].count(Verdict.UNKNOWN) == 1
    assert [ruling.verdict for ruling in rulings].count(Verdict.SENT) == 8
    assert relay.behind_dots == 1
    assert len(relay.messages) == 9


@pytest.mark.usefixtures("ahead")
def test_a_relay_that_refuses_what_lies_behind_is_asked_once(relay: ScriptedRelay, connect: Connect) -> None:
    relay.behind = "refuse"
    trail = Trail(relay, connect())
    assert {ruling.verdict for ruling in trail.deliver(*[email(ADA)] * 9)} == {Verdict.SENT}
    assert relay.behind_dots == 1
    assert len(relay.messages) == 9


@pytest.mark.usefixtures("ahead")
def test_a_relay_that_defers_the_next_email_still_gets_others_behind_a_dot(
    relay: ScriptedRelay, connect: Connect
) -> None:
    trail = Trail(relay, connect())
    trail.deliver(email(ADA))
    relay.on(Phase.MAIL, reply("450 4.7.1 too much mail"), when=lambda _line: relay.behind_dots == 1, times=1)
    assert {ruling.verdict for ruling in trail.deliver(*[email(ADA)] * 6)} == {Verdict.SENT}
    assert relay.behind_dots > 1


@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize("answer", ["250 2.1.0 ok", "250 2.1.5 ok", "503 5.5.1 nested MAIL"])
def test_a_reply_to_what_lies_behind_is_none_to_the_dot(relay: ScriptedRelay, connect: Connect, answer: str) -> None:
    trail = Trail(relay, connect())
    trail.deliver(email(ADA))
    relay.on(Phase.DOT, reply(answer), times=1)
    first, second = trail.deliver(email(BOB), email(EVE))
    assert (first.verdict, second.verdict) == (Verdict.UNKNOWN, Verdict.SENT)
    assert relay.behind_dots == 1


def test_the_same_reply_is_one_to_the_dot_where_nothing_lies_behind(relay: ScriptedRelay, connect: Connect) -> None:
    relay.on(Phase.DOT, reply("250 2.1.5 ok"))
    assert only(connect().deliver(email())).verdict is Verdict.SENT


def test_a_url_can_ask_for_one_command_at_a_time(relay: ScriptedRelay, connect: Connect) -> None:
    relay.query = "?pipelining=off"
    together: list[bool] = []
    relay.on(Phase.MAIL, lambda session: together.append(bool(session.buffer)), reply("250 2.1.0 ok"))
    assert only(connect().deliver(email())).verdict is Verdict.SENT
    assert together == [False]


@pytest.mark.parametrize(
    "text",
    [
        "421 too many messages in this connection",
        "452 4.5.3 Too many messages in this session",
        "550 5.7.0 Maximum number of messages per connection exceeded",
    ],
)
def test_a_connection_that_has_had_its_share_of_emails_is_renewed(
    relay: ScriptedRelay, connect: Connect, text: str
) -> None:
    connection = connect()
    connection.deliver(email())
    relay.on(Phase.MAIL, reply(text), times=1)
    assert only(connection.deliver(email())).verdict is Verdict.SENT
    assert (relay.connections, len(relay.messages)) == (2, 2)
