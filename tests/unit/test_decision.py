"""What rulings on recipients mean for the email as a whole."""

from datetime import UTC, datetime

import pytest

from actors.delivery.conclude import Conclusion
from actors.delivery.decision import Decision, refusal_without_asking, result
from actors.delivery.report import report
from actors.delivery.retry_policy import MAILBOX_FULL_FOR
from actors.ruling import Pace, Phase, Ruling, Scope
from models.emails import ClaimedEmail
from models.items import Recipient
from models.words import Outcome, Verdict

ANN = Recipient("ann", "ann@example.com")
BOB = Recipient("bob", "bob@example.com")
SENT = Ruling(Verdict.SENT, Scope.RECIPIENT, Phase.DOT, 250, "2.0.0", "ok")
DEAD = Ruling(Verdict.UNDELIVERABLE, Scope.RECIPIENT, Phase.RCPT, 550, "5.1.1", "no such user", suppress=True)
LATER = Ruling(Verdict.RETRY, Scope.RECIPIENT, Phase.RCPT, 451, "4.3.0", "try later")
FULL = Ruling(Verdict.RETRY, Scope.RECIPIENT, Phase.RCPT, 552, "5.2.2", "mailbox full", pace=Pace.MAILBOX_FULL)
UNKNOWN = Ruling(Verdict.UNKNOWN, Scope.MESSAGE, Phase.DOT, reply="connection lost after the dot")
REFUSED_LOGIN = Ruling(Verdict.RETRY, Scope.RELAY, Phase.AUTH, 535, "5.7.8", "bad credentials")
REFUSED_SENDER = Ruling(Verdict.RETRY, Scope.RELAY, Phase.MAIL, 550, "5.7.1", "sender refused")


def email(*recipients: Recipient, mailbox_full_seconds: float = 0, probe: bool = False) -> ClaimedEmail:
    return ClaimedEmail(
        id=1, claim=1, kind="welcome", attempts=0, unknowns=0, last_error=None, probe=probe,
        message_id_header="<1@example.com>", date_header=datetime(2026, 1, 1, tzinfo=UTC), sender=None, reply_to=None,
        headers=None, template=None, context=None, subject="s", body_text="b", body_html=None,
        mailbox_full_seconds=mailbox_full_seconds, recipients=recipients or (ANN,),
    )  # fmt: skip


def concluded(*rulings: Ruling, of: ClaimedEmail | None = None) -> Decision:
    claimed = of or email(*[ANN, BOB][: len(rulings)])
    return Decision.of(claimed, list(zip(claimed.recipients, rulings, strict=False)))


def test_an_email_is_finished_when_every_recipient_has_an_outcome() -> None:
    both = concluded(SENT, DEAD)
    assert both.is_finished
    assert [each.outcome for each in both.results] == [Outcome.SENT, Outcome.UNDELIVERABLE]


def test_an_email_is_not_finished_while_one_recipient_is_to_be_retried() -> None:
    assert not concluded(SENT, LATER).is_finished


def test_an_email_is_not_finished_while_a_recipient_was_not_attempted() -> None:
    assert not concluded(SENT, of=email(ANN, BOB)).is_finished


def test_one_unknown_makes_the_email_unknown() -> None:
    assert concluded(SENT, UNKNOWN).is_unknown


def test_a_refused_login_is_no_attempt_of_the_email_and_keeps_its_place_in_line() -> None:
    refused = concluded(REFUSED_LOGIN)
    assert not refused.is_counted
    assert refused.pause is None
    assert refused.relay_failure == REFUSED_LOGIN


def test_a_probe_that_fails_is_an_attempt() -> None:
    assert concluded(REFUSED_LOGIN, of=email(probe=True)).is_counted


def test_a_refused_sender_is_an_attempt_and_moves_on_so_that_it_does_not_block_the_line() -> None:
    refused = concluded(REFUSED_SENDER)
    assert refused.is_counted
    assert refused.pause is not None
    assert refused.pause >= 12


@pytest.mark.parametrize(("ruling", "answered"), [(SENT, True), (DEAD, True), (LATER, True), (REFUSED_LOGIN, False)])
def test_a_relay_that_rules_on_a_recipient_works(ruling: Ruling, answered: bool) -> None:
    assert concluded(ruling).relay_answered is answered


def test_an_email_refused_without_asking_says_nothing_of_the_relay() -> None:
    refusal = refusal_without_asking(Recipient("ann", None))
    assert refusal is not None
    assert not concluded(refusal).relay_answered


def test_a_full_mailbox_is_retried_for_days_and_then_undeliverable_without_being_suppressed() -> None:
    young = concluded(FULL, of=email(mailbox_full_seconds=MAILBOX_FULL_FOR - 1))
    old = concluded(FULL, of=email(mailbox_full_seconds=MAILBOX_FULL_FOR + 1))
    assert not young.is_finished
    assert old.is_finished
    assert old.dead_addresses == []


def test_only_what_the_relay_called_dead_is_suppressed() -> None:
    assert [each.address for each in concluded(SENT, DEAD).dead_addresses] == ["bob@example.com"]


@pytest.mark.parametrize(
    ("recipient", "reason"),
    [
        (Recipient("x", None, known=False), "no such user"),
        (Recipient("x", "x@example.com", active=False), "inactive"),
        (Recipient("x", None), "no address"),
        (Recipient("x", ""), "no address"),
        (Recipient("x", "x@example.com", suppressed=True), "suppressed"),
    ],
)
def test_some_recipients_are_refused_without_asking_the_relay(recipient: Recipient, reason: str) -> None:
    refusal = refusal_without_asking(recipient)
    assert refusal is not None
    assert reason in refusal.reply


def test_an_inactive_user_is_cleared_and_nothing_was_attempted() -> None:
    inactive = Recipient("x", "x@example.com", active=False)
    refusal = refusal_without_asking(inactive)
    assert refusal is not None
    found = result(email(inactive), inactive, refusal)
    assert (found.outcome, found.verdict) == (Outcome.CLEARED, None)


def test_a_suppressed_address_has_its_own_outcome_and_nothing_was_attempted() -> None:
    suppressed = Recipient("x", "x@example.com", suppressed=True)
    refusal = refusal_without_asking(suppressed)
    assert refusal is not None
    found = result(email(suppressed), suppressed, refusal)
    assert (found.outcome, found.verdict) == (Outcome.SUPPRESSED, None)


def test_the_error_names_phase_and_reply_of_what_is_still_to_be_done() -> None:
    assert concluded(SENT, LATER).error == "rcpt: 451 4.3.0 try later"


def test_an_undeliverable_recipient_and_an_unknown_are_reported_and_a_retry_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    report(Conclusion(concluded(DEAD, UNKNOWN)))
    assert len(caplog.records) == 2
    report(Conclusion(concluded(LATER)))
    assert len(caplog.records) == 2


def test_what_had_been_committed_before_is_not_reported_again(caplog: pytest.LogCaptureFixture) -> None:
    report(Conclusion(concluded(DEAD, UNKNOWN), is_repeated=True))
    assert caplog.records == []
