"""What each outcome of an SMTP dialogue means: the one place that decides what a failure means."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from actors.smtp.replies import Reply, one_line
from models.words import Verdict


class Phase(StrEnum):
    """How far an attempt had come. An SMTP exception does not tell; the dialogue must know."""

    RENDER = "render"
    ADDRESS = "address"
    CONNECT = "connect"
    BANNER = "banner"
    EHLO = "ehlo"
    STARTTLS = "starttls"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    BODY = "body"
    DOT = "dot"
    QUIT = "quit"


class Scope(StrEnum):
    """Whose fault a failure is, and so what it stops."""

    RECIPIENT = "recipient"
    MESSAGE = "message"
    RELAY = "relay"


class Pace(StrEnum):
    """How soon a `retry` is worth another attempt."""

    NORMAL = "normal"
    GREYLISTED = "greylisted"
    MAILBOX_FULL = "mailbox_full"
    BROKEN = "broken"


class Ruling(NamedTuple):
    """What one attempt came to for one recipient, and why.

    Attributes:
        verdict: what follows.
        scope: whose fault it is; `Scope.RECIPIENT` where it is nobody's.
        phase: where the dialogue stood.
        code: the SMTP reply code, None where there was no reply.
        enhanced_code: the enhanced status code (RFC 3463) such as `5.1.1`, None where there was none.
        reply: the relay's text, or what happened instead, in one line. May hold an address: not for logs.
        pace: how soon a retry is worth it.
        suppress: the address is dead: later emails to it are not attempted.
    """

    verdict: Verdict
    scope: Scope
    phase: Phase
    code: int | None = None
    enhanced_code: str | None = None
    reply: str = ""
    pace: Pace = Pace.NORMAL
    suppress: bool = False


@lru_cache(maxsize=1_000)
def judge(phase: Phase, reply: Reply) -> Ruling:
    """Says what a reply means that ends an attempt, for those whom it concerns.

    At `Phase.DOT` every reply ends the attempt, so 2xx is `sent` there. In other phases only refusals and
    replies out of place come here: what a relay grants on the way is no verdict yet.

    Args:
        phase: what the relay replied to.
        reply: what it said.
    """
    meaning = next(meaning for says, meaning in _TABLE.get(phase, _BEFORE_MAIL) if says(reply))
    return Ruling(
        verdict=meaning.verdict,
        scope=meaning.scope,
        phase=phase,
        code=reply.code,
        enhanced_code=reply.enhanced_code,
        reply=reply.text,
        pace=meaning.pace,
        suppress=meaning.suppress,
    )


def judge_failure(phase: Phase, what: str) -> Ruling:
    """Says what it means that the dialogue broke off: no reply, or one that cannot be understood.

    Args:
        phase: what was being done.
        what: what happened, for people.
    """
    meaning = _BROKEN_OFF.get(phase, _RELAY_AT_FAULT)
    return Ruling(meaning.verdict, meaning.scope, phase, reply=one_line(what))


def judge_too_big(size: int, limit: int) -> Ruling:
    """Says what it means that a message is larger than the relay takes (RFC 1870), both in bytes."""
    what = f"the message has {size} bytes, the relay takes {limit}"
    return Ruling(_MESSAGE_REFUSED.verdict, _MESSAGE_REFUSED.scope, Phase.MAIL, reply=what)


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

#: Enhanced codes of addresses that will never work: bad mailbox, domain, syntax; moved, null MX, disabled.
_DEAD = ("5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10", "5.2.1")

_GREYLISTING = re.compile(r"gr[ae]y[ -]?list", re.IGNORECASE)

#: Words that make a 5xx after the dot a temporary one; whole words, since "rate" is also in "generated".
_PASSING = re.compile(r"\b(?:later|rates?|quotas?|(?:rate)?limit\w*)\b", re.IGNORECASE)

_Says = Callable[[Reply], bool]


def _always(_reply: Reply) -> bool:
    return True


def _code(*codes: int) -> _Says:
    return lambda reply: reply.code in codes


def _class(digit: int) -> _Says:
    return lambda reply: reply.code // 100 == digit


def _enhanced(*codes: str) -> _Says:
    return lambda reply: reply.enhanced_code in codes


def _greylists(reply: Reply) -> bool:
    by_name = _GREYLISTING.search(reply.text) is not None
    return reply.code // 100 == 4 and (by_name or reply.enhanced_code == "4.7.1")


def _passes(reply: Reply) -> bool:
    return reply.code // 100 == 5 and _PASSING.search(reply.text) is not None


# For each phase, from the top: the first line that fits says what the reply means.

_BEFORE_MAIL: tuple[tuple[_Says, _Meaning], ...] = ((_always, _RELAY_AT_FAULT),)

_TABLE: dict[Phase, tuple[tuple[_Says, _Meaning], ...]] = {
    Phase.MAIL: (
        (_code(552), _MESSAGE_REFUSED),
        (_enhanced("5.3.4"), _MESSAGE_REFUSED),
        (_code(503), _MESSAGE_LATER),
        (_class(5), _RELAY_AT_FAULT),
        (_always, _MESSAGE_LATER),
    ),
    Phase.RCPT: (
        (_greylists, _RECIPIENT_GREYLISTED),
        (_class(4), _RECIPIENT_LATER),
        (_code(503), _MESSAGE_LATER),
        (_code(530), _RELAY_AT_FAULT),
        (_enhanced("5.2.2"), _RECIPIENT_FULL),
        (_enhanced("5.5.3"), _RECIPIENT_LATER),
        (_code(552), _RECIPIENT_LATER),
        (_enhanced(*_DEAD), _RECIPIENT_DEAD),
        (_class(5), _RECIPIENT_REFUSED),
        (_always, _MESSAGE_LATER),
    ),
    Phase.DATA: (
        (_greylists, _MESSAGE_GREYLISTED),
        (_code(503), _MESSAGE_LATER),
        (_code(530), _RELAY_AT_FAULT),
        (_class(5), _MESSAGE_REFUSED),
        (_always, _MESSAGE_LATER),
    ),
    Phase.BODY: ((_always, _MESSAGE_LATER),),
    Phase.DOT: (
        (_class(2), _SENT),
        (_greylists, _MESSAGE_GREYLISTED),
        (_class(4), _MESSAGE_LATER),
        (_enhanced("5.3.4"), _MESSAGE_REFUSED),
        (_passes, _MESSAGE_LATER),
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
