"""Hands one request after the other to servers, whichever they are: over a kept connection, or a new one."""

import ssl
import time

from actors.channels.channel import Dialogue, Event, Permit, Rulings, Wait
from actors.channels.http.broken import Broken
from actors.channels.http.connecting import connect
from actors.channels.http.connection import Connection, KeptConnections
from actors.channels.http.exchange import Exchange
from actors.channels.http.request import HttpPayload
from actors.channels.http.verdicts import judge_failure
from actors.channels.starting import wait_for_permit
from actors.channels.stream import Stream
from actors.ruling import Phase, Ruling


class HttpSession:
    """A slot: of one delivery at a time, to any server. Between deliveries it has no connection of its own.

    What it is waited on changes: before it closes a socket, or lets go of it, it yields `Event.LEAVE`.

    Args:
        kept: idle connections, which it shares with others.
        context: whom to trust.
        permit: asked before a request's first byte.
    """

    #: No server refuses a slot.
    refusal: Ruling | None = None

    def __init__(self, kept: KeptConnections, context: ssl.SSLContext, permit: Permit) -> None:
        self._kept = kept
        self._context = context
        self._permit = permit
        self._stream: Stream | None = None
        self._is_open = True
        self._used_at = time.monotonic()

    def deliver(self, payload: HttpPayload) -> Dialogue[Rulings | None]:
        """Makes the request; the answer, or what happened instead, is the ruling for the endpoint."""
        if not self._is_open:
            raise ValueError("the session has ended")
        deadline = time.monotonic() + payload.deadline
        try:
            ruling = yield from self._deliver(payload, deadline)
        except BaseException:
            # A worker that is stopped here leaves the server in the middle of a request.
            self._close_stream()
            raise
        self._used_at = time.monotonic()
        return {payload.endpoint: ruling}

    def pipeline(self, payload: HttpPayload) -> bool:  # noqa: ARG002 - the seam's
        """Nothing goes out behind a request: where the answer to it is lost nobody knows of either."""
        return False

    def withdraw(self) -> None:
        """Nothing was pipelined."""

    @property
    def is_open(self) -> bool:
        """Until it is closed."""
        return self._is_open

    @property
    def is_ready(self) -> bool:
        """As long as it is open."""
        return self._is_open

    @property
    def idle_since(self) -> float:
        """When the last delivery ended, or it was opened, by the monotonic clock."""
        return self._used_at

    def fileno(self) -> int:
        """What a selector waits for; -1 between deliveries."""
        return -1 if self._stream is None else self._stream.fileno()

    def close(self) -> None:
        """Ends it; kept connections are the channel's."""
        self.abandon()

    def abandon(self) -> None:
        """Ends it, in the middle of a request."""
        self._is_open = False
        self._close_stream()

    def _deliver(self, payload: HttpPayload, deadline: float) -> Dialogue[Ruling]:
        try:
            kept = self._kept.take(payload.target)
            ruling = None if kept is None else (yield from self._ask_again(kept, payload, deadline))
            if ruling is None:
                stream = yield from connect(payload, self._context, deadline, self._hold, self._drop)
                ruling = yield from self._ask(Connection(stream, payload.target), payload, deadline)
        except Broken as broken:
            yield from self._drop()
            return judge_failure(broken.phase, broken.what)
        return ruling

    def _ask_again(self, kept: Connection, payload: HttpPayload, deadline: float) -> Dialogue[Ruling | None]:
        """Has one exchange over a kept connection; None where that was closed before all of the request went out."""
        try:
            return (yield from self._ask(kept, payload, deadline))
        except Broken as broken:
            if broken.phase is not Phase.REQUEST or time.monotonic() >= deadline:
                raise
            yield from self._drop()
            return None

    def _ask(self, connection: Connection, payload: HttpPayload, deadline: float) -> Dialogue[Ruling]:
        """Has one exchange over a connection."""
        self._hold(connection.stream)
        why_not = yield from wait_for_permit(self._permit, lambda: connection.is_quiet, "the server")
        if why_not is not None:
            raise Broken(Phase.REQUEST, why_not)
        exchange = Exchange(connection, payload.request, deadline, payload.deadline)
        answer = yield from exchange.run()
        yield from self._leave()
        if exchange.can_be_repeated:
            connection.rest(next(iter(answer.values("keep-alive")), None))
            self._kept.put(connection)
        else:
            connection.stream.close()
        return payload.judge(answer)

    def _hold(self, stream: Stream) -> None:
        self._stream = stream

    def _leave(self) -> Dialogue[None]:
        """Lets go of the connection, once nothing waits on it."""
        if self._stream is not None:
            yield Wait(Event.LEAVE, 0.0)
            self._stream = None

    def _drop(self) -> Dialogue[None]:
        """Closes the connection, once nothing waits on it."""
        stream = self._stream
        yield from self._leave()
        if stream is not None:
            stream.close()

    def _close_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
