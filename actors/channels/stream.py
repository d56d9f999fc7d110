"""A connection, with or without TLS. It never waits itself: it yields what it waits for, never without a limit."""

import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final

from actors.channels.channel import Dialogue, Event, Wait

#: Bytes that are read at once.
READ_SIZE: Final = 16 * 1024


class Stream:
    """A connection. What goes wrong with it is an OSError, a TimeoutError among them.

    Args:
        connected: the socket: connected, or about to be.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._use(connected)

    def fileno(self) -> int:
        """What a selector waits for; -1 once it is closed."""
        return self._socket.fileno()

    @property
    def raw(self) -> socket.socket:
        """The socket, to ask it for addresses and options."""
        return self._socket

    @property
    def encryption(self) -> str | None:
        """The version of TLS; None for plain text."""
        return self._socket.version() if isinstance(self._socket, ssl.SSLSocket) else None

    def start_tls(self, context: ssl.SSLContext, host: str, deadline: float) -> Dialogue[None]:
        """Shakes hands; the certificate must be for the host where the context checks it.

        Args:
            context: whom to trust.
            host: a name or an IP address.
            deadline: until when, by the monotonic clock.
        """
        encrypted = context.wrap_socket(self._socket, server_hostname=host, do_handshake_on_connect=False)
        self._use(encrypted)
        while (event := _wanted(encrypted.do_handshake)) is not None:
            if not (yield Wait(event, deadline - time.monotonic())):
                raise TimeoutError

    def send_now(self, block: memoryview, flags: int = 0) -> tuple[memoryview, Event]:
        """Sends as much as goes out without waiting; returns what is left, and what that waits for."""
        try:
            return block[self._socket.send(block, flags) :], Event.WRITE
        except ssl.SSLWantReadError:
            return block, Event.READ
        except (BlockingIOError, ssl.SSLWantWriteError):
            return block, Event.WRITE

    def send_rest(self, left: memoryview, deadline: float, flags: int = 0) -> Dialogue[None]:
        """Sends what did not go out at once, until the deadline by the monotonic clock."""
        while True:
            left, event = self.send_now(left, flags)
            if not left:
                return
            if not (yield Wait(event, deadline - time.monotonic())):
                raise TimeoutError

    def receive_now(self) -> bytes | Event:
        """Returns what has come, empty once the peer has hung up; or what to wait for."""
        try:
            return self._socket.recv(READ_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError):
            return Event.READ
        except ssl.SSLWantWriteError:
            return Event.WRITE

    def receive(self, deadline: float) -> Dialogue[bytes]:
        """Waits for bytes, until the deadline by the monotonic clock; empty once the peer has hung up."""
        event = Event.READ
        while True:
            if not self._has_decrypted and not (yield Wait(event, deadline - time.monotonic())):
                raise TimeoutError
            data = self.receive_now()
            if isinstance(data, bytes):
                return data
            event = data

    def overheard(self) -> bytes | None:
        """What the peer has said unasked, empty where it has hung up; None where it is quiet. Never waits."""
        if not self._readable.poll(0) and not self._has_decrypted:
            return None
        # With TLS it may be no more than a session ticket.
        try:
            data = self.receive_now()
        except OSError:
            return b""
        return data if isinstance(data, bytes) else None

    def close(self) -> None:
        """Closes the connection at once; never fails."""
        self._socket.close()

    def _use(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._readable = select.poll()
        self._readable.register(connected, select.POLLIN)

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
