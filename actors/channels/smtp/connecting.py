"""Connects to a relay, greets it and logs in. Blocks, and so runs in the pool."""

import ssl
from dataclasses import dataclass
from typing import TypeVar

from actors.channels.channel import Dialogue, converse
from actors.channels.smtp.dialogue import Action, Receive, Script, Send, StartTls, Stopped, played
from actors.channels.smtp.greeting import Offer, farewell, greet, hello_name
from actors.channels.smtp.login import Attempts, Logins
from actors.channels.smtp.relay import Relay, Timeouts
from actors.channels.smtp.replies import Reply
from actors.channels.smtp.wire import Wire
from actors.channels.tls import checking, unchecked
from actors.ruling import Ruling

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection to a relay that waits for emails.

    Attributes:
        wire: it.
        offer: what the relay can do.
    """

    wire: Wire
    offer: Offer


class Connector:
    """Makes connections to one relay. Any thread may call it.

    Args:
        relay: where.
        timeouts: how long each step may take.
    """

    def __init__(self, relay: Relay, timeouts: Timeouts) -> None:
        self._relay = relay
        self._timeouts = timeouts
        self._checking: ssl.SSLContext | None = None
        #: What all that log in to the relay share in this process.
        self._logins = Logins()

    def connect(self) -> Connected | Ruling:
        """A connection that is greeted and logged in, or why there is none, in relay scope.

        A relay that hangs up on a login that it refuses gets the next mechanism over a fresh one.
        """
        attempts = Attempts(self._logins)
        while True:
            try:
                wire = Wire(self._relay, self._timeouts)
            except Stopped as stopped:
                return stopped.ruling
            attempts.is_cut_off = False
            try:
                offer = self._greet(wire, attempts)
            except BaseException:
                wire.close()
                raise
            if isinstance(offer, Offer):
                return Connected(wire, offer)
            wire.close()
            if not attempts.is_cut_off:
                return offer

    def _greet(self, wire: Wire, attempts: Attempts) -> Offer | Ruling:
        script = greet(self._relay, hello_name(self._relay, wire.own_address), attempts)

        def do(action: Action) -> Dialogue[Reply | None]:
            if isinstance(action, StartTls):
                return wire.start_tls(self._context(is_checked=action.is_checked), action.phase)
            return spoken(wire, action)

        return converse(played(script, do), wire.fileno)

    def _context(self, *, is_checked: bool) -> ssl.SSLContext:
        if not is_checked:
            return unchecked()
        if self._checking is None:
            self._checking = checking(self._relay.certificates)
        return self._checking


def spoken(wire: Wire, action: Action) -> Dialogue[Reply | None]:
    """Does what a script asks for over a wire: writes, or waits for a reply."""
    if isinstance(action, Receive):
        return wire.receive(action.phase, action.most)
    if isinstance(action, Send):
        return wire.send(action.data, action.phase)
    raise TypeError(f"{type(action).__name__} has no place here")


def talk(wire: Wire, script: Script[T]) -> T:
    """Speaks over a wire in the calling thread, which waits."""
    return converse(played(script, lambda action: spoken(wire, action)), wire.fileno)


def part(wire: Wire) -> None:
    """Takes leave of the relay, if it waits for a command. Blocks for no more than a moment."""
    if wire.is_quiet():
        wire.timeouts = wire.timeouts.brief
        talk(wire, farewell())
