"""What a bounce means: the table of verdicts decides, as it does for what a relay says at once."""

import re
from dataclasses import replace
from enum import StrEnum
from typing import Final, NamedTuple

from actors.channels.smtp.replies import Reply
from actors.channels.smtp.verdicts import judge
from actors.ruling import Phase, Scope
from duepost.bounces.reports import Status

#: A reply inside what a server says of another's: its code, and the rest.
_REPLY = re.compile(r"(?:^|.*?[\s:;(\"'])([245][0-9]{2})(?:[ -]|$)(.*)", re.DOTALL)
_ENHANCED = re.compile(r"#?[245]\.[0-9]{1,3}\.[0-9]{1,3}\b")

#: The code of a status without a reply, by its class.
_USUAL = {"4": 450, "5": 550}


#: An action that no report has (RFC 3464 section 2.3.3): a provider has given it up, and calls no address dead.
SOFT: Final = "soft"


class Effect(StrEnum):
    """What follows from what came back."""

    #: Nothing goes to the address any more.
    SUPPRESSED = "suppressed"
    #: It did not arrive; that says nothing of the next one.
    FAILED = "failed"
    #: It is our fault: a sender, a login, our network's reputation.
    ABOUT_US = "about_us"
    #: It says nothing that has to be known: still being tried, delivered, an answer.
    NOTHING = "nothing"


class Meaning(NamedTuple):
    """What follows, with what the last server said.

    Attributes:
        effect: what follows.
        enhanced_code: RFC 3463.
        reply: for people.
    """

    effect: Effect
    enhanced_code: str | None
    reply: str


def meaning_of(status: Status) -> Meaning:
    """What a report of one recipient means."""
    if status.action == SOFT:
        meaning = meaning_of(replace(status, action="failed"))
        return meaning._replace(effect=Effect.FAILED) if meaning.effect is Effect.SUPPRESSED else meaning
    if status.action != "failed":
        return Meaning(Effect.NOTHING, status.code, status.diagnostic)
    found = _REPLY.match(status.diagnostic)
    code = int(found[1]) if found else _USUAL.get((status.code or "")[:1])
    if code is None:
        return Meaning(Effect.FAILED, status.code, status.diagnostic)
    line = found[2] if found else status.diagnostic
    if status.code is not None and not _ENHANCED.match(line.lstrip()):
        line = f"{status.code} {line}"
    ruling = judge(Phase.RCPT, Reply(code, (line,)), status.addresses)
    if ruling.suppress:
        effect = Effect.SUPPRESSED
    elif ruling.scope is Scope.RELAY:
        effect = Effect.ABOUT_US
    else:
        effect = Effect.FAILED
    return Meaning(effect, ruling.enhanced_code or status.code, ruling.reply)
