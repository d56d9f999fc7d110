"""Goes through an email with a relay as far as nothing is sent: MAIL, RCPT, RSET. Blocks."""

from collections.abc import Sequence
from typing import NamedTuple

from actors.channels.smtp.connecting import Connector, part, talk
from actors.channels.smtp.dialogue import Script, Stopped, ask
from actors.channels.smtp.relay import Relay, Timeouts
from actors.channels.smtp.replies import Reply
from actors.channels.smtp.verdicts import judge
from actors.ruling import Phase, Ruling, Scope


class Inspection(NamedTuple):
    """How a relay took a rehearsal.

    Attributes:
        refusal: why nothing can be sent; None where something can.
        encryption: the version of TLS; None for plain text.
        is_checked: whether the certificate was checked.
        answers: for each recipient what the relay said against it; None where it took it.
    """

    refusal: Ruling | None
    encryption: str | None = None
    is_checked: bool = False
    answers: tuple[Ruling | None, ...] = ()


def inspect(relay: Relay, timeouts: Timeouts, sender: str | None = None, recipients: Sequence[str] = ()) -> Inspection:
    """Connects, greets, logs in, names a sender and recipients if there is one, forgets them, and quits.

    Args:
        relay: whom to ask.
        timeouts: how long each step may take.
        sender: the return path.
        recipients: to be named with it.
    """
    connected = Connector(relay, timeouts).connect()
    if isinstance(connected, Ruling):
        return Inspection(connected)
    wire = connected.wire
    try:
        encryption = wire.encryption
        answers = talk(wire, rehearse(sender, recipients)) if sender is not None else ()
        part(wire)
    except Stopped as stopped:
        return Inspection(stopped.ruling)
    finally:
        wire.close()
    return Inspection(verdict_on(answers), encryption, relay.is_checked, answers)


def rehearse(sender: str, recipients: Sequence[str]) -> Script[tuple[Ruling | None, ...]]:
    """Names a sender and recipients to the relay, and forgets them again.

    Returns:
        for each recipient what the relay said against it; None where it took it.

    Raises:
        Stopped: the sender is refused, or the connection is lost.
    """
    reply = yield from ask(f"MAIL FROM:<{sender}>".encode("ascii"), Phase.MAIL)
    if not reply.positive:
        raise Stopped(judge(Phase.MAIL, reply))
    answers: list[Ruling | None] = []
    for recipient in recipients:
        reply = yield from ask(f"RCPT TO:<{recipient}>".encode("ascii"), Phase.RCPT)
        answers.append(_judged(reply, recipient))
    yield from ask(b"RSET", Phase.QUIT)
    return tuple(answers)


def _judged(reply: Reply, recipient: str) -> Ruling | None:
    ruling = None if reply.positive else judge(Phase.RCPT, reply, (recipient,))
    if reply.code == 421:
        raise Stopped(judge(Phase.RCPT, reply, (recipient,)))
    return ruling


def verdict_on(answers: Sequence[Ruling | None]) -> Ruling | None:
    """Why no email can be sent, by what the relay said against each recipient of a rehearsal: all of it is about us.

    A recipient that it does not know is no fault of the relay's, and one that it takes shows that it takes emails.
    """
    if not answers or None in answers:
        return None
    return next((ruling for ruling in answers if ruling is not None and ruling.scope is Scope.RELAY), None)
