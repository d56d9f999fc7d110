"""What relays say of how much of us they take, in the words that servers use."""

import pytest

from actors.channels.smtp.limits import (
    is_connection_limit,
    is_message_limit,
    is_rate_limit,
    may_be_connection_limit,
    may_be_rate_limit,
)
from actors.channels.smtp.replies import Reply
from actors.channels.smtp.verdicts import judge, judge_failure
from actors.ruling import Phase, Ruling


def said(phase: Phase, text: str) -> Ruling:
    return judge(phase, Reply(int(text[:3]), (text[4:],)))


CONNECTIONS = [
    "421 4.7.0 relay.example.com Error: too many connections from 192.0.2.1",
    "421 Too many concurrent SMTP connections from this IP address; please try again later.",
    "421 4.3.2 Too many open connections.",
    "421 4.3.2 Connection rate limit exceeded.",
    "421 4.3.2 The maximum number of concurrent server connections has exceeded a limit, closing transmission channel",
    "421 4.7.0 Too many sessions opened",
    "421 Maximum number of connections reached",
    "554 5.7.1 too many concurrent connections",
]

MESSAGES = [
    "421 too many messages in this connection",
    "421 4.7.0 Too many messages for this session",
    "452 4.5.3 Max number of emails per session reached",
    "550 5.7.0 Maximum transactions per connection exceeded",
]

RATES = [
    "421 4.4.2 Message submission rate for this client has exceeded the configured limit",
    "450 Sender rate overlimit",
    "432 4.3.2 Concurrent connections limit exceeded.",
    "450 4.7.1 Error: too much mail from 192.0.2.1",
    "450 4.7.1 Error: too many recipients from 192.0.2.1",
    "451 4.7.1 rate limit exceeded",
    "421 4.7.28 Our system has detected an unusual rate of unsolicited mail",
    "450 4.4.2 Too many emails, slow down",
    "452 4.3.1 sending rate exceeded",
    "454 Throttling failure: Maximum sending rate exceeded.",
    "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded",
]

NEITHER = [
    "450 4.2.1 The user you are trying to contact is receiving mail at a rate that prevents additional messages",
    "452 4.3.1 Insufficient system storage",
    "450 4.1.8 <a@b.example>: Sender address rejected: Domain not found",
    "451 4.7.1 Greylisting in action, please come back later",
    "452 4.5.3 too many recipients",
    "450 4.7.1 see https://example.com/rate-card",
    "552 5.3.4 message size exceeds limit",
]


@pytest.mark.parametrize("text", CONNECTIONS)
def test_too_many_connections(text: str) -> None:
    for phase in (Phase.BANNER, Phase.EHLO):
        assert is_connection_limit(said(phase, text))
    assert is_connection_limit(said(Phase.MAIL, text)) is text.startswith("421")
    assert not is_connection_limit(said(Phase.RCPT, text))


@pytest.mark.parametrize("text", MESSAGES)
def test_too_many_emails_over_one_connection(text: str) -> None:
    assert is_message_limit(said(Phase.MAIL, text))
    assert not is_connection_limit(said(Phase.MAIL, text))
    assert not is_rate_limit(said(Phase.MAIL, text))


@pytest.mark.parametrize("text", RATES)
@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.DOT])
def test_too_much_in_a_time(phase: Phase, text: str) -> None:
    assert is_rate_limit(said(phase, text))
    assert not is_message_limit(said(phase, text))


@pytest.mark.parametrize("text", [text for text in CONNECTIONS if text.startswith("421")])
@pytest.mark.parametrize("phase", [Phase.RCPT, Phase.DATA, Phase.DOT])
def test_too_many_connections_when_it_is_too_late_to_use_fewer_slows_us_down(phase: Phase, text: str) -> None:
    assert is_rate_limit(said(phase, text))


@pytest.mark.parametrize("text", NEITHER)
@pytest.mark.parametrize("phase", [Phase.RCPT, Phase.DATA, Phase.DOT])
def test_none_of_these(phase: Phase, text: str) -> None:
    ruling = said(phase, text)
    assert not is_rate_limit(ruling)
    assert not is_message_limit(ruling)
    assert not is_connection_limit(ruling)


def test_a_deferral_at_mail_may_be_for_a_rate_unless_it_is_for_the_sender() -> None:
    assert may_be_rate_limit(said(Phase.MAIL, "452 4.3.1 Insufficient system storage"))
    assert may_be_rate_limit(said(Phase.MAIL, "451 try again"))
    assert not may_be_rate_limit(said(Phase.MAIL, "450 4.1.8 Sender address rejected: Domain not found"))
    assert not may_be_rate_limit(said(Phase.MAIL, "550 5.7.1 no"))
    assert not may_be_rate_limit(said(Phase.RCPT, "451 try again"))


@pytest.mark.parametrize(
    "what", ["connection failed: Connection refused", "connection failed: Connection reset by peer"]
)
@pytest.mark.parametrize("phase", [Phase.CONNECT, Phase.BANNER])
def test_a_connection_that_is_cut_off_may_be_one_too_many(phase: Phase, what: str) -> None:
    assert may_be_connection_limit(judge_failure(phase, what))
    assert not is_connection_limit(judge_failure(phase, what))


@pytest.mark.parametrize(
    "ruling",
    [
        judge_failure(Phase.BANNER, "timed out after 300 seconds"),
        judge_failure(Phase.CONNECT, "the relay's name does not resolve: unknown"),
        judge_failure(Phase.STARTTLS, "the relay's certificate is not trusted"),
        said(Phase.AUTH, "535 5.7.8 wrong"),
        said(Phase.EHLO, "550 5.7.1 Helo command rejected"),
    ],
)
def test_a_relay_that_fails_otherwise_does_not_speak_of_connections(ruling: Ruling) -> None:
    assert not may_be_connection_limit(ruling)
