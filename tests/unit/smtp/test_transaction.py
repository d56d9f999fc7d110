import pytest

from actors.channels.smtp.dialogue import Action, Send
from actors.channels.smtp.envelope import Envelope
from actors.channels.smtp.greeting import Offer
from actors.channels.smtp.transaction import WINDOW, Fitness, Submitted, Transaction, reset
from actors.ruling import Pace, Phase, Scope
from models.words import Verdict
from tests.unit.smtp.talk import Break, Talk, never, talk

ADA, BOB, EVE = "ada@example.com", "bob@example.com", "eve@example.com"
PLAIN = Offer()
PIPELINING = Offer(pipelining=True)
both = pytest.mark.parametrize("offer", [PLAIN, PIPELINING], ids=["one by one", "pipelined"])


def send(
    offer: Offer,
    *answers: str | Break,
    to: tuple[str, ...] = (ADA,),
    content: bytes = b"hi\r\n",
    may_start: bool = True,
    breaks: object = never,
) -> Talk[Submitted]:
    assert callable(breaks)
    envelope = Envelope("from@example.com", to, content)
    return talk(Transaction(envelope, offer).run(), *answers, breaks=breaks, may_start=may_start)


def verdicts(said: Talk[Submitted]) -> dict[str, Verdict]:
    return {recipient: ruling.verdict for recipient, ruling in said.result.rulings.items()}


def in_phase(phase: Phase) -> object:
    def breaks(action: Action) -> bool:
        return isinstance(action, Send) and action.phase is phase

    return breaks


@both
def test_an_email_that_is_taken_is_sent(offer: Offer) -> None:
    said = send(offer, "250 ok", "250 ok", "354 go", "250 taken")
    assert verdicts(said) == {ADA: Verdict.SENT}
    assert said.result.fitness is Fitness.READY
    assert said.written == (b"MAIL FROM:<from@example.com>\r\nRCPT TO:<ada@example.com>\r\nDATA\r\nhi\r\n.\r\n")


def test_without_pipelining_commands_go_one_at_a_time() -> None:
    said = send(PLAIN, "250 ok", "250 ok", "354 go", "250 taken")
    assert len(said.writes) == 5


def test_with_pipelining_the_envelope_goes_in_one_write() -> None:
    said = send(PIPELINING, "250 ok", "250 ok", "250 ok", "354 go", "250 taken", to=(ADA, BOB))
    assert said.writes[0].splitlines()[1:] == [
        f"RCPT TO:<{ADA}>".encode(),
        f"RCPT TO:<{BOB}>".encode(),
        b"DATA",
    ]
    assert len(said.writes) == 3


@both
def test_the_dot_is_a_write_of_its_own(offer: Offer) -> None:
    said = send(offer, "250 ok", "250 ok", "354 go", "250 taken", content=b".a\n.\n")
    assert said.actions[-3:-1] == [Send(b"..a\r\n..\r\n", Phase.BODY), Send(b".\r\n", Phase.DOT)]


def test_a_long_list_of_recipients_goes_in_windows() -> None:
    to = tuple(f"user{number}@example.com" for number in range(WINDOW + 50))
    said = send(PIPELINING, *["250 ok"] * (1 + len(to)), "354 go", "250 taken", to=to)
    assert [write.count(b"\r\n") for write in said.writes[:2]] == [WINDOW, 52]
    assert set(verdicts(said).values()) == {Verdict.SENT}


def test_the_size_is_announced_if_the_relay_wants_it() -> None:
    said = send(Offer(size=True), "250 ok", "250 ok", "354 go", "250 ok", content=b".1\n3")
    assert said.writes[0] == b"MAIL FROM:<from@example.com> SIZE=7\r\n"


def test_a_message_above_the_relays_limit_is_undeliverable_without_a_word() -> None:
    said = send(Offer(size=True, size_limit=1_000), content=b"hi\r\n" * 300)
    ruling = said.result.rulings[ADA]
    assert (ruling.verdict, ruling.scope, ruling.phase) == (Verdict.UNDELIVERABLE, Scope.MESSAGE, Phase.MAIL)
    assert said.actions == []
    assert said.result.fitness is Fitness.READY


@pytest.mark.parametrize(("content", "eight_bit"), [(b"plain", False), ("é".encode(), True)])
def test_eight_bit_content_is_announced_if_the_relay_can(content: bytes, eight_bit: bool) -> None:
    answers = ("250 ok", "250 ok", "354 go", "250 ok")
    assert (b" BODY=8BITMIME" in send(Offer(eightbitmime=True), *answers, content=content).written) is eight_bit
    assert b"BODY" not in send(PLAIN, *answers, content=content).written


