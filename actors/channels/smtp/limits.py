"""What a relay says about how much of us it takes: connections at once, emails over one of them, emails in a time.

None of it is about an email, or a reason to open the circuit: use fewer, renew the connection, or slow down.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final

from actors.ruling import Limit, Phase, Ruling

#: Phases in which a relay refuses a connection as such.
BEFORE_LOGIN: Final = frozenset({Phase.CONNECT, Phase.BANNER, Phase.EHLO})

#: "Error: too many connections from 127.0.0.1", "Too many concurrent SMTP connections", "maximum number of sessions".
_CONNECTIONS = re.compile(
    r"too many (?:\w+ ){0,3}(?:connections?|sessions?|clients?|processes)\b"
    r"|\b(?:connection|session)s? (?:count |number )?(?:limit|rate)\b"
    r"|\bmax(?:imum)?\b[\w ]{0,30}\b(?:connections?|sessions?)\b"
    r"|\b(?:reduce|limit|concurrent|simultaneous|parallel)\b[\w ]{0,30}\b(?:connections?|sessions?)\b",
    re.IGNORECASE,
)

#: "too many messages in this connection", "Max number of messages per session reached".
_MESSAGES = re.compile(
    r"\b(?:messages?|mails?|emails?|transactions?)\b[\w ]{0,30}"
    r"\b(?:in|on|per|for|over|during) (?:this |the |one |a |each )?(?:smtp )?(?:connection|session)\b",
    re.IGNORECASE,
)

#: "Error: too much mail from 127.0.0.1", "rate limit exceeded", "sending too fast", "try again later: throttled",
#: "Message submission rate for this client has exceeded the configured limit", "sender rate overlimit".
_RATE = re.compile(
    r"too much mail\b|too many recipients from\b|too many (?:\w+ ){0,2}(?:messages?|mails?|emails?|requests?)\b"
    r"|\brate[- ]?limit(?:s|ed|ing)?\b"
    r"|\b(?:message|mail|send(?:ing)?|sender|submission|delivery|request|recipient|client) rate\b"
    r"|\brate (?:is |was )?(?:exceeded|too high)|\bexceed\w*\b[\w ]{0,30}\brate\b|\btoo (?:fast|quickly)\b"
    r"|\bthrottl(?:ed|ing|e)\b|\bslow(?:ing)? down\b|\bunusual rate\b|\bthread limit\b",
    re.IGNORECASE,
)

#: Where the words are about somebody else's rate: a mailbox that gets much from everybody.
_OF_THE_RECIPIENT = re.compile(
    r"\b(?:user|mailbox|recipient|account)\b[\w ,']{0,40}\b(?:receiv\w+|getting)\b", re.IGNORECASE
)


def with_limits(ruling: Ruling) -> Ruling:
    """The ruling, with what it says about how much of us the relay takes."""
    limits = Limit.NONE
    for limit, is_said in _LIMITS.items():
        if is_said(ruling):
            limits |= limit
    return ruling._replace(limits=limits) if limits else ruling


def names_connections(reply: str) -> bool:
    """Whether a refusal's text says that there are too many connections."""
    return _CONNECTIONS.search(reply) is not None and _MESSAGES.search(reply) is None


def is_connection_limit(ruling: Ruling) -> bool:
    """Whether a relay says expressly that it takes no further connection of ours, at whatever point."""
    is_refusal = ruling.code is not None and ruling.code // 100 in {4, 5}
    early = ruling.phase in BEFORE_LOGIN or (ruling.phase is Phase.MAIL and ruling.code == 421)
    # Exchange's 4.3.2 is "service not available" as well: only the words tell.
    return is_refusal and early and names_connections(ruling.reply)


def may_be_connection_limit(ruling: Ruling) -> bool:
    """Whether it may be one: refused, closed or reset before a login, while others of ours work."""
    if is_connection_limit(ruling):
        return True
    if ruling.phase not in BEFORE_LOGIN:
        return False
    if ruling.code is not None:
        return ruling.phase is Phase.BANNER or ruling.code == 421
    return _was_cut_off(ruling.reply)


def is_message_limit(ruling: Ruling) -> bool:
    """Whether a refusal of MAIL says that this connection has had its share: a fresh one takes the email."""
    is_refusal = ruling.phase is Phase.MAIL and ruling.code is not None and ruling.code // 100 in {4, 5}
    return is_refusal and _MESSAGES.search(ruling.reply) is not None


def is_rate_limit(ruling: Ruling) -> bool:
    """Whether a relay says expressly that we send too much in too short a time.

    One that speaks of connections as late as this, as Exchange Online does, wants less of us as well.
    """
    if ruling.code is None or ruling.code // 100 != 4 or ruling.phase in BEFORE_LOGIN:
        return False
    if ruling.phase is not Phase.MAIL and _OF_THE_RECIPIENT.search(ruling.reply):
        return False
    is_said = _RATE.search(ruling.reply) is not None or names_connections(ruling.reply)
    return is_said and _MESSAGES.search(ruling.reply) is None and not is_connection_limit(ruling)


def may_be_rate_limit(ruling: Ruling) -> bool:
    """Whether it may be one, if it is said to several emails in a row: MAIL refused for now, not for its address."""
    if is_rate_limit(ruling):
        return True
    is_about_sender = (ruling.enhanced_code or "").startswith("4.1.")
    return ruling.phase is Phase.MAIL and ruling.code is not None and ruling.code // 100 == 4 and not is_about_sender


def _was_cut_off(what: str) -> bool:
    return any(word in what for word in ("refused", "reset", "closed", "hung up"))


_LIMITS: Final[Mapping[Limit, Callable[[Ruling], bool]]] = {
    Limit.SESSIONS: is_connection_limit,
    Limit.PERHAPS_SESSIONS: may_be_connection_limit,
    Limit.SESSION_USED_UP: is_message_limit,
    Limit.RATE: is_rate_limit,
    Limit.PERHAPS_RATE: may_be_rate_limit,
}
