"""What one attempt came to for one recipient: the core's words, whatever the channel.

A channel's verdict table gives rulings; what follows of them is decided without knowing the channel.
"""

import re
from enum import Enum, Flag, StrEnum, auto
from typing import Final, NamedTuple

from models.words import Verdict

#: Characters of a ruling's text that are kept for people.
MAX_TEXT: Final = 500

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def one_line(text: str) -> str:
    """Makes text fit for one line of a table: control characters replaced, at most `MAX_TEXT` characters."""
    clean = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    return clean if len(clean) <= MAX_TEXT else clean[: MAX_TEXT - 1] + "…"


class Stage(Enum):
    """How far an attempt had come, in words that hold for every channel."""

    #: Nothing was said to the route: the item is rendered, its addresses are looked at.
    PREPARE = auto()
    #: The route was spoken to, and the item was not named yet: a failure says nothing about it.
    CONNECT = auto()
    #: The item was named; an answer may be about us as well as about the item.
    NAME = auto()
    #: An answer is about this very item.
    ITEM = auto()


class Phase(StrEnum):
    """How far an attempt had come, over SMTP or HTTP. An exception does not tell; the dialogue must know."""

    GUARD = "guard"
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
    ENDPOINT = "endpoint"
    RESOLVE = "resolve"
    TLS = "tls"
    REQUEST = "request"
    RESPONSE = "response"

    @property
    def stage(self) -> Stage:
        """The same in words that hold for every channel."""
        return _STAGES[self]


_STAGES: Final = {
    Phase.GUARD: Stage.PREPARE,
    Phase.RENDER: Stage.PREPARE,
    Phase.ADDRESS: Stage.PREPARE,
    Phase.CONNECT: Stage.CONNECT,
    Phase.BANNER: Stage.CONNECT,
    Phase.EHLO: Stage.CONNECT,
    Phase.STARTTLS: Stage.CONNECT,
    Phase.AUTH: Stage.CONNECT,
    Phase.MAIL: Stage.NAME,
    Phase.RCPT: Stage.ITEM,
    Phase.DATA: Stage.ITEM,
    Phase.BODY: Stage.ITEM,
    Phase.DOT: Stage.ITEM,
    Phase.QUIT: Stage.ITEM,
    # An endpoint's URL and secrets are looked at: nothing of that is about an item.
    Phase.ENDPOINT: Stage.CONNECT,
    Phase.RESOLVE: Stage.CONNECT,
    Phase.TLS: Stage.CONNECT,
    Phase.REQUEST: Stage.NAME,
    Phase.RESPONSE: Stage.ITEM,
}


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


class Limit(Flag):
    """What a route says, or seems to say, about how much of us it takes. None of it is about the item."""

    NONE = 0
    #: It takes no further session now, and says so.
    SESSIONS = auto()
    #: It may be that, as it refused a session without a reason that is about anything else.
    PERHAPS_SESSIONS = auto()
    #: This session has had its share: a fresh one takes the item.
    SESSION_USED_UP = auto()
    #: We send too much in too short a time, and it says so.
    RATE = auto()
    #: It may be that, where it is said to several items in a row.
    PERHAPS_RATE = auto()


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
        code: the reply code of SMTP, or the status code of HTTP; None where there was no reply.
        enhanced_code: the enhanced status code (RFC 3463) such as `5.1.1`, None where there was none.
        reply: the relay's text, or what happened instead, in one line. May hold an address: not for logs.
        pace: how soon a retry is worth it.
        suppress: the address is dead: later emails to it are not attempted.
        about: what of ours the relay speaks of, if it does.
        limits: what it says about how much of us it takes.
        retry_after: seconds for which the whole route asks to be left alone; None where it asks for nothing.
        is_gone: the route says that it is no more, and will not be: it is to be disabled.
        wait: seconds until it is this recipient's turn, where nothing has failed; None where something has.
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
    limits: Limit = Limit.NONE
    retry_after: float | None = None
    is_gone: bool = False
    wait: float | None = None

    @property
    def is_answer(self) -> bool:
        """Whether the route has answered about this very item: it works."""
        return self.phase.stage is Stage.ITEM and (self.code is not None or self.verdict is Verdict.SENT)
