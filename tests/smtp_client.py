"""A client for tests: it delivers over one session after the other, as a dispatcher with a single slot does."""

from collections.abc import Callable

from actors.channels.channel import NoPlace, Permit, Rulings, converse
from actors.channels.smtp.channel import SmtpChannel
from actors.channels.smtp.envelope import Envelope
from actors.channels.smtp.relay import Relay, Timeouts
from actors.channels.smtp.route import Route
from actors.channels.smtp.session import SmtpSession
from actors.delivery.event_loop import EventLoop, Slot
from actors.ruling import Ruling


class AnyTime:
    """Content may start whenever `may_start` says so; nobody waits for it."""

    def __init__(self, may_start: Callable[[], bool] = lambda: True) -> None:
        self.is_given = may_start

    def may_come(self) -> bool:
        """It does not."""
        return False


class NoRoute:
    """Nothing is shared: a connection of its own, for as long as it lasts."""

    def __init__(self) -> None:
        self._goes_ahead = True

    def take_place(self) -> bool:
        """Always."""
        return True

    def leave_place(self, *, was_open: bool) -> None:
        """Nothing."""

    def opened(self) -> None:
        """Nothing."""

    def is_full(self, _refusal: Ruling) -> bool:
        """Never: there are no others."""
        return False

    def heard(self, _ruling: Ruling) -> None:
        """Nothing."""

    @property
    def goes_ahead(self) -> bool:
        """Until it was stopped."""
        return self._goes_ahead

    def stop_going_ahead(self, _why: str) -> None:
        """For this connection."""
        self._goes_ahead = False


def wait_for(session: SmtpSession, envelope: Envelope) -> Rulings | None:
    """Delivers in this thread."""
    return converse(session.deliver(envelope), session.fileno)


def drive(session: SmtpSession, envelope: Envelope) -> Rulings | None:
    """Delivers over an event loop."""
    loop: EventLoop[Envelope] = EventLoop()
    slot = Slot(session)
    found: list[tuple[Rulings | None, BaseException | None]] = []
    loop.drive(slot, session.deliver(envelope), lambda rulings, failure: found.append((rulings, failure)))
    while loop:
        loop.wait(60)
    loop.forget(slot)
    [(rulings, failure)] = found
    if failure is not None:
        raise failure
    return rulings


Deliver = Callable[[SmtpSession, Envelope], Rulings | None]


class ChannelClient:
    """Opens a session when it needs one, keeps it between emails, and opens another one when that takes no more."""

    def __init__(self, channel: SmtpChannel, deliver: Deliver = wait_for) -> None:
        self.channel = channel
        self.session: SmtpSession | None = None
        #: How many emails a session has had behind another one.
        self.pipelined = 0
        self._deliver = deliver
        self._next: Envelope | None = None

    def deliver(self, envelope: Envelope, following: Envelope | None = None) -> dict[str, Ruling]:
        """Delivers one email, and offers the next one to be pipelined behind it; returns a ruling for each recipient.

        Raises:
            NoPlace: the relay takes no further session.
        """
        for _ in range(2):
            session = self._session_for(envelope)
            if isinstance(session, Ruling):
                return dict.fromkeys(envelope.recipients, session)
            self._next = following if following is not None and session.pipeline(following) else None
            self.pipelined += self._next is not None
            rulings = self._deliver(session, envelope)
            if session.refusal is not None and self.channel.is_full(session.refusal):
                raise NoPlace
            if rulings is not None:
                return dict(rulings)
        raise AssertionError("nothing was said about it, twice")

    def close(self) -> None:
        """Ends its session."""
        if self.session is not None:
            self.session.close()

    def _session_for(self, envelope: Envelope) -> SmtpSession | Ruling:
        session = self.session
        is_next = session is not None and session.is_open and self._next is envelope
        if session is not None and (is_next or session.is_ready):
            return session
        self.close()
        found = self.channel.connect()
        self.session = None if isinstance(found, Ruling) else found
        return found


class Client(ChannelClient):
    """The same with a channel of its own to a relay."""

    def __init__(
        self,
        relay: Relay,
        timeouts: Timeouts = Timeouts(),  # noqa: B008 (frozen)
        *,
        permit: Permit | None = None,
        route: Route | None = None,
        deliver: Deliver = wait_for,
    ) -> None:
        channel = SmtpChannel(lambda: relay, timeouts, permit=permit or AnyTime(), route=route or NoRoute())
        super().__init__(channel, deliver)