@both
def test_each_recipient_has_a_verdict_of_its_own(offer: Offer) -> None:
    said = send(offer, "250 ok", "550 5.1.1 gone", "450 busy", "252 maybe", "354 go", "250 taken", to=(ADA, BOB, EVE))
    assert verdicts(said) == {ADA: Verdict.UNDELIVERABLE, BOB: Verdict.RETRY, EVE: Verdict.SENT}


@both
@pytest.mark.parametrize("code", [200, 250, 251, 252, 299])
def test_any_2xx_at_rcpt_is_accepted(offer: Offer, code: int) -> None:
    said = send(offer, "250 ok", f"{code} ok", "354 go", "250 taken")
    assert verdicts(said) == {ADA: Verdict.SENT}


@both
def test_an_address_given_twice_is_sent_once(offer: Offer) -> None:
    said = send(offer, "250 ok", "250 ok", "354 go", "250 taken", to=(ADA, ADA))
    assert said.written.count(b"RCPT") == 1
    assert verdicts(said) == {ADA: Verdict.SENT}


def test_without_an_accepted_recipient_there_is_no_data() -> None:
    said = send(PLAIN, "250 ok", "550 no", "550 no", to=(ADA, BOB))
    assert b"DATA" not in said.written
    assert verdicts(said) == {ADA: Verdict.UNDELIVERABLE, BOB: Verdict.UNDELIVERABLE}
    assert said.result.fitness is Fitness.NEEDS_RESET


@pytest.mark.parametrize("reply", ["554 5.5.1 no valid recipients", "503 5.5.1 no recipients", "451 what", "250 what"])
def test_a_pipelined_data_that_is_refused_for_want_of_recipients_is_no_verdict(reply: str) -> None:
    said = send(PIPELINING, "250 ok", "450 busy", "550 5.1.1 gone", reply, to=(ADA, BOB))
    assert verdicts(said) == {ADA: Verdict.RETRY, BOB: Verdict.UNDELIVERABLE}
    assert said.result.fitness is Fitness.NEEDS_RESET


@pytest.mark.parametrize("end", ["554 no valid recipients", "250 taken", Break.CLOSED, Break.TIMEOUT])
def test_a_pipelined_data_that_is_granted_without_recipients_is_ended_with_a_lone_dot(
    end: str | Break,
) -> None:
    said = send(PIPELINING, "250 ok", "550 5.1.1 gone", "354 go", end, may_start=False)
    assert said.writes[1:] == [b".\r\n"]
    assert verdicts(said) == {ADA: Verdict.UNDELIVERABLE}


@pytest.mark.parametrize(
    ("reply", "verdict", "scope", "fitness"),
    [
        ("450 busy", Verdict.RETRY, Scope.MESSAGE, Fitness.NEEDS_RESET),
        ("550 5.7.1 sender refused", Verdict.RETRY, Scope.RELAY, Fitness.NEEDS_RESET),
        ("552 5.3.4 too big", Verdict.UNDELIVERABLE, Scope.MESSAGE, Fitness.NEEDS_RESET),
        ("421 closing", Verdict.RETRY, Scope.MESSAGE, Fitness.USELESS),
        ("503 nested MAIL", Verdict.RETRY, Scope.MESSAGE, Fitness.USELESS),
        ("354 what", Verdict.RETRY, Scope.MESSAGE, Fitness.USELESS),
    ],
)
def test_a_refused_mail_is_for_everybody(reply: str, verdict: Verdict, scope: Scope, fitness: Fitness) -> None:
    one_by_one = send(PLAIN, reply, to=(ADA, BOB))
    assert one_by_one.written.count(b"\r\n") == 1
    pipelined = send(PIPELINING, reply, "503 MAIL first", "503 MAIL first", "503 MAIL first", to=(ADA, BOB))
    for said in (one_by_one, pipelined):
        assert {(ruling.verdict, ruling.scope) for ruling in said.result.rulings.values()} == {(verdict, scope)}
        assert set(said.result.rulings) == {ADA, BOB}
        assert said.result.fitness is fitness


@pytest.mark.parametrize("rcpt", ["503 MAIL first", "250 ok", "550 5.1.1 gone"])
def test_content_never_follows_a_refused_mail(rcpt: str) -> None:
    said = send(PIPELINING, "550 sender refused", rcpt, "354 go")
    assert len(said.writes) == 1
    assert verdicts(said) == {ADA: Verdict.RETRY}
    assert said.result.rulings[ADA].scope is Scope.RELAY
    assert said.result.fitness is Fitness.USELESS


@both
def test_a_421_at_rcpt_ends_it_for_all_who_are_undecided(offer: Offer) -> None:
    said = send(offer, "250 ok", "550 5.1.1 gone", "250 ok", "421 closing", to=(ADA, BOB, EVE))
    assert verdicts(said) == {ADA: Verdict.UNDELIVERABLE, BOB: Verdict.RETRY, EVE: Verdict.RETRY}
    assert said.result.fitness is Fitness.USELESS
    assert not said.result.untouched


