"""What each outcome of an SMTP dialogue means: the one place that decides what a failure means."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from actors.channels.smtp.limits import with_limits
from actors.channels.smtp.replies import Reply
from actors.channels.smtp.wording import ABOUT_US, topics
from actors.ruling import Pace, Phase, Ruling, Scope, Topic, one_line
from models.words import Verdict

#: Bytes. A relay that announces a smaller SIZE takes no email at all: the headers alone have more than half of it.
SMALLEST_LIMIT: Final = 1_000


@lru_cache(maxsize=1_000)
def judge(phase: Phase, reply: Reply, recipients: tuple[str, ...] = ()) -> Ruling:
    """Says what a reply means that ends an attempt, for those whom it concerns.

    At `Phase.DOT` every reply ends the attempt, so 2xx is `sent` there. In other phases only refusals and
    replies out of place come here: what a relay grants on the way is no verdict yet.

    Args:
        phase: what the relay replied to.
        reply: what it said.
        recipients: to whom; their names are no words of the relay's.
    """
    heard = _Heard(reply, frozenset() if reply.code < 400 else topics(reply, recipients))
    meaning = next(meaning for says, meaning in _TABLE.get(phase, _BEFORE_MAIL) if says(heard))
    ruling = Ruling(
        verdict=meaning.verdict,
        scope=meaning.scope,
        phase=phase,
        code=reply.code,
        enhanced_code=reply.enhanced_code,
        # A relay may echo the login.
        reply="" if phase is Phase.AUTH else reply.text,
        pace=meaning.pace,
        suppress=meaning.suppress,
        about=None if phase is Phase.AUTH else next((topic for topic in ABOUT_US if topic in heard.topics), None),
    )
    return ruling if reply.positive else with_limits(ruling)


def judge_failure(phase: Phase, what: str) -> Ruling:
    """Says what it means that the dialogue broke off: no reply, or one that cannot be understood.

    Args:
        phase: what was being done.
        what: what happened, for people.
    """
    meaning = _BROKEN_OFF.get(phase, _RELAY_AT_FAULT)
    return with_limits(Ruling(meaning.verdict, meaning.scope, phase, reply=one_line(what)))


def judge_too_big(size: int, limit: int) -> Ruling:
    """Says what it means that a message is larger than the relay takes (RFC 1870), both in bytes.

    A limit that no email fits into is the relay's fault.
    """
    what = f"the message has {size} bytes, the relay takes {limit}"
    meaning = _MESSAGE_REFUSED if limit >= SMALLEST_LIMIT else _RELAY_AT_FAULT
    return Ruling(meaning.verdict, meaning.scope, Phase.MAIL, reply=what)


def judge_not_ascii() -> Ruling:
    """Says what it means that an address needs SMTPUTF8 (RFC 6531), and the relay does not offer it."""
    what = "the part of the address before the @ is not ASCII, and the relay does not offer SMTPUTF8"
    return Ruling(Verdict.UNDELIVERABLE, Scope.RECIPIENT, Phase.ADDRESS, reply=what)


def is_out_of_place(phase: Phase, reply: Reply) -> bool:
    """Says whether relay and client no longer talk about the same thing: that connection is of no use."""
    if phase is Phase.DATA:
        return reply.positive or reply.code == 503
    return reply.intermediate or reply.code == 503


@dataclass(frozen=True, slots=True)
class _Meaning:
    verdict: Verdict
    scope: Scope
    pace: Pace = Pace.NORMAL
    suppress: bool = False


_SENT = _Meaning(Verdict.SENT, Scope.RECIPIENT)
_UNKNOWN = _Meaning(Verdict.UNKNOWN, Scope.MESSAGE)
_RELAY_AT_FAULT = _Meaning(Verdict.RETRY, Scope.RELAY)
_MESSAGE_LATER = _Meaning(Verdict.RETRY, Scope.MESSAGE)
_MESSAGE_GREYLISTED = _Meaning(Verdict.RETRY, Scope.MESSAGE, Pace.GREYLISTED)
_MESSAGE_REFUSED = _Meaning(Verdict.UNDELIVERABLE, Scope.MESSAGE)
_RECIPIENT_LATER = _Meaning(Verdict.RETRY, Scope.RECIPIENT)
_RECIPIENT_GREYLISTED = _Meaning(Verdict.RETRY, Scope.RECIPIENT, Pace.GREYLISTED)
_RECIPIENT_FULL = _Meaning(Verdict.RETRY, Scope.RECIPIENT, Pace.MAILBOX_FULL)
_RECIPIENT_REFUSED = _Meaning(Verdict.UNDELIVERABLE, Scope.RECIPIENT)
_RECIPIENT_DEAD = _Meaning(Verdict.UNDELIVERABLE, Scope.RECIPIENT, suppress=True)

_MESSAGE_FULL = _Meaning(Verdict.RETRY, Scope.MESSAGE, Pace.MAILBOX_FULL)

#: Enhanced codes of addresses that will never work: bad mailbox, domain, syntax; moved, null MX, disabled.
_DEAD = ("5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10", "5.2.1")

#: Enhanced codes that are about a recipient, where a bare "access denied" is too.
_RECIPIENTS = (*_DEAD, "5.4.1", "5.1.0", "4.1.1", "4.1.2", "4.1.3", "4.2.1")

#: Enhanced codes by which Exchange says whom a recipient, or its organisation, takes mail from: that recipient's
#: affair, though the words are about a sender, a login or access.
_RESTRICTED = (
    *("5.7.12", "5.7.13", "5.7.124", "5.7.129", "5.7.133", "5.7.134", "5.7.135", "5.7.136", "5.7.193"),
    *("5.7.504", "5.7.505", "5.7.510", "5.7.513"),
)

#: Enhanced codes that are about us, whatever the words: the sender's address, our quota, our login; encryption, DKIM,
#: SPF, our host's name, a flood of ours (RFC 7372, RFC 7505, IANA's register); our tenant, our addresses (Exchange).
_OURS = (
    *("5.1.7", "5.1.8", "5.7.60", "5.2.252", "5.4.5", "5.1.90", "5.7.57", "5.7.64", "5.7.8", "5.7.14"),
    *("5.7.10", "5.7.11", *(f"5.7.{number}" for number in range(20, 33) if number != 26)),
    *("5.7.68", "5.7.501", "5.7.502", "5.7.503", "5.7.506", "5.7.508", "5.7.509", "5.7.511", "5.7.515"),
    *(f"5.7.{number}" for number in (*range(606, 650), 705, 708, 750)),
)

#: Codes of a login that is missing, wrong or too weak, or of an account that may not send; 502, a command that is not
#: there, is never about a recipient.
_LOGIN_CODES = (502, 525, 530, 534, 535, 538)

#: Too big for the relay, or for that mailbox.
_TOO_BIG = ("5.3.4", "5.2.3")

#: An address is not dead for good where the words speak of these.
_NOT_FOR_GOOD = frozenset({Topic.LATER, Topic.TIME, Topic.RATE, Topic.MAILBOX_RATE, Topic.SENDER, Topic.RECIPIENT})


class _Heard(NamedTuple):
    reply: Reply
    topics: frozenset[Topic]


_Says = Callable[[_Heard], bool]


def _always(_heard: _Heard) -> bool:
    return True


def _code(*codes: int) -> _Says:
    return lambda heard: heard.reply.code in codes


def _class(digit: int) -> _Says:
    return lambda heard: heard.reply.code // 100 == digit


#: By which Google and Microsoft say that they take less of us for now.
_RATED: Final = ("4.7.28", "4.7.32", "4.7.650", "4.7.651", "4.7.652")


def _enhanced(*codes: str) -> _Says:
    return lambda heard: heard.reply.enhanced_code in codes


def _greylists(heard: _Heard) -> bool:
    return heard.reply.code // 100 == 4 and Topic.GREYLISTING in heard.topics


def _is_too_big(heard: _Heard) -> bool:
    return heard.reply.code // 100 == 5 and (_enhanced(*_TOO_BIG)(heard) or Topic.SIZE in heard.topics)


def _is_full(heard: _Heard) -> bool:
    """By its code, or by words that are not about a quota of ours, nor about the size of one email."""
    if _enhanced(*_TOO_BIG)(heard):
        return False
    if heard.reply.code // 100 != 5 or Topic.QUOTA in heard.topics:
        return _enhanced("5.2.2")(heard)
    some_quota = Topic.SOME_QUOTA in heard.topics and _names_a_mailbox(heard)
    return _enhanced("5.2.2")(heard) or Topic.MAILBOX_FULL in heard.topics or some_quota


def _names_a_mailbox(heard: _Heard) -> bool:
    """Whether the codes are such as are said of a mailbox, where a quota is somebody's."""
    enhanced = heard.reply.enhanced_code
    return heard.reply.code in (550, 552) if enhanced is None else enhanced.split(".")[1] in ("1", "2")


