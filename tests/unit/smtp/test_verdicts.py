"""Each row of VERDICTS.md, on the table itself."""

import time

import pytest

from actors.channels.smtp.replies import Reply
from actors.channels.smtp.verdicts import is_out_of_place, judge, judge_failure, judge_too_big
from actors.ruling import Pace, Phase, Scope
from models.words import Verdict
from tests.unit.smtp.talk import as_reply

BEFORE_MAIL = [Phase.CONNECT, Phase.BANNER, Phase.EHLO, Phase.STARTTLS, Phase.AUTH]
BEFORE_DOT = [Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.BODY]


@pytest.mark.parametrize("phase", BEFORE_MAIL)
def test_a_failure_before_mail_is_the_relays_and_drops_nothing(phase: Phase) -> None:
    ruling = judge_failure(phase, "timed out")
    assert (ruling.verdict, ruling.scope, ruling.phase) == (Verdict.RETRY, Scope.RELAY, phase)


@pytest.mark.parametrize("phase", BEFORE_MAIL)
@pytest.mark.parametrize(
    "text",
    [
        "421 busy",
        "451 later",
        "500 what",
        "530 x",
        "534 x",
        "535 5.7.8 x",
        "538 x",
        "504 x",
        "554 no",
        "334 x",
    ],
)
def test_a_refusal_before_mail_is_the_relays_and_drops_nothing(phase: Phase, text: str) -> None:
    ruling = judge(phase, as_reply(text))
    assert (ruling.verdict, ruling.scope, ruling.phase) == (Verdict.RETRY, Scope.RELAY, phase)


@pytest.mark.parametrize("phase", BEFORE_DOT)
def test_a_connection_lost_before_the_dot_is_a_retry(phase: Phase) -> None:
    ruling = judge_failure(phase, "connection lost")
    assert (ruling.verdict, ruling.scope, ruling.reply) == (Verdict.RETRY, Scope.MESSAGE, "connection lost")


@pytest.mark.parametrize("what", ["timed out", "closed", "reset", "malformed reply"])
def test_a_connection_lost_after_the_dot_is_unknown(what: str) -> None:
    assert judge_failure(Phase.DOT, what).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("text", "verdict", "scope"),
    [
        ("421 4.3.2 closing", Verdict.RETRY, Scope.MESSAGE),
        ("450 later", Verdict.RETRY, Scope.MESSAGE),
        ("452 4.3.1 disk full", Verdict.RETRY, Scope.MESSAGE),
        ("503 5.5.1 nested MAIL", Verdict.RETRY, Scope.MESSAGE),
        ("354 out of place", Verdict.RETRY, Scope.MESSAGE),
        ("530 5.7.0 log in first", Verdict.RETRY, Scope.RELAY),
        ("550 5.7.1 sender refused", Verdict.RETRY, Scope.RELAY),
        ("553 5.1.8 sender refused", Verdict.RETRY, Scope.RELAY),
        ("501 syntax", Verdict.RETRY, Scope.RELAY),
        ("552 too big", Verdict.UNDELIVERABLE, Scope.MESSAGE),
        ("552 5.3.4 too big", Verdict.UNDELIVERABLE, Scope.MESSAGE),
        ("550 5.3.4 too big", Verdict.UNDELIVERABLE, Scope.MESSAGE),
    ],
)
def test_a_reply_to_mail(text: str, verdict: Verdict, scope: Scope) -> None:
    ruling = judge(Phase.MAIL, as_reply(text))
    assert (ruling.verdict, ruling.scope, ruling.suppress) == (verdict, scope, False)


@pytest.mark.parametrize(
    "text",
    [
        "550 no",
        "551 not here",
        "553 no",
        "554 5.7.1 no",
        "556 no mail",
        "550 5.7.1 policy",
        "554 5.4.4 x",
        "550 4.1.1 x",
    ],
)
def test_a_refused_recipient_is_undeliverable_and_may_be_tried_again_in_other_emails(text: str) -> None:
    ruling = judge(Phase.RCPT, as_reply(text))
    assert (ruling.verdict, ruling.scope, ruling.suppress) == (Verdict.UNDELIVERABLE, Scope.RECIPIENT, False)


@pytest.mark.parametrize("enhanced", ["5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10", "5.2.1"])
def test_a_dead_address_is_undeliverable_and_suppressed(enhanced: str) -> None:
    ruling = judge(Phase.RCPT, as_reply(f"550 {enhanced} gone"))
    assert (ruling.verdict, ruling.scope, ruling.suppress) == (Verdict.UNDELIVERABLE, Scope.RECIPIENT, True)
    assert (ruling.code, ruling.enhanced_code, ruling.reply) == (550, enhanced, f"{enhanced} gone")


@pytest.mark.parametrize("text", ["552 storage", "552 5.3.1 storage", "552 5.5.3 too many", "550 5.5.3 too many"])
def test_too_many_recipients_or_no_storage_at_rcpt_is_a_retry(text: str) -> None:
    ruling = judge(Phase.RCPT, as_reply(text))
    assert (ruling.verdict, ruling.pace, ruling.scope) == (Verdict.RETRY, Pace.NORMAL, Scope.RECIPIENT)


