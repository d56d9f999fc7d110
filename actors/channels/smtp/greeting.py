"""The dialogue's first part: banner, EHLO, TLS and login, until the relay is ready for emails."""

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Self

from actors.channels.smtp.dialogue import Script, StartTls, Stopped, ask, demand, must_be_positive, receive
from actors.channels.smtp.login import MECHANISMS, Attempts, log_in
from actors.channels.smtp.relay import Relay, Security
from actors.channels.smtp.replies import Reply
from actors.channels.smtp.verdicts import judge, judge_failure
from actors.ruling import Phase, Ruling

_NAME = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"

#: A name of letters, digits and hyphens, with a dot or without.
DOMAIN = re.compile(rf"(?=.{{1,255}}$){_NAME}(?:\.{_NAME})*", re.IGNORECASE)

#: What OpenSSL says where something answers that is not TLS.
_NOT_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "HTTP_REQUEST")


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
        smtputf8: addresses and headers may have text beyond ASCII (RFC 6531), which is content with such bytes.
    """

    pipelining: bool = False
    starttls: bool = False
    eightbitmime: bool = False
    size: bool = False
    size_limit: int = 0
    logins: frozenset[str] = frozenset()
    smtputf8: bool = False

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
            # RFC 6531 section 3.1: 8BITMIME comes with it.
            smtputf8={"SMTPUTF8", "8BITMIME"} <= offered.keys(),
        )


def hello_name(relay: Relay, own_address: str) -> str:
    """The name for EHLO, without asking DNS, which may hang (RFC 5321 section 4.1.4).

    Args:
        relay: whom it is for; its setting comes first.
        own_address: this machine's, for where it has no full name.
    """
    name = relay.hello or socket.gethostname()
    if relay.hello or (DOMAIN.fullmatch(name) and "." in name):
        return name
    return f"[IPv6:{own_address}]" if ":" in own_address else f"[{own_address}]"


def is_hello_name(name: str) -> bool:
    """Whether it is a domain, or an address in brackets such as `[192.0.2.1]` or `[IPv6:2001:db8::1]` (RFC 5321)."""
    literal = re.fullmatch(r"\[(IPv6:)?([0-9a-f.:]+)\]", name, re.IGNORECASE)
    if literal is None:
        return DOMAIN.fullmatch(name) is not None and not re.fullmatch(r"[\d.]+", name)
    try:
        return (ipaddress.ip_address(literal[2]).version == 6) is (literal[1] is not None)
    except ValueError:
        return False


def greet(relay: Relay, name: str, attempts: Attempts | None = None) -> Script[Offer | Ruling]:
    """Greets the relay and logs in.

    Args:
        relay: whom the connection is to.
        name: this machine's, for EHLO.
        attempts: how its login goes; with what is known of logins to this relay.

    Returns:
        What the relay offers; or the ruling, always a retry in relay scope, if it does not get that far.
    """
    try:
        return (yield from _greet(relay, name, attempts or Attempts()))
    except Stopped as stopped:
        return stopped.ruling


def farewell() -> Script[None]:
    """Says QUIT and hears the answer out; whatever it is."""
    try:
        yield from ask(b"QUIT", Phase.QUIT)
    except Stopped:
        return


def _greet(relay: Relay, name: str, attempts: Attempts) -> Script[Offer]:
    encrypted = relay.security is Security.IMPLICIT
    if encrypted:
        yield from _encrypt()
    must_be_positive(Phase.BANNER, (yield from _banner(encrypted=encrypted)))
    offer = yield from _hello(name)
    if not encrypted and _wants_tls(relay, offer):
        yield from _start_tls(offer, is_checked=relay.is_checked)
        encrypted = True
        # What was offered unencrypted may be forged (RFC 3207 section 4.2).
        offer = yield from _hello(name)
    if relay.username is not None and relay.password is not None:
        if not encrypted and not relay.is_loopback:
            raise _refusal(Phase.AUTH, "the relay offers no TLS, and a login is not sent unencrypted")
        yield from log_in(offer.logins, relay.username, relay.password, attempts)
    return offer


def _encrypt() -> Script[None]:
    """TLS from the start."""
    try:
        yield StartTls(Phase.CONNECT)
    except Stopped as stopped:
        if any(word in stopped.ruling.reply for word in _NOT_TLS):
            raise _hinted(
                stopped, "does this port speak TLS from the start? else smtp+starttls:// or smtp://"
            ) from None
        raise


def _banner(*, encrypted: bool) -> Script[Reply]:
    try:
        return (yield from receive(Phase.BANNER))
    except Stopped as stopped:
        if encrypted or stopped.hung_up:
            raise
        raise _hinted(stopped, "no banner: does this port speak TLS from the start? then smtps://") from None


def _hinted(stopped: Stopped, hint: str) -> Stopped:
    ruling = stopped.ruling
    return Stopped(ruling._replace(reply=f"{ruling.reply} ({hint})"), hung_up=stopped.hung_up)


def _wants_tls(relay: Relay, offer: Offer) -> bool:
    """Whether TLS is to start now.

    To this machine it is not unless asked for: nobody is in between, and packages set up certificates there that nobody
    vouches for. But for a login that is only taken with TLS.
    """
    if relay.security is Security.OPPORTUNISTIC and relay.is_loopback:
        return offer.starttls and relay.has_login and offer.logins.isdisjoint(MECHANISMS)
    return offer.starttls or relay.security is Security.REQUIRED


def _hello(name: str) -> Script[Offer]:
    reply = yield from ask(f"EHLO {name}".encode("ascii"), Phase.EHLO)
    if reply.positive:
        return Offer.from_reply(reply)
    if reply.code // 100 != 5:
        raise Stopped(judge(Phase.EHLO, reply))
    yield from demand(f"HELO {name}".encode("ascii"), Phase.EHLO)
    return Offer()


def _start_tls(offer: Offer, *, is_checked: bool) -> Script[None]:
    if not offer.starttls:
        raise _refusal(Phase.STARTTLS, "TLS is required, and the relay does not offer STARTTLS")
    yield from demand(b"STARTTLS", Phase.STARTTLS)
    yield StartTls(is_checked=is_checked)


def _refusal(phase: Phase, why: str) -> Stopped:
    return Stopped(judge_failure(phase, why))