def _mailbox_is_busy(heard: _Heard) -> bool:
    return Topic.MAILBOX_RATE in heard.topics


def _is_about_us(heard: _Heard) -> bool:
    """By a code or by words; in a 4xx not if it is only how fast we send, which passes with the next pause."""
    if _code(*_LOGIN_CODES)(heard) or _enhanced(*_OURS)(heard):
        return True
    is_full = Topic.MAILBOX_FULL in heard.topics and Topic.QUOTA not in heard.topics
    if is_full or Topic.RECIPIENT in heard.topics or _enhanced(*_RESTRICTED)(heard):
        return False
    ours = heard.topics.intersection(ABOUT_US)
    if heard.reply.code // 100 == 4:
        # A pace that is held down for a reputation is a pace, and passes too.
        ours -= {Topic.RATE, Topic.REPUTATION} if _enhanced(*_RATED)(heard) else {Topic.RATE}
    if Topic.CONTENT in heard.topics:
        ours -= {Topic.REPUTATION, Topic.ACCESS}
    if _names_a_mailbox(heard):
        ours -= {Topic.SOME_QUOTA}
    if _enhanced(*_RECIPIENTS)(heard):
        ours -= {Topic.ACCESS}
    return bool(ours)


def _is_about_our_quota(heard: _Heard) -> bool:
    return not heard.topics.isdisjoint({Topic.QUOTA, Topic.SOME_QUOTA, Topic.RATE, Topic.MAILBOX_FULL})


