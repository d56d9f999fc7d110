"""The dialogue's first part: banner, EHLO, TLS and login, until the relay is ready for emails."""

import re
import socket
from base64 import b64encode
from dataclasses import dataclass
from typing import Self

from actors.smtp.dialogue import Script, StartTls, Stopped, ask, demand, must_be_positive, receive
from actors.smtp.relay import Relay, Security
from actors.smtp.replies import Reply
from actors.smtp.verdicts import Phase, Ruling, judge, judge_failure

_DOMAIN = re.compile(r"(?=.{1,255}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Offer:
    """What the relay can do, by its reply to EHLO.

    Attributes:
        pipelining: several commands may be written at once (RFC 2920).
        starttls: TLS can start (RFC 3207).
        eightbitmime: content may have bytes beyond ASCII (RFC 6152).
        size: SIZE may be announced (RFC 1870).
        size_limit: the largest message in bytes, 0 if none is named.
        logins: SASL mechanisms in upper case (RFC 4954).
    """

    pipelining: bool = False
    starttls: bool = False
    eightbitmime: bool = False
    size: bool = False
    size_limit: int = 0
    logins: frozenset[str] = frozenset()

    @classmethod
    def from_reply(cls, reply: Reply) -> Self:
        """Reads the reply to EHLO: a keyword with its parameters on each line after the first."""
        words = [line.upper().replace("AUTH=", "AUTH ").split() for line in reply.lines[1:]]
        offered = {line[0]: line[1:] for line in words if line}
        limit = next(iter(offered.get("SIZE", [])), "")
        return cls(
            pipelining="PIPELINING" in offered,
            starttls="STARTTLS" in offered,
            eightbitmime="8BITMIME" in offered,
            size="SIZE" in offered,
            size_limit=int(limit) if limit.isascii() and limit.isdecimal() else 0,
            logins=frozenset(word for line in words if line and line[0] == "AUTH" for word in line[1:]),
        )


def hello_name() -> str:
    """Gives the name for EHLO without asking DNS, which may hang: the machine's, or an address literal."""
    name = socket.gethostname()
    return name if _DOMAIN.fullmatch(name) else "[127.0.0.1]"


def greet(relay: Relay, name: str) -> Script[Offer | Ruling]:
    """Greets the relay and logs in.

    Args:
        relay: whom the connection is to.
        name: this machine's, for EHLO.

    Returns:
        What the relay offers; or the ruling, always a retry in relay scope, if it does not get that far.
    """
    try:
        return (yield from _greet(relay, name))
    except Stopped as stopped:
        return stopped.ruling


def farewell() -> Script[None]:
    """Says QUIT and hears the answer out; whatever it is."""
    try:
        yield from ask(b"QUIT", Phase.QUIT)
    except Stopped:
        return


def _greet(relay: Relay, name: str) -> Script[Offer]:
    encrypted = relay.security is Security.IMPLICIT
    if encrypted:
        yield StartTls()
    must_be_positive(Phase.BANNER, (yield from receive(Phase.BANNER)))
    offer = yield from _hello(name)
    if not encrypted and (offer.starttls or relay.security is Security.REQUIRED):
        yield from _start_tls(offer)
        encrypted = True
        # What was offered unencrypted may be forged (RFC 3207 section 4.2).
        offer = yield from _hello(name)
    if relay.username is not None and relay.password is not None:
        if not encrypted and not relay.is_loopback:
            raise _refusal(Phase.AUTH, "the relay offers no TLS, and a login is not sent unencrypted")
        yield from _log_in(offer, relay.username, relay.password)
    return offer


def _hello(name: str) -> Script[Offer]:
    reply = yield from ask(f"EHLO {name}".encode("ascii"), Phase.EHLO)
    if reply.positive:
        return Offer.from_reply(reply)
    if reply.code // 100 != 5:
        raise Stopped(judge(Phase.EHLO, reply))
    yield from demand(f"HELO {name}".encode("ascii"), Phase.EHLO)
    return Offer()


def _start_tls(offer: Offer) -> Script[None]:
    if not offer.starttls:
        raise _refusal(Phase.STARTTLS, "TLS is required, and the relay does not offer STARTTLS")
    yield from demand(b"STARTTLS", Phase.STARTTLS)
    yield StartTls()


def _log_in(offer: Offer, username: str, password: str) -> Script[None]:
    user, secret = username.encode("utf-8"), password.encode("utf-8")
    if "PLAIN" in offer.logins:
        yield from demand(b"AUTH PLAIN " + b64encode(b"\0" + user + b"\0" + secret), Phase.AUTH)
    elif "LOGIN" in offer.logins:
        yield from _challenge(b"AUTH LOGIN")
        yield from _challenge(b64encode(user))
        yield from demand(b64encode(secret), Phase.AUTH)
    elif offer.logins:
        raise _refusal(Phase.AUTH, "the relay offers neither AUTH PLAIN nor AUTH LOGIN")
    else:
        raise _refusal(Phase.AUTH, "a login is configured, and the relay does not offer AUTH")


def _challenge(line: bytes) -> Script[None]:
    reply = yield from ask(line, Phase.AUTH)
    if not reply.intermediate:
        raise Stopped(judge(Phase.AUTH, reply))


def _refusal(phase: Phase, why: str) -> Stopped:
    return Stopped(judge_failure(phase, why))
