"""What the SMTP dialogue is written in: a state machine that knows replies and rulings, and no socket.

`greeting.py` and `transaction.py` are its two parts. Each is a script: it yields what is to be done and is
sent the reply to each `Receive`. When an action fails, its driver throws `Stopped` in with the ruling for it.
"""

from collections.abc import Callable, Generator
from typing import Final, NamedTuple, TypeAlias, TypeVar

from actors.channels.channel import Dialogue
from actors.channels.smtp.replies import Reply
from actors.channels.smtp.verdicts import judge
from actors.ruling import Phase, Ruling

#: For a reply: as many seconds as its phase allows.
NO_OTHER_LIMIT: Final = float("inf")


class Send(NamedTuple):
    """Write these bytes. In `Phase.DOT` they are the end of data: once one is out, nobody knows any more."""

    data: bytes
    phase: Phase


class Receive(NamedTuple):
    """Wait for one whole reply: for as long as the phase allows, and no longer than this (seconds)."""

    phase: Phase
    most: float = NO_OTHER_LIMIT


class StartTls(NamedTuple):
    """Turn the connection into a TLS one, unless something that came unencrypted is left over.

    `is_checked`: the certificate has to be trusted, and the relay's.
    """

    phase: Phase = Phase.STARTTLS
    is_checked: bool = True


class StartContent(NamedTuple):
    """The relay waits for content: go on once this worker may start some; what comes next goes out at once."""

    phase: Phase = Phase.BODY


T = TypeVar("T")
Action: TypeAlias = Send | Receive | StartTls | StartContent

#: A part of the dialogue: yields actions, is sent the reply to each `Receive` (else None), ends with a T.
Script: TypeAlias = Generator[Action, Reply | None, T]


class Stopped(Exception):
    """The dialogue cannot go on; thrown into a script by its driver, or raised within it.

    Attributes:
        ruling: what that means for whoever is not decided yet.
        hung_up: the connection was found closed or reset.
    """

    def __init__(self, ruling: Ruling, *, hung_up: bool = False) -> None:
        super().__init__(ruling.phase.value)
        self.ruling = ruling
        self.hung_up = hung_up


def played(script: Script[T], do: Callable[[Action], Dialogue[Reply | None]]) -> Dialogue[T]:
    """Does what a script asks for, until it ends; what fails is the script's to judge."""
    try:
        action = next(script)
        while True:
            try:
                reply = yield from do(action)
            except Exception as error:  # noqa: BLE001 - it is the script's
                action = script.throw(error)
            else:
                action = script.send(reply)
    except StopIteration as end:
        result: T = end.value
        return result


def receive(phase: Phase, most: float = NO_OTHER_LIMIT) -> Script[Reply]:
    """Waits for a reply, for no longer than this (seconds) where the phase allows more."""
    reply = yield Receive(phase, most)
    if reply is None:
        raise TypeError("a Receive is answered with a reply")
    return reply


def ask(command: bytes, phase: Phase) -> Script[Reply]:
    """Sends a command (without its line end) and waits for the reply."""
    yield Send(command + b"\r\n", phase)
    return (yield from receive(phase))


def demand(command: bytes, phase: Phase) -> Script[Reply]:
    """Sends a command that only a 2xx lets pass."""
    return must_be_positive(phase, (yield from ask(command, phase)))


def must_be_positive(phase: Phase, reply: Reply) -> Reply:
    """Gives the reply back if it is 2xx.

    Raises:
        Stopped: it is another.
    """
    if not reply.positive:
        raise Stopped(judge(phase, reply))
    return reply