@both
@pytest.mark.parametrize("reply", ["354 what", "503 MAIL first"])
def test_a_reply_out_of_place_at_rcpt_is_a_retry_on_a_new_connection(offer: Offer, reply: str) -> None:
    said = send(offer, "250 ok", reply)
    assert verdicts(said) == {ADA: Verdict.RETRY}
    assert said.result.fitness is Fitness.USELESS


@both
@pytest.mark.parametrize(
    ("reply", "verdict", "fitness"),
    [
        ("451 error", Verdict.RETRY, Fitness.NEEDS_RESET),
        ("421 closing", Verdict.RETRY, Fitness.USELESS),
        ("554 no", Verdict.UNDELIVERABLE, Fitness.NEEDS_RESET),
        ("250 what", Verdict.RETRY, Fitness.USELESS),
        ("503 RCPT first", Verdict.RETRY, Fitness.USELESS),
    ],
)
def test_a_refused_data_is_for_all_accepted(offer: Offer, reply: str, verdict: Verdict, fitness: Fitness) -> None:
    said = send(offer, "250 ok", "550 5.1.1 gone", "250 ok", reply, to=(ADA, BOB))
    assert verdicts(said) == {ADA: Verdict.UNDELIVERABLE, BOB: verdict}
    assert said.result.rulings[BOB].scope is Scope.MESSAGE
    assert said.result.fitness is fitness


@both
@pytest.mark.parametrize("lost", list(Break))
@pytest.mark.parametrize("replies", [[], ["250 ok"], ["250 ok", "250 ok"]], ids=["MAIL", "RCPT", "DATA"])
def test_a_connection_lost_in_the_envelope_is_a_retry(offer: Offer, lost: Break, replies: list[str]) -> None:
    said = send(offer, *replies, lost)
    assert verdicts(said) == {ADA: Verdict.RETRY}
    assert said.result.fitness is Fitness.USELESS
    assert said.result.untouched is (not replies and lost is Break.CLOSED)


@both
def test_a_421_to_mail_leaves_the_email_untouched(offer: Offer) -> None:
    assert send(offer, "421 idle too long").result.untouched


@both
def test_a_connection_lost_in_the_body_is_a_retry(offer: Offer) -> None:
    said = send(offer, "250 ok", "250 ok", "354 go", breaks=in_phase(Phase.BODY))
    assert verdicts(said) == {ADA: Verdict.RETRY}
    assert said.result.rulings[ADA].phase is Phase.BODY
    assert not said.result.untouched


@both
def test_a_connection_lost_while_the_dot_is_written_is_unknown(offer: Offer) -> None:
    said = send(offer, "250 ok", "250 ok", "354 go", breaks=in_phase(Phase.DOT))
    assert verdicts(said) == {ADA: Verdict.UNKNOWN}


@both
@pytest.mark.parametrize("lost", list(Break))
def test_a_connection_lost_after_the_dot_is_unknown_for_the_accepted_only(offer: Offer, lost: Break) -> None:
    said = send(offer, "250 ok", "550 5.1.1 gone", "250 ok", "354 go", lost, to=(ADA, BOB))
    assert verdicts(said) == {ADA: Verdict.UNDELIVERABLE, BOB: Verdict.UNKNOWN}
    assert said.result.fitness is Fitness.USELESS
    assert not said.result.untouched


@both
@pytest.mark.parametrize(
    ("reply", "verdict", "fitness"),
    [
        ("251 ok", Verdict.SENT, Fitness.READY),
        ("451 error", Verdict.RETRY, Fitness.NEEDS_RESET),
        ("421 closing", Verdict.RETRY, Fitness.USELESS),
        ("554 5.7.1 spam", Verdict.UNDELIVERABLE, Fitness.NEEDS_RESET),
        ("354 what", Verdict.UNKNOWN, Fitness.USELESS),
    ],
)
def test_the_reply_to_the_dot_is_for_all_accepted(offer: Offer, reply: str, verdict: Verdict, fitness: Fitness) -> None:
    said = send(offer, "250 ok", "250 ok", "452 4.7.1 greylisted", "354 go", reply, to=(ADA, BOB))
    assert verdicts(said) == {ADA: verdict, BOB: Verdict.RETRY}
    assert said.result.rulings[BOB].pace is Pace.GREYLISTED
    assert said.result.fitness is fitness