@pytest.mark.parametrize("text", ["552 5.2.2 full", "550 5.2.2 full", "554 5.2.2 full"])
def test_a_full_mailbox_is_retried_for_days_and_not_suppressed(text: str) -> None:
    ruling = judge(Phase.RCPT, as_reply(text))
    assert (ruling.verdict, ruling.pace, ruling.suppress) == (Verdict.RETRY, Pace.MAILBOX_FULL, False)


@pytest.mark.parametrize("text", ["450 busy", "451 4.3.0 error", "452 4.5.3 too many", "421 closing", "452 4.2.2 full"])
def test_a_temporary_refusal_at_rcpt_is_a_retry(text: str) -> None:
    ruling = judge(Phase.RCPT, as_reply(text))
    assert (ruling.verdict, ruling.pace, ruling.scope) == (Verdict.RETRY, Pace.NORMAL, Scope.RECIPIENT)


@pytest.mark.parametrize("phase", [Phase.RCPT, Phase.DATA, Phase.DOT])
@pytest.mark.parametrize(
    "text",
    [
        "450 Greylisted",
        "451 4.7.1 Greylisting in action",
        "450 you are graylisted",
        "421 GREYLIST",
        "451 grey-listing in action",
        "450 4.2.0 Gray listing",
    ],
)
def test_greylisting_is_a_retry_with_a_pace_of_its_own(phase: Phase, text: str) -> None:
    ruling = judge(phase, as_reply(text))
    assert (ruling.verdict, ruling.pace) == (Verdict.RETRY, Pace.GREYLISTED)


@pytest.mark.parametrize("phase", [Phase.RCPT, Phase.DATA, Phase.DOT])
def test_a_policy_that_is_temporary_is_no_greylisting_without_its_words(phase: Phase) -> None:
    for text in ("451 4.7.1 wait", "451 4.7.1 Service unavailable - try again later", "450 4.7.1 see /greylisting"):
        ruling = judge(phase, as_reply(text))
        assert (ruling.verdict, ruling.pace) == (Verdict.RETRY, Pace.NORMAL), text


def test_greylisting_is_never_a_5xx() -> None:
    assert judge(Phase.RCPT, as_reply("550 not greylisted but refused")).verdict is Verdict.UNDELIVERABLE


def test_a_login_that_is_wanted_at_rcpt_or_data_is_our_fault_and_drops_nothing() -> None:
    for phase in (Phase.RCPT, Phase.DATA):
        ruling = judge(phase, as_reply("530 5.7.0 log in first"))
        assert (ruling.verdict, ruling.scope) == (Verdict.RETRY, Scope.RELAY)


@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.RCPT, Phase.DATA])
def test_a_bad_sequence_before_the_dot_is_about_the_dialogue_and_drops_nothing(phase: Phase) -> None:
    reply = as_reply("503 5.5.1 bad sequence")
    assert judge(phase, reply).verdict is Verdict.RETRY
    assert is_out_of_place(phase, reply)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("421 closing", Verdict.RETRY),
        ("451 error", Verdict.RETRY),
        ("250 out of place", Verdict.RETRY),
        ("550 no", Verdict.UNDELIVERABLE),
        ("554 5.7.1 no", Verdict.UNDELIVERABLE),
    ],
)
def test_a_reply_to_data_is_about_the_message(text: str, verdict: Verdict) -> None:
    ruling = judge(Phase.DATA, as_reply(text))
    assert (ruling.verdict, ruling.scope) == (verdict, Scope.MESSAGE)


@pytest.mark.parametrize("text", ["250 ok", "200 ok", "251 will forward", "252 maybe", "299 odd"])
def test_any_2xx_after_the_dot_is_sent(text: str) -> None:
    assert judge(Phase.DOT, as_reply(text)).verdict is Verdict.SENT


@pytest.mark.parametrize("text", ["354 go on", "300 what"])
def test_a_3xx_after_the_dot_is_unknown(text: str) -> None:
    assert judge(Phase.DOT, as_reply(text)).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("text", ["421 closing", "450 later", "451 4.3.0 x", "452 disk full"])
def test_a_4xx_after_the_dot_is_a_definite_no_and_a_retry(text: str) -> None:
    ruling = judge(Phase.DOT, as_reply(text))
    assert (ruling.verdict, ruling.scope) == (Verdict.RETRY, Scope.MESSAGE)


@pytest.mark.parametrize(
    "text",
    [
        "550 no",
        "554 5.7.1 spam",
        "550 5.7.26 unauthenticated",
        "550 5.1.1 gone",
        "552 5.3.4 message size exceeds fixed limit",
        "554 generated content refused",
        "503 what",
    ],
)
def test_a_5xx_after_the_dot_drops_the_message_and_never_suppresses(text: str) -> None:
    ruling = judge(Phase.DOT, as_reply(text))
    assert (ruling.verdict, ruling.scope, ruling.suppress) == (Verdict.UNDELIVERABLE, Scope.MESSAGE, False)


