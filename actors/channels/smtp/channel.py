"""The channel for email: sessions with one relay."""

from collections.abc import Callable
from functools import cached_property

from actors.channels.channel import NoPlace, Permit
from actors.channels.smtp.connecting import Connector
from actors.channels.smtp.relay import Pipelining, Relay, Timeouts
from actors.channels.smtp.route import Route
from actors.channels.smtp.session import Manners, SmtpSession
from actors.ruling import Ruling


class SmtpChannel:
    """Submits emails to one relay. Any thread may call it.

    Args:
        relay: returns the relay; asked when the first session is opened.
        timeouts: how long each step may take.
        permit: asked when the relay waits for content.
        route: what the connections to this relay share.
    """

    def __init__(
        self,
        relay: Callable[[], Relay],
        timeouts: Timeouts,
        *,
        permit: Permit,
        route: Route,
    ) -> None:
        self._asked_relay = relay
        self._timeouts = timeouts
        self._permit = permit
        self._route = route
        self._manners = Manners()

    @property
    def pipelines(self) -> bool:
        """Whether the URL asks for the next email's envelope to go out with a dot."""
        return self._relay.pipelining is Pipelining.AHEAD

    def connect(self) -> SmtpSession | Ruling:
        """Connects, greets and logs in. Blocks.

        Returns:
            a session; or why there is none, in relay scope.

        Raises:
            NoPlace: the relay takes no further connection now.
        """
        if not self._route.take_place():
            raise NoPlace
        try:
            connected = self._connector.connect()
        except BaseException:
            self._route.leave_place(was_open=False)
            raise
        if isinstance(connected, Ruling):
            self._route.leave_place(was_open=False)
            if self._route.is_full(connected):
                raise NoPlace
            return connected
        self._route.opened()
        return SmtpSession(
            connected,
            pipelining=self._relay.pipelining,
            timeouts=self._timeouts,
            permit=self._permit,
            route=self._route,
            manners=self._manners,
        )

    def is_full(self, refusal: Ruling) -> bool:
        """Whether a connection was ended for there being others, which work. May ask the database."""
        if self._route.is_full(refusal):
            return True
        self._route.heard(refusal)
        return False

    @cached_property
    def _relay(self) -> Relay:
        return self._asked_relay()

    @cached_property
    def _connector(self) -> Connector:
        return Connector(self._relay, self._timeouts)
