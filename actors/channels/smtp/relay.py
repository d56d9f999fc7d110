"""Where the relay is, how to talk to it, and how long to wait for it."""

import ipaddress
import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Final, Self
from urllib.parse import SplitResult, unquote, urlsplit


class Security(StrEnum):
    """When TLS starts; by the URL's scheme."""

    OPPORTUNISTIC = "smtp"
    REQUIRED = "smtp+starttls"
    IMPLICIT = "smtps"


class Pipelining(StrEnum):
    """How many commands go out before replies are read, where the relay offers PIPELINING; by the URL's query."""

    #: One command at a time.
    OFF = "off"
    #: The envelope of one email in one write (RFC 2920).
    ON = "on"
    #: The same, and the envelope of the next email with the dot of the one before it. Some relays break on that.
    AHEAD = "ahead"


_DEFAULT_PORTS = {Security.OPPORTUNISTIC: 25, Security.REQUIRED: 587, Security.IMPLICIT: 465}
_SHAPE = "expected smtp://[user:password@]host[:port], smtp+starttls://… or smtps://…"

#: Names of this machine (RFC 6761, and those that systems add).
_LOCAL = {"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"}
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE)


#: Seconds for a reply to QUIT or RSET: nothing hangs on it.
BRIEFLY: Final = 2.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait, in seconds.

    RFC 5321 section 4.5.3.2 asks for at least five minutes for most commands, three for a block of the
    message, and ten after the dot: there a short one makes duplicates, for the relay may have taken it.

    Attributes:
        connect: for the connection to each address of the relay, and for the TLS handshake.
        command: for the banner, and for the whole reply to each command.
        block: for each block of the message to be taken.
        dot: for the whole reply to the final dot.
    """

    connect: float = 30.0
    command: float = 300.0
    block: float = 180.0
    dot: float = 600.0

    @property
    def brief(self) -> Self:
        """The same where nothing hangs on the reply to a command."""
        return replace(self, command=min(BRIEFLY, self.command))


@dataclass(frozen=True, slots=True)
class Relay:
    """The SMTP server to submit to.

    Attributes:
        host: a name or an IP address, IPv6 without brackets.
        port: the TCP port.
        security: when TLS starts.
        username: whom to log in as, None for no login.
        password: never shown.
        hello: the name for EHLO; None for this machine's, or its address.
        certificates: a file of certificates that are trusted besides the system's.
        pipelining: how many commands may go out before replies are read.
    """

    host: str
    port: int
    security: Security = Security.OPPORTUNISTIC
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    pipelining: Pipelining = Pipelining.ON
    hello: str | None = None
    certificates: Path | None = None

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Reads a relay's URL.

        Args:
            url: `smtp://` (STARTTLS when offered), `smtp+starttls://` (required) or `smtps://` (TLS from the
                start), then `[user:password@]host[:port]`, user and password percent-encoded, then perhaps
                `?pipelining=off`, `on` or `ahead`.

        Raises:
            ValueError: it is none; the message is one line and never shows the password.
        """
        parts = _split(url)
        if parts.scheme not in list(Security):
            raise _bad("its scheme is not known")
        if parts.path not in {"", "/"} or parts.fragment:
            raise _bad("something follows the port (in a password, percent-encode / ? # and @)")
        pipelining = _pipelining(parts)
        security = Security(parts.scheme)
        username, password = _credentials(parts)
        return cls(_host(parts), _port(parts, _DEFAULT_PORTS[security]), security, username, password, pipelining)

    @property
    def target(self) -> str:
        """Where it is: `host:port`, in lower case and without a login."""
        host = self.host.lower().removesuffix(".")
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this very machine: there even a password may go unencrypted."""
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            name = self.host.lower().removesuffix(".")
            return name in _LOCAL or name.endswith(".localhost")
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback

    @property
    def has_login(self) -> bool:
        """Whether somebody is to log in."""
        return self.username is not None and self.password is not None

    @property
    def is_checked(self) -> bool:
        """Whether the certificate has to be trusted, and for this host.

        TLS that nobody asked for is better than plain text, whoever is at the other end (RFC 7435); a password is not
        for just anybody.
        """
        return self.security is not Security.OPPORTUNISTIC or (self.has_login and not self.is_loopback)


def _bad(why: str) -> ValueError:
    return ValueError(f"bad relay URL: {why}; {_SHAPE}")


def _split(url: str) -> SplitResult:
    if not url.isascii() or not url.isprintable() or " " in url:
        raise _bad("it has a space, a control character or one that is not ASCII")
    try:
        return urlsplit(url)
    except ValueError:
        # urllib's message may quote the password.
        raise _bad("it cannot be read") from None


def _pipelining(parts: SplitResult) -> Pipelining:
    if not parts.query:
        return Pipelining.ON
    key, _, value = parts.query.partition("=")
    if key != "pipelining" or value not in list(Pipelining):
        # It is not quoted: it may be the end of a password.
        raise _bad(
            "only pipelining=off, pipelining=on or pipelining=ahead may follow a ? "
            "(in a password, percent-encode / ? # and @)"
        )
    return Pipelining(value)


def _host(parts: SplitResult) -> str:
    host = parts.hostname
    if not host:
        raise _bad("it names no host")
    if _is_address(host) or all(_LABEL.fullmatch(label) for label in host.removesuffix(".").split(".")):
        return host
    raise _bad("its host is neither a name nor an IP address")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _port(parts: SplitResult, default: int) -> int:
    try:
        port = parts.port
    except ValueError:
        raise _bad("its port is not a number from 1 to 65535") from None
    if port == 0:
        raise _bad("its port is not a number from 1 to 65535")
    return port or default


def _credentials(parts: SplitResult) -> tuple[str | None, str | None]:
    if parts.username is None:
        return None, None
    if not parts.username or not parts.password:
        raise _bad("a user needs a password, and a password a user")
    try:
        username, password = (
            unquote(parts.username, errors="strict"),
            unquote(parts.password, errors="strict"),
        )
    except UnicodeDecodeError:
        raise _bad("user and password must be UTF-8, percent-encoded") from None
    if "\0" in username + password:
        raise _bad("user and password must not have a NUL")
    return username, password