@pytest.mark.parametrize(
    "text",
    [
        "554 5.7.1 please Try Again Later",
        "550 come back later.",
        "550 5.2.0 temporarily unavailable",
        "552 5.2.2 over quota",
    ],
)
def test_a_5xx_after_the_dot_that_says_it_will_pass_is_a_retry(text: str) -> None:
    ruling = judge(Phase.DOT, as_reply(text))
    assert (ruling.verdict, ruling.scope) == (Verdict.RETRY, Scope.MESSAGE)


def test_a_message_that_is_too_big_is_undeliverable() -> None:
    ruling = judge_too_big(1001, 1000)
    assert (ruling.verdict, ruling.scope, ruling.phase) == (Verdict.UNDELIVERABLE, Scope.MESSAGE, Phase.MAIL)


@pytest.mark.parametrize("limit", [1, 10, 999])
def test_a_size_that_no_email_fits_into_is_the_relays_fault(limit: int) -> None:
    ruling = judge_too_big(1001, limit)
    assert (ruling.verdict, ruling.scope, ruling.phase) == (Verdict.RETRY, Scope.RELAY, Phase.MAIL)


@pytest.mark.parametrize(
    "text", ["552 5.3.1 sending quota exceeded", "552 you are over your quota", "552 daily limit reached"]
)
def test_a_quota_at_mail_is_ours_also_where_the_code_is_that_of_a_size(text: str) -> None:
    ruling = judge(Phase.MAIL, as_reply(text))
    assert (ruling.verdict, ruling.scope) == (Verdict.RETRY, Scope.RELAY)


NAMES = [
    "relay.denied", "relaying-denied", "sender.rejected", "helo", "blacklisted", "spamhaus", "quota.exceeded",
    "daily_limit", "sending-limit-exceeded", "rate-limit", "try.again.later", "later", "limit", "mailbox.full",
    "message-size", "greylist", "access-denied", "authentication.required", "duplicate-header", "client.host.rejected",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "text",
    [
        "{0}@example.com: no such user",
        "<{0}@example.com>: Recipient address rejected: User unknown in local recipient table",
        "<{0}@example.com>... User unknown",
        "<{0}>: no such user",
        '"{0}" does not exist',
        "mailbox {0} does not exist",
        "{0}: no such user",
        "no such user, see https://example.com/{0}",
        "no such user, see example.com/help/{0}?q={0}",
        "no such user, see /{0}",
        "no such user at {0}.example.com",
        "no such user, write to {0}@help.example.com",
    ],
)
def test_a_name_is_no_word_of_the_relays(name: str, text: str) -> None:
    ruling = judge(Phase.RCPT, as_reply("550 5.1.1 " + text.format(name)), (f"{name}@example.com",))
    assert (ruling.verdict, ruling.scope, ruling.suppress) == (Verdict.UNDELIVERABLE, Scope.RECIPIENT, True)


def test_a_recipient_called_as_the_relay_speaks_hides_no_words_of_the_relays() -> None:
    for name, words in (
        ("relay", "Relay access denied"),
        ("sender", "Sender address rejected"),
        ("host", "Client host rejected"),
    ):
        reply = as_reply(f"554 5.7.1 <{name}@example.com>: {words}")
        assert judge(Phase.RCPT, reply, (f"{name}@example.com",)).scope is Scope.RELAY


@pytest.mark.parametrize(
    "words", ["at a rate of one a minute", "disabled at the moment", "until tomorrow", "sender is not known here"]
)
def test_an_address_is_not_dead_for_good_where_the_words_speak_of_a_rate_a_time_or_the_sender(words: str) -> None:
    for enhanced in ("5.1.1", "5.2.1"):
        ruling = judge(Phase.RCPT, as_reply(f"550 {enhanced} {words}"))
        assert not ruling.suppress


@pytest.mark.parametrize("word", ["relay ", "sender ", "limit of ", "a.b", "<", "x@", "-", "1.1", "your ip "])
def test_a_hostile_text_is_judged_at_once(word: str) -> None:
    filler = (word * 60_000)[:60_000]
    began = time.process_time()
    judge(Phase.RCPT, Reply(550, tuple(filler[start : start + 4_000] for start in range(0, len(filler), 4_000))))
    assert time.process_time() - began < 1


def test_every_phase_has_a_ruling_for_every_code() -> None:
    for phase in Phase:
        for code in range(200, 600):
            assert judge(phase, as_reply(f"{code} x")).phase is phase


def test_only_after_the_dot_anything_is_sent_or_unknown() -> None:
    for phase in set(Phase) - {Phase.DOT}:
        verdicts = {judge(phase, as_reply(f"{code} x")).verdict for code in range(200, 600)}
        assert verdicts <= {Verdict.RETRY, Verdict.UNDELIVERABLE}
        assert judge_failure(phase, "x").verdict is Verdict.RETRY
