"""What the catchers of `duepost up` refuse, and how they fail: known without what runs them."""

import re
from dataclasses import dataclass

_REFUSING_REPLY = re.compile(r"[45]\d\d [^\r\n]+")


class CatcherError(RuntimeError):
    """The mail catcher cannot run; the message says why, in one line."""


@dataclass(frozen=True)
class Refusal:
    """Makes the catcher refuse some recipients, as a difficult relay would.

    Attributes:
        pattern: which recipients: a shell pattern on the whole address in lower case, as `dead*`.
        reply: the reply line to RCPT TO, with a code from 400 to 599.
        times: how often each address is refused before it is accepted; None: always.

    Raises:
        ValueError: the reply refuses nothing, or `times` is below one.
    """

    pattern: str
    reply: str
    times: int | None = None

    def __post_init__(self) -> None:
        if not _REFUSING_REPLY.fullmatch(self.reply):
            raise ValueError(f"a refusal's reply is one line with a code from 400 to 599, not {self.reply!r}")
        if self.times is not None and self.times < 1:
            raise ValueError(f"a refusal happens at least once, not {self.times} times")
