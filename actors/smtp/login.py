"""Logs in: by each mechanism that the relay offers, until one is taken (RFC 4954)."""

import binascii
import hmac
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from actors.smtp.dialogue import Script, Stopped, ask, must_be_positive
from actors.smtp.replies import Reply
from actors.smtp.verdicts import Phase, Ruling, judge, judge_failure


@dataclass(slots=True)
class Attempts:
    """How a login went; kept from one connection to the next.

    Attributes:
        works: the mechanism that was taken last.
        refused: what the relay said to each that it refused, since one was taken.
        is_cut_off: the relay hung up on a refusal, and another mechanism is left: it wants a connection of its own.
    """

    works: str | None = None
    refused: dict[str, Ruling] = field(default_factory=dict)
    is_cut_off: bool = False


def log_in(offered: frozenset[str], username: str, password: str, attempts: Attempts) -> Script[None]:
    """Tries one mechanism after the other.

    Of the relay's words nothing is kept: it may repeat the login.

    Raises:
        Stopped: none is offered that is spoken here, or each was refused.
    """
    attempts.is_cut_off, is_refused = False, False
    left = _in_order(offered, attempts)
    if not left:
        raise Stopped(judge_failure(Phase.AUTH, _why_none(offered)))
    while left:
        mechanism = left.pop(0)
        try:
            yield from _MECHANISMS[mechanism](username.encode("utf-8"), password.encode("utf-8"))
        except Stopped as stopped:
            code = stopped.ruling.code
            if code is None or code == 421:
                attempts.is_cut_off = is_refused
                if attempts.refused and not is_refused:
                    raise Stopped(_refusal(attempts)) from stopped
                raise
            is_refused = True
            attempts.refused[mechanism] = stopped.ruling
            if code // 100 == 4 or not left:
                raise Stopped(_refusal(attempts)) from stopped
        else:
            attempts.works = mechanism
            attempts.refused.clear()
            return


def _in_order(offered: frozenset[str], attempts: Attempts) -> list[str]:
    """What is spoken here and offered, without what was refused; what was taken last comes first."""
    spoken = [each for each in _MECHANISMS if each in offered]
    if attempts.refused.keys() >= set(spoken):
        attempts.refused.clear()
    left = [each for each in spoken if each not in attempts.refused]
    return sorted(left, key=lambda each: each != attempts.works)


def _refusal(attempts: Attempts) -> Ruling:
    """What all refusals come to: the one that names the password, if one does."""
    tried = ", ".join(attempts.refused)
    rulings = list(attempts.refused.values())
    attempts.refused.clear()
    ruling = next((each for each in rulings if each.code == 535), rulings[-1])
    said = " ".join(str(part) for part in (ruling.code, ruling.enhanced_code) if part)
    return ruling._replace(reply=f"the login is refused with {said} (tried: {tried})")


def _why_none(offered: frozenset[str]) -> str:
    if not offered:
        return "a login is configured, and the relay does not offer AUTH"
    named = ", ".join(sorted(offered))[:100]
    return f"the relay offers AUTH {named}; spoken here are {', '.join(_MECHANISMS)}"


def _plain(user: bytes, secret: bytes) -> Script[None]:
    """RFC 4616."""
    answer = b64encode(b"\0" + user + b"\0" + secret)
    reply = yield from ask(b"AUTH PLAIN " + answer, Phase.AUTH)
    if reply.code == 334:
        # It has not taken the answer that came with the command.
        reply = yield from ask(answer, Phase.AUTH)
    yield from _must_be_taken(reply)


def _login(user: bytes, secret: bytes) -> Script[None]:
    yield from _challenge(b"AUTH LOGIN")
    yield from _challenge(b64encode(user))
    yield from _must_be_taken((yield from ask(b64encode(secret), Phase.AUTH)))


def _cram_md5(user: bytes, secret: bytes) -> Script[None]:
    """RFC 2195."""
    challenge = yield from _challenge(b"AUTH CRAM-MD5")
    try:
        digest = hmac.new(secret, b64decode("".join(challenge.lines), validate=True), "md5").hexdigest()
    except (binascii.Error, ValueError):
        # No challenge, or a machine without MD5.
        yield from _cancel(challenge)
    else:
        yield from _must_be_taken((yield from ask(b64encode(user + b" " + digest.encode("ascii")), Phase.AUTH)))


def _challenge(line: bytes) -> Script[Reply]:
    reply = yield from ask(line, Phase.AUTH)
    if not reply.intermediate:
        raise Stopped(judge(Phase.AUTH, reply))
    return reply


def _must_be_taken(reply: Reply) -> Script[None]:
    if reply.intermediate:
        yield from _cancel(reply)
    must_be_positive(Phase.AUTH, reply)


def _cancel(reply: Reply) -> Script[None]:
    """Ends an exchange that leads nowhere: the next one can begin.

    Raises:
        Stopped: always, for the reply that it was ended for.
    """
    yield from ask(b"*", Phase.AUTH)
    raise Stopped(judge(Phase.AUTH, reply))


#: In the order in which they are tried: one round trip first; what sends no password, and so needs it kept in plain
#: text at the relay, last.
_MECHANISMS: Final[dict[str, Callable[[bytes, bytes], Script[None]]]] = {
    "PLAIN": _plain,
    "LOGIN": _login,
    "CRAM-MD5": _cram_md5,
}

#: The mechanisms that are spoken.
MECHANISMS: Final = tuple(_MECHANISMS)
