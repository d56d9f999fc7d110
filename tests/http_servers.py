"""An HTTP server for tests that does as it is told, byte by byte: answers 204, until it is told something else.

    with ScriptedServer() as server:
        server.script(answer("HTTP/1.1 503 Busy", "retry-after: 7"), hang())
        ...                               # make requests of server.url, each connection's or request's turn by turn
        assert server.requests[0].headers["webhook-id"] == "msg_1"

Each request takes the next script; once all are used, the usual answer is given. `before` takes the place of reading.
"""

import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self


@dataclass(frozen=True)
class Received:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    #: Which connection it came over, counted from 1.
    connection: int
    #: When it had come, by the monotonic clock.
    moment: float


class _Gone(Exception):
    """The connection is over."""


class Conversation:
    """A connection that a script plays on."""

    def __init__(self, server: "ScriptedServer", sock: socket.socket, number: int) -> None:
        self.server = server
        self.sock = sock
        self.number = number
        self.buffer = b""

    def read(self) -> Received | None:
        """Reads a whole request; None where the client has hung up before one."""
        while b"\r\n\r\n" not in self.buffer:
            data = self.sock.recv(65536)
            if not data:
                return None
            self.buffer += data
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = int(headers.get("content-length", "0"))
        while len(self.buffer) < size:
            data = self.sock.recv(65536)
            if not data:
                return None
            self.buffer += data
        body, self.buffer = self.buffer[:size], self.buffer[size:]
        return Received(method, path, headers, body, self.number, time.monotonic())


Action = Callable[[Conversation], None]


def answer(status: str, *headers: str, body: bytes = b"") -> Action:
    """A whole answer; its length is said unless a header says something else."""
    sized = any(line.lower().startswith(("content-length", "transfer-encoding")) for line in headers)
    lines = [status, *headers, *([] if sized else [f"content-length: {len(body)}"])]
    return raw("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)


def raw(data: bytes) -> Action:
    """These bytes."""

    def act(conversation: Conversation) -> None:
        conversation.sock.sendall(data)

    return act


def drip(data: bytes, every: float = 0.02) -> Action:
    """These bytes one at a time, until the client hangs up."""

    def act(conversation: Conversation) -> None:
        for byte in data:
            conversation.sock.sendall(bytes([byte]))
            if conversation.server.stopped.wait(every):
                raise _Gone

    return act


def flood(block: bytes) -> Action:
    """These bytes without end, until the client hangs up."""

    def act(conversation: Conversation) -> None:
        while not conversation.server.stopped.is_set():
            conversation.sock.sendall(block)
            conversation.server.flooded += len(block)

    return act


def hang() -> Action:
    """Nothing until the test's end, or the client hangs up."""

    def act(conversation: Conversation) -> None:
        conversation.sock.settimeout(60)
        conversation.sock.recv(1)
        raise _Gone

    return act


def stall() -> Action:
    """Nothing until the test's end, and what is written piles up."""

    def act(conversation: Conversation) -> None:
        conversation.server.stopped.wait()

    return act


def close() -> Action:
    """Hangs up."""

    def act(_conversation: Conversation) -> None:
        raise _Gone

    return act


def reset() -> Action:
    """Resets the connection (RST)."""

    def act(conversation: Conversation) -> None:
        conversation.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise _Gone

    return act


def read_some(size: int) -> Action:
    """Reads at most that many bytes of the request."""

    def act(conversation: Conversation) -> None:
        left = size
        while left > 0 and (data := conversation.sock.recv(min(left, 65536))):
            left -= len(data)

    return act


USUAL = answer("HTTP/1.1 204 No Content")


class ScriptedServer:
    """An HTTP server on 127.0.0.1 and a port of its own, a thread for each connection; a context manager.

    Args:
        tls: its certificate, for https.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._scripts: deque[tuple[Action, ...]] = deque()
        self._before: deque[tuple[Action, ...]] = deque()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.stopped = threading.Event()
        self.requests: list[Received] = []
        self.connections = 0
        #: Bytes that `flood` could write.
        self.flooded = 0
        #: Names that clients asked for.
        self.names: list[str | None] = []

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/"

    def script(self, *actions: Action) -> None:
        """What follows the next request that has no script yet."""
        self._scripts.append(actions)

    def before(self, *actions: Action) -> None:
        """What a connection that has none yet does instead of reading."""
        self._before.append(actions)

    def forget(self) -> None:
        """What follows is as usual."""
        self._scripts.clear()
        self._before.clear()

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=10)

    def _spawn(self, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            # What is said before a reset is to leave before it.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            self._sockets.append(sock)
            conversation = Conversation(self, sock, self.connections)
            self._spawn(lambda conversation=conversation: self._converse(conversation))  # type: ignore[misc]

    def _converse(self, conversation: Conversation) -> None:
        try:
            if self._tls is not None:
                self._tls.sni_callback = lambda _socket, name, _context: self.names.append(name)
                conversation.sock = self._tls.wrap_socket(conversation.sock, server_side=True)
            if self._before:
                for act in self._before.popleft():
                    act(conversation)
                return
            while (request := conversation.read()) is not None:
                self.requests.append(request)
                for act in self._scripts.popleft() if self._scripts else (USUAL,):
                    act(conversation)
        except (OSError, _Gone):
            pass
        finally:
            with suppress(OSError):
                conversation.sock.close()
