"""The socket under the dialogue: blocking, and never without a deadline."""

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from actors.smtp.dialogue import Stopped
from actors.smtp.relay import Relay, Timeouts
from actors.smtp.replies import MalformedReply, Reply, ReplyParser
from actors.smtp.verdicts import Phase, judge_failure

#: Bytes that share one `Timeouts.block`.
BLOCK: Final = 64 * 1024


class Wire:
    """One connection to a relay; every failure of it is a `Stopped` with the ruling for the phase.

    Args:
        relay: where to connect to, at once.
        timeouts: how long each step may take; may be changed between steps.

    Raises:
        Stopped: there is no connection.
    """

    def __init__(self, relay: Relay, timeouts: Timeouts) -> None:
        self._relay = relay
        self.timeouts = timeouts
        self._parser = ReplyParser()
        with _failures(Phase.CONNECT, timeouts.connect):
            self._socket = _connect(relay, timeouts.connect)

    def send(self, data: bytes, phase: Phase) -> None:
        """Writes bytes.

        Raises:
            Stopped: they may not have gone out; before any of them does, if the relay spoke out of turn.
        """
        if self._parser.pending or (phase is Phase.DOT and not self.is_quiet()):
            # A reply that was there before the dot is none to it.
            before = Phase.BODY if phase is Phase.DOT else phase
            raise Stopped(judge_failure(before, "the relay spoke out of turn, or hung up"))
        limit = self.timeouts.block if phase in {Phase.BODY, Phase.DOT} else self.timeouts.command
        blocks = memoryview(data)
        with _failures(phase, limit):
            for start in range(0, len(data), BLOCK):
                self._send_block(blocks[start : start + BLOCK], time.monotonic() + limit)

    def receive(self, phase: Phase) -> Reply:
        """Waits for one whole reply.

        Raises:
            Stopped: it did not come in time, not whole, or it is none.
        """
        limit = self.timeouts.dot if phase is Phase.DOT else self.timeouts.command
        deadline = time.monotonic() + limit
        with _failures(phase, limit):
            while (reply := self._parser.next_reply()) is None:
                data = self._receive_some(deadline)
                if not data:
                    raise ConnectionResetError("the relay closed the connection")
                self._parser.feed(data)
        return reply

    def start_tls(self, context: ssl.SSLContext) -> None:
        """Shakes hands; the certificate must be for the relay's host.

        Raises:
            Stopped: TLS failed, or something unencrypted was left over that would pass for encrypted.
        """
        if self._parser.pending:
            raise Stopped(judge_failure(Phase.STARTTLS, "the relay sent more than its consent to TLS"))
        with _failures(Phase.STARTTLS, self.timeouts.connect):
            self._socket.settimeout(self.timeouts.connect)
            self._socket = context.wrap_socket(self._socket, server_hostname=self._relay.host)

    def is_quiet(self) -> bool:
        """Says, without waiting, whether the connection stands and the relay has said nothing unasked."""
        if self._parser.pending:
            return False
        try:
            self._socket.settimeout(0)
            self._parser.feed(self._socket.recv(4096))
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        """Closes the connection at once; never fails."""
        self._socket.close()

    def _send_block(self, block: memoryview, deadline: float) -> None:
        while block:
            self._socket.settimeout(_remaining(deadline))
            block = block[self._socket.send(block) :]

    def _receive_some(self, deadline: float) -> bytes:
        self._socket.settimeout(_remaining(deadline))
        return self._socket.recv(16 * 1024)


def _connect(relay: Relay, timeout: float) -> socket.socket:
    # The resolver has limits of its own (resolv.conf); Python can set none.
    connected = socket.create_connection((relay.host, relay.port), timeout)
    # The dot is a small write behind a large one: Nagle's algorithm would have it wait for an ACK.
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining


@contextmanager
def _failures(phase: Phase, limit: float) -> Iterator[None]:
    """Turns what goes wrong within into `Stopped`. `limit`, in seconds, is for the message only."""
    try:
        yield
    except (OSError, MalformedReply, UnicodeError) as failure:
        hung_up = isinstance(failure, ConnectionError | ssl.SSLEOFError | ssl.SSLZeroReturnError)
        raise Stopped(judge_failure(phase, _describe(failure, limit)), hung_up=hung_up) from failure


def _describe(failure: Exception, limit: float) -> str:
    if isinstance(failure, TimeoutError):
        return f"timed out after {limit:g} seconds"
    if isinstance(failure, socket.gaierror | UnicodeError):
        return f"the relay's name does not resolve: {failure}"
    if isinstance(failure, ssl.SSLCertVerificationError):
        return f"the relay's certificate is not trusted: {failure.verify_message}"
    if isinstance(failure, ssl.SSLError):
        return f"TLS failed: {failure.reason or failure}"
    if isinstance(failure, MalformedReply):
        return f"the relay's reply cannot be understood: {failure}"
    return f"connection failed: {getattr(failure, 'strerror', None) or failure}"