def _will_pass(heard: _Heard) -> bool:
    return heard.reply.code // 100 == 5 and Topic.LATER in heard.topics


def _is_dead(heard: _Heard) -> bool:
    return _enhanced(*_DEAD)(heard) and heard.topics.isdisjoint(_NOT_FOR_GOOD)


# For each phase, from the top: the first line that fits says what the reply means.

_BEFORE_MAIL: tuple[tuple[_Says, _Meaning], ...] = ((_always, _RELAY_AT_FAULT),)

_TABLE: dict[Phase, tuple[tuple[_Says, _Meaning], ...]] = {
    Phase.MAIL: (
        (_is_too_big, _MESSAGE_REFUSED),
        (_is_about_us, _RELAY_AT_FAULT),
        (_class(4), _MESSAGE_LATER),
        (_is_about_our_quota, _RELAY_AT_FAULT),
        (_code(552), _MESSAGE_REFUSED),
        (_code(503), _MESSAGE_LATER),
        (_class(5), _RELAY_AT_FAULT),
        (_always, _MESSAGE_LATER),
    ),
    Phase.RCPT: (
        (_greylists, _RECIPIENT_GREYLISTED),
        (_is_full, _RECIPIENT_FULL),
        (_mailbox_is_busy, _RECIPIENT_LATER),
        (_enhanced("5.5.3"), _RECIPIENT_LATER),
        (_is_too_big, _RECIPIENT_REFUSED),
        (_is_about_us, _RELAY_AT_FAULT),
        (_class(4), _RECIPIENT_LATER),
        (_code(503), _MESSAGE_LATER),
        (_code(552), _RECIPIENT_LATER),
        (_will_pass, _RECIPIENT_LATER),
        (_is_dead, _RECIPIENT_DEAD),
        (_class(5), _RECIPIENT_REFUSED),
        (_always, _MESSAGE_LATER),
    ),
    Phase.DATA: (
        (_greylists, _MESSAGE_GREYLISTED),
        (_is_full, _MESSAGE_FULL),
        (_mailbox_is_busy, _MESSAGE_LATER),
        (_is_too_big, _MESSAGE_REFUSED),
        (_is_about_us, _RELAY_AT_FAULT),
        (_class(4), _MESSAGE_LATER),
        (_code(503), _MESSAGE_LATER),
        (_will_pass, _MESSAGE_LATER),
        (_class(5), _MESSAGE_REFUSED),
        (_always, _MESSAGE_LATER),
    ),
    Phase.BODY: ((_always, _MESSAGE_LATER),),
    Phase.DOT: (
        (_class(2), _SENT),
        (_greylists, _MESSAGE_GREYLISTED),
        (_is_full, _MESSAGE_FULL),
        (_mailbox_is_busy, _MESSAGE_LATER),
        (_is_too_big, _MESSAGE_REFUSED),
        (_is_about_us, _RELAY_AT_FAULT),
        (_class(4), _MESSAGE_LATER),
        (_will_pass, _MESSAGE_LATER),
        (_class(5), _MESSAGE_REFUSED),
        (_always, _UNKNOWN),
    ),
}

#: What a dialogue that breaks off means; where nothing is said the relay is at fault: nothing was submitted.
_BROKEN_OFF: dict[Phase, _Meaning] = {
    Phase.MAIL: _MESSAGE_LATER,
    Phase.RCPT: _MESSAGE_LATER,
    Phase.DATA: _MESSAGE_LATER,
    Phase.BODY: _MESSAGE_LATER,
    Phase.DOT: _UNKNOWN,
}
