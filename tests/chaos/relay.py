"""A relay that notes when it took what, and misbehaves as it is told."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email import message_from_bytes
from email.policy import SMTP

from actors.ruling import Phase
from tests.relays import Action, Message, ScriptedRelay, accept, close, drip, garbage, hang, reply, reset

#: How each misbehaviour of the plan is done: in which phase, and by which steps.
STEPS: Mapping[str, tuple[Phase, Sequence[Action]]] = {
    "banner 421": (Phase.BANNER, [reply("421 4.3.2 not now"), close()]),
    "banner closed": (Phase.BANNER, [close()]),
    "banner hangs": (Phase.BANNER, [hang()]),
    "EHLO closed": (Phase.EHLO, [close()]),
    "MAIL 451": (Phase.MAIL, [reply("451 4.3.0 later")]),
    "MAIL hangs": (Phase.MAIL, [hang()]),
    "RCPT 450": (Phase.RCPT, [reply("450 4.2.0 busy")]),
    "RCPT 550": (Phase.RCPT, [reply("550 5.7.1 refused")]),
    "RCPT garbage": (Phase.RCPT, [garbage()]),
    "RCPT reset": (Phase.RCPT, [reset()]),
    "DATA 451": (Phase.DATA, [reply("451 4.3.0 later")]),
    "DATA hangs": (Phase.DATA, [hang()]),
    "DATA closed": (Phase.DATA, [close()]),
    "body closed": (Phase.BODY, [close()]),
    "body reset": (Phase.BODY, [reset()]),
    "dot 451": (Phase.DOT, [reply("451 4.3.0 later")]),
    "dot 554": (Phase.DOT, [reply("554 5.7.1 refused")]),
    "dot closed": (Phase.DOT, [close()]),
    "dot reset": (Phase.DOT, [reset()]),
    "dot hangs": (Phase.DOT, [hang()]),
    "dot garbage": (Phase.DOT, [garbage()]),
    "taken, then closed": (Phase.DOT, [accept(), close()]),
    "taken, then reset": (Phase.DOT, [accept(), reset()]),
    "taken, then hangs": (Phase.DOT, [accept(), hang()]),
    "taken, slowly": (Phase.DOT, [accept(), drip("250 2.0.0 taken", 0.03)]),
}


@dataclass(frozen=True, slots=True)
class Taken:
    """A copy that the relay took: for whom, of which email (its subject is its key).

    Attributes:
        at: when, as UNIX time; `moment` the same by the monotonic clock, one for all recipients of a message.
    """

    at: float
    moment: float
    address: str
    key: str
    message_id: str
    content: bytes


class ChaosRelay(ScriptedRelay):
    """Notes when it took what; each misbehaviour happens a few times and is over."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[Taken] = []

    def take(self, message: Message) -> None:
        """A copy is taken."""
        at, moment = time.time(), time.monotonic()
        parsed = message_from_bytes(message.content, policy=SMTP)
        for address in message.recipients:
            self.taken.append(
                Taken(at, moment, address, str(parsed["Subject"]), str(parsed["Message-ID"]), message.content)
            )
        super().take(message)

    def misbehave(self, how: str, times: int) -> None:
        """From the next line of that phase on, that many times."""
        phase, actions = STEPS[how]
        self.on(phase, *actions, times=times)
