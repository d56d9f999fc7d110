"""The socket under the dialogue. It never waits itself: it yields what it waits for, never without a limit."""

import select
import socket
import ssl
import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final

from actors.channels.channel import Dialogue, Event, Wait
from actors.channels.smtp.dialogue import NO_OTHER_LIMIT, Stopped
from actors.channels.smtp.relay import Relay, Timeouts
from actors.channels.smtp.replies import MalformedReply, Reply, ReplyParser
from actors.channels.smtp.secrets import hider
from actors.channels.smtp.verdicts import judge_failure
from actors.ruling import Phase

#: Bytes that share one `Timeouts.block`.
BLOCK: Final = 64 * 1024

#: What a wire may fail of.
FAILURES: Final = (OSError, MalformedReply, UnicodeError)

#: Linux's word for "there is more to come"; elsewhere a packet more is sent.
_MORE: Final = getattr(socket, "MSG_MORE", 0)

#: OpenSSL's codes of a certificate that is for another name, or address.
_WRONG_NAME: Final = (62, 64)


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
            self._use(_connect(relay, timeouts.connect))
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
                left, _ = self._send_now(memoryview(data)[start : start + BLOCK], self._flags(phase))
                if left:
                    yield from self._send_rest(left, limit, self._flags(phase))
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
        return self._socket.fileno()

    @property
    def own_address(self) -> str:
        """This machine's address as the relay's side of the connection sees it, a gateway aside; IPv4 or IPv6."""
        try:
            address = ip_address(str(self._socket.getsockname()[0]).partition("%")[0])
        except (OSError, ValueError):
            return "127.0.0.1"
        return str(getattr(address, "ipv4_mapped", None) or address)

    @property
    def encryption(self) -> str | None:
        """The version of TLS; None for plain text."""
        return self._socket.version() if isinstance(self._socket, ssl.SSLSocket) else None

    def start_tls(self, context: ssl.SSLContext, phase: Phase = Phase.STARTTLS) -> Dialogue[None]:
        """Shakes hands; the certificate must be for the relay's host where the context checks it.

        Raises:
            Stopped: TLS failed, or something unencrypted was left over that would pass for encrypted.
        """
        if self._parser.pending:
            raise Stopped(judge_failure(phase, "the relay sent more than its consent to TLS"))
        limit = self.timeouts.connect
        deadline = time.monotonic() + limit
        try:
            encrypted = context.wrap_socket(
                self._socket, server_hostname=self._relay.host, do_handshake_on_connect=False
            )
            self._use(encrypted)
            while (event := _wanted(encrypted.do_handshake)) is not None:
                if not (yield Wait(event, deadline - time.monotonic())):
                    raise TimeoutError
        except FAILURES as failure:
            raise _stopped(phase, failure, limit) from failure

    def is_quiet(self) -> bool:
        """Says, without waiting, whether the connection stands and the relay has said nothing unasked."""
        if self._parser.pending:
            return False
        if not self._readable.poll(0) and not (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()):
            return True
        # With TLS it may be no more than a session ticket.
        try:
            self._parser.feed(self._socket.recv(4096))
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        """Closes the connection at once; never fails."""
        self._socket.close()

    def _expect_silence(self, phase: Phase) -> None:
        if self._parser.pending or (phase is Phase.DOT and not self.is_quiet()):
            # A reply that was there before the dot is none to it.
            before = Phase.BODY if phase is Phase.DOT else phase
            raise Stopped(judge_failure(before, "the relay spoke out of turn, or hung up"))

    def _use(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._readable = select.poll()
        self._readable.register(connected, select.POLLIN)

    def _flags(self, phase: Phase) -> int:
        """The content's end leaves with the dot, in one packet; the kernel keeps it back for 0.2 s at the most."""
        is_followed = phase is Phase.BODY and not isinstance(self._socket, ssl.SSLSocket)
        return _MORE if is_followed else 0

    def _send_now(self, block: memoryview, flags: int) -> tuple[memoryview, Event]:
        """Sends as much as goes out without waiting; returns what is left, and what that waits for."""
        try:
            return block[self._socket.send(block, flags) :], Event.WRITE
        except ssl.SSLWantReadError:
            return block, Event.READ
        except (BlockingIOError, ssl.SSLWantWriteError):
            return block, Event.WRITE

    def _send_rest(self, left: memoryview, limit: float, flags: int) -> Dialogue[None]:
        deadline = time.monotonic() + limit
        while True:
            left, event = self._send_now(left, flags)
            if not left:
                return
            if not (yield Wait(event, deadline - time.monotonic())):
                raise TimeoutError

    def _wait_for_reply(self, limit: float) -> Dialogue[Reply]:
        deadline = time.monotonic() + limit
        event = Event.READ
        while (reply := self._parser.next_reply()) is None:
            if not self._has_decrypted and not (yield Wait(event, deadline - time.monotonic())):
                raise TimeoutError
            event = Event.READ
            try:
                data = self._socket.recv(16 * 1024)
            except (BlockingIOError, ssl.SSLWantReadError):
                continue
            except ssl.SSLWantWriteError:
                event = Event.WRITE
                continue
            if not data:
                raise _hung_up()
            self._parser.feed(data)
        return reply

    @property
    def _has_decrypted(self) -> bool:
        """Whether TLS holds something that no selector tells of."""
        return isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0


def _wanted(shake_hands: Callable[[], None]) -> Event | None:
    """What a handshake waits for; None once it is done."""
    try:
        shake_hands()
    except ssl.SSLWantReadError:
        return Event.READ
    except ssl.SSLWantWriteError:
        return Event.WRITE
    return None


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
    if isinstance(failure, TimeoutError):
        return f"timed out after {limit:g} seconds"
    if isinstance(failure, socket.gaierror | UnicodeError):
        return f"the relay's name does not resolve: {failure}"
    if isinstance(failure, ssl.SSLCertVerificationError):
        is_anothers = failure.verify_code in _WRONG_NAME
        hint = (
            "say the host as the certificate does" if is_anothers else "DUEPOST_SMTP_CA names a file of what to trust"
        )
        return f"the relay's certificate is not trusted: {failure.verify_message.rstrip('.')} ({hint})"
    if isinstance(failure, ssl.SSLError):
        return f"TLS failed: {failure.reason or failure}"
    if isinstance(failure, MalformedReply):
        return f"the relay's reply cannot be understood: {failure}"
    return f"connection failed: {getattr(failure, 'strerror', None) or failure}"