@both
def test_a_worker_that_may_not_send_holds_the_content_back(offer: Offer) -> None:
    said = send(offer, "250 ok", "250 ok", "354 go", may_start=False)
    ruling = said.result.rulings[ADA]
    assert (ruling.verdict, ruling.scope, ruling.phase) == (Verdict.RETRY, Scope.MESSAGE, Phase.BODY)
    assert ruling.reply == "this worker could not prove its database session"
    assert not said.written.endswith(b".\r\n")
    assert said.result.fitness is Fitness.USELESS


@pytest.mark.parametrize(("answer", "good"), [("250 ok", True), ("502 what", False), (Break.TIMEOUT, False)])
def test_a_reset_says_whether_the_relay_agreed(answer: str | Break, good: bool) -> None:
    said = talk(reset(), answer)
    assert said.written == b"RSET\r\n"
    assert said.result is good


def behind_a_dot(*answers: str | Break, offer: Offer = PIPELINING, to: tuple[str, ...] = (ADA,)) -> Talk[Submitted]:
    transaction = Transaction(Envelope("from@example.com", to, b"hi\r\n"), offer)
    assert transaction.open_behind().startswith(b"MAIL FROM:<from@example.com>\r\nRCPT TO:")
    return talk(transaction.run(), *answers)


def test_an_envelope_that_went_out_behind_a_dot_is_not_sent_again() -> None:
    said = behind_a_dot("250 ok", "250 ok", "354 go", "250 taken")
    assert verdicts(said) == {ADA: Verdict.SENT}
    assert said.written == b"hi\r\n.\r\n"


def test_a_refusal_behind_a_dot_is_one_like_any_other() -> None:
    said = behind_a_dot("250 ok", "550 5.1.1 gone", "250 ok", "354 go", "250 taken", to=(ADA, BOB))
    assert verdicts(said) == {ADA: Verdict.UNDELIVERABLE, BOB: Verdict.SENT}
    assert not said.result.untouched
    assert not said.result.is_lost_behind


def test_what_goes_behind_the_dot_goes_in_its_write() -> None:
    transaction = Transaction(Envelope("from@example.com", (ADA,), b"hi\r\n"), PIPELINING)
    transaction.behind = b"MAIL FROM:<next@example.com>\r\n"
    said = talk(transaction.run(), "250 ok", "250 ok", "354 go", "250 taken")
    assert said.writes[1:] == [b"hi\r\n", b".\r\nMAIL FROM:<next@example.com>\r\n"]


@pytest.mark.parametrize(
    ("offer", "to"),
    [
        (PLAIN, (ADA,)),
        (Offer(pipelining=True, size=True, size_limit=3), (ADA,)),
        (PIPELINING, tuple(f"user{number}@example.com" for number in range(WINDOW))),
    ],
    ids=["no PIPELINING", "too big", "more than a window"],
)
def test_an_envelope_goes_behind_no_dot_where_it_cannot(offer: Offer, to: tuple[str, ...]) -> None:
    assert not Transaction(Envelope("from@example.com", to, b"hi\r\n"), offer).can_open_behind


@pytest.mark.parametrize(
    "answers",
    [
        [Break.TIMEOUT],
        [Break.MALFORMED],
        ["503 5.5.1 what?"],
        ["354 what?"],
        ["500 5.5.1 synchronization error"],
        ["552 5.3.4 too big, as the one before"],
        ["250 taken, as I said", "250 ok", "250 ok"],
        ["250 ok", Break.TIMEOUT],
        ["250 ok", "250 ok", Break.CLOSED],
    ],
)
def test_what_a_relay_loses_or_refuses_behind_a_dot_may_be_repeated(answers: list[str | Break]) -> None:
    said = behind_a_dot(*answers)
    assert said.result.is_lost_behind
    assert not said.result.untouched
    assert said.result.fitness is Fitness.USELESS


@pytest.mark.parametrize("answer", [Break.CLOSED, "421 4.7.0 enough"])
def test_a_relay_that_goes_after_a_dot_has_not_touched_what_is_behind_it(answer: str | Break) -> None:
    said = behind_a_dot(answer)
    assert said.result.untouched
    assert not said.result.is_lost_behind


@pytest.mark.parametrize("lost", list(Break))
def test_what_went_out_behind_a_dot_is_not_repeated_once_its_content_may_have(lost: Break) -> None:
    said = behind_a_dot("250 ok", "250 ok", "354 go", lost)
    assert verdicts(said) == {ADA: Verdict.UNKNOWN}
    assert not said.result.untouched
    assert not said.result.is_lost_behind


def test_what_may_not_be_sent_behind_a_dot_is_not_taken_for_lost() -> None:
    transaction = Transaction(Envelope("from@example.com", (ADA,), b"hi\r\n"), PIPELINING)
    assert transaction.open_behind()
    said = talk(transaction.run(), "250 ok", "250 ok", "354 go", may_start=False)
    assert verdicts(said) == {ADA: Verdict.RETRY}
    assert not said.result.is_lost_behind
