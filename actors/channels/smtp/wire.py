"""The socket under the dialogue. It never waits itself: it yields what it waits for, never without a limit."""

import socket
import ssl
import time
from ipaddress import ip_address
from typing import Final

from actors.channels.channel import Dialogue
from actors.channels.failures import describe_failure
from actors.channels.smtp.dialogue import NO_OTHER_LIMIT, Stopped
from actors.channels.smtp.relay import Relay, Timeouts
from actors.channels.smtp.replies import MalformedReply, Reply, ReplyParser
from actors.channels.smtp.secrets import hider
from actors.channels.smtp.verdicts import judge_failure
from actors.channels.stream import Stream
from actors.ruling import Phase

#: Bytes that share one `Timeouts.block`.
BLOCK: Final = 64 * 1024

#: What a wire may fail of.
FAILURES: Final = (OSError, MalformedReply, UnicodeError)

#: Linux's word for "there is more to come"; elsewhere a packet more is sent.
_MORE: Final = getattr(socket, "MSG_MORE", 0)


class Wire:
    """One connection to a relay; every failure of it is a `Stopped` with the ruling for the phase.

    Making it blocks, until it is connected; nothing else does.

    Args:
        relay: where to connect to, at once.
        timeouts: how long each step may take; may be changed between steps.

    Raises:
        Stopped: there is no connection.
    """

    def __init__(self, relay: Relay, timeouts: Timeouts) -> None:
        self._relay = relay
        self.timeouts = timeouts
        self._parser = ReplyParser(hider(relay.username, relay.password))
        try:
            self._stream = Stream(_connect(relay, timeouts.connect))
        except FAILURES as failure:
            raise _stopped(Phase.CONNECT, failure, timeouts.connect) from failure

    def send(self, data: bytes, phase: Phase) -> Dialogue[None]:
        """Writes bytes; each `BLOCK` of them has the phase's limit.

        Raises:
            Stopped: they may not have gone out; before any of them does, if the relay spoke out of turn.
        """
        self._expect_silence(phase)
        limit = self.limit_to_send(phase)
        try:
            for start in range(0, len(data), BLOCK):
                left, _ = self._stream.send_now(memoryview(data)[start : start + BLOCK], self._flags(phase))
                if left:
                    yield from self._stream.send_rest(left, time.monotonic() + limit, self._flags(phase))
        except FAILURES as failure:
            raise _stopped(phase, failure, limit) from failure

    def receive(self, phase: Phase, most: float = NO_OTHER_LIMIT) -> Dialogue[Reply]:
        """Waits for one whole reply: for as long as the phase allows, and no longer than `most` seconds.

        Raises:
            Stopped: it did not come in time, not whole, or it is none.
        """
        limit = self.limit_to_receive(phase, most)
        try:
            reply = self._parser.next_reply()
            return reply if reply is not None else (yield from self._wait_for_reply(limit))
        except FAILURES as failure:
            raise _stopped(phase, failure, limit) from failure

    def limit_to_send(self, phase: Phase) -> float:
        """Seconds that a command, or a block of content, may take to go out."""
        return self.timeouts.block if phase in {Phase.BODY, Phase.DOT} else self.timeouts.command

    def limit_to_receive(self, phase: Phase, most: float = NO_OTHER_LIMIT) -> float:
        """Seconds that a reply may take: as the phase allows, and no more than `most`."""
        return min(most, self.timeouts.dot if phase is Phase.DOT else self.timeouts.command)

    def fileno(self) -> int:
        """What a selector waits for; -1 once it is closed."""
        return self._stream.fileno()

    @property
    def own_address(self) -> str:
        """This machine's address on the connection, as the relay sees it without a gateway; IPv4 or IPv6."""
        try:
            address = ip_address(str(self._stream.raw.getsockname()[0]).partition("%")[0])
        except (OSError, ValueError):
            return "127.0.0.1"
        return str(getattr(address, "ipv4_mapped", None) or address)

    @property
    def encryption(self) -> str | None:
        """The version of TLS; None for plain text."""
        return self._stream.encryption

    def start_tls(self, context: ssl.SSLContext, phase: Phase = Phase.STARTTLS) -> Dialogue[None]:
        """Shakes hands; the certificate must be for the relay's host where the context checks it.

        Raises:
            Stopped: TLS failed, or something unencrypted was left over that would pass for encrypted.
        """
        if self._parser.pending:
            raise Stopped(judge_failure(phase, "the relay sent more than its consent to TLS"))
        limit = self.timeouts.connect
        try:
            yield from self._stream.start_tls(context, self._relay.host, time.monotonic() + limit)
        except FAILURES as failure:
            raise _stopped(phase, failure, limit) from failure

    def is_quiet(self) -> bool:
        """Says, without waiting, whether the connection stands and the relay has said nothing unasked."""
        if self._parser.pending:
            return False
        overheard = self._stream.overheard()
        if overheard is None:
            return True
        self._parser.feed(overheard)
        return False

    def close(self) -> None:
        """Closes the connection at once; never fails."""
        self._stream.close()

    def _expect_silence(self, phase: Phase) -> None:
        if self._parser.pending or (phase is Phase.DOT and not self.is_quiet()):
            # A reply that was there before the dot is none to it.
            before = Phase.BODY if phase is Phase.DOT else phase
            raise Stopped(judge_failure(before, "the relay spoke out of turn, or hung up"))

    def _flags(self, phase: Phase) -> int:
        """The content's end leaves with the dot, in one packet; the kernel keeps it back for 0.2 s at the most."""
        is_followed = phase is Phase.BODY and not isinstance(self._stream.raw, ssl.SSLSocket)
        return _MORE if is_followed else 0

    def _wait_for_reply(self, limit: float) -> Dialogue[Reply]:
        deadline = time.monotonic() + limit
        while (reply := self._parser.next_reply()) is None:
            data = yield from self._stream.receive(deadline)
            if not data:
                raise _hung_up()
            self._parser.feed(data)
        return reply


def _hung_up() -> ConnectionResetError:
    return ConnectionResetError("the relay closed the connection")


def _connect(relay: Relay, timeout: float) -> socket.socket:
    # The resolver has limits of its own (resolv.conf); Python can set none.
    connected = socket.create_connection((relay.host, relay.port), timeout)
    # The dot is a small write behind a large one: Nagle's algorithm would have it wait for an ACK.
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def _stopped(phase: Phase, failure: Exception, limit: float) -> Stopped:
    """What goes wrong on the wire, as the dialogue is told. `limit`, in seconds, is for the message only."""
    hung_up = isinstance(failure, ConnectionError | ssl.SSLEOFError | ssl.SSLZeroReturnError)
    if phase is Phase.AUTH and isinstance(failure, MalformedReply):
        # It may repeat the login in a shape of its own.
        failure = MalformedReply("its text is not kept")
    return Stopped(judge_failure(phase, _describe(failure, limit)), hung_up=hung_up)


def _describe(failure: Exception, limit: float) -> str:
    if isinstance(failure, socket.gaierror | UnicodeError):
        return f"the relay's name does not resolve: {failure}"
    if isinstance(failure, MalformedReply):
        return f"the relay's reply cannot be understood: {failure}"
    return describe_failure(failure, limit, "the relay", "DUEPOST_SMTP_CA")
