"""What one attempt came to for one recipient: the core's words, whatever the channel.

A channel's verdict table gives rulings; what follows of them is decided without knowing the channel.
"""

from enum import StrEnum
from typing import NamedTuple

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


class Topic(StrEnum):
    """What a reply speaks of. Those up to HEADER are about us: our relay, login, sender, host, and how much we send."""

    #: We may not relay here, or have to log in first.
    LOGIN = "login"
    #: We may not, without a word why: at a recipient's own codes it is about the recipient.
    ACCESS = "access"
    #: The sender address, or the proof that it is ours to use.
    SENDER = "sender"
    #: The name that was given with EHLO.
    HELO = "helo"
    #: Our host or network: blocked, listed, without a name in DNS.
    REPUTATION = "reputation"
    #: How much we may send in an hour, a day or for our money.
    QUOTA = "quota"
    #: A quota, without a word whose: of a mailbox, by a mailbox's codes.
    SOME_QUOTA = "some quota"
    #: How fast we send.
    RATE = "rate"
    #: A header that we add.
    HEADER = "header"
    #: How much the recipient's mailbox gets just now.
    MAILBOX_RATE = "mailbox rate"
    #: The recipient's mailbox has no room.
    MAILBOX_FULL = "mailbox full"
    #: The recipient's own will: who may write to that mailbox.
    RECIPIENT = "recipient"
    #: Links, attachments and the like in the message.
    CONTENT = "content"
    #: The message is too large.
    SIZE = "size"
    #: It is worth another try.
    LATER = "later"
    #: It may be different at another time.
    TIME = "time"
    #: The relay tries whether we come back.
    GREYLISTING = "greylisting"


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
        about: what of ours the relay speaks of, if it does.
    """

    verdict: Verdict
    scope: Scope
    phase: Phase
    code: int | None = None
    enhanced_code: str | None = None
    reply: str = ""
    pace: Pace = Pace.NORMAL
    suppress: bool = False
    about: Topic | None = None
