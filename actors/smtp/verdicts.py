"""What each outcome of an SMTP dialogue means: the one place that decides what a failure means."""

from dataclasses import dataclass
from enum import StrEnum

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


@dataclass(frozen=True, slots=True)
class Ruling:
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
