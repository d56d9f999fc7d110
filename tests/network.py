"""A network between a worker and a server that can be cut: no FIN, no RST, bytes just vanish."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit


class Line:
    """A TCP port in front of a server.

    Args:
        connect: makes a connection to the server.
        address: where it listens.
    """

    def __init__(self, connect: Callable[[], socket.socket], address: str = "127.0.0.1") -> None:
        self._connect = connect
        self._listener = socket.create_server((address, 0))
        self.port: int = self._listener.getsockname()[1]
        self._whole = threading.Event()
        self._whole.set()
        self._generation = 0
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """From now on nothing arrives, and nobody is told. What is cut stays cut."""
        self._generation += 1
        self._whole.clear()

    def mend(self) -> None:
        """New connections work again; those that were cut never hear of each other."""
        self._whole.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._sockets.append(near)
                if not self._whole.is_set():
                    continue
                try:
                    far = self._connect()
                except OSError:
                    near.close()
                    continue
                self._sockets.append(far)
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink, self._generation), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, generation: int) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if generation == self._generation:
                    sink.sendall(data)
        if generation == self._generation:
            with suppress(OSError):
                sink.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for each in [self._listener, *self._sockets]:
            with suppress(OSError):
                each.close()


class Network(Line):
    """A TCP port in front of a PostgreSQL's Unix socket."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = f"{parse_qs(parts.query)['host'][0]}/.s.PGSQL.5432"
        super().__init__(self._to_the_socket)
        self.url = f"postgresql://{parts.username}@127.0.0.1:{self.port}{parts.path}"

    def _to_the_socket(self) -> socket.socket:
        far = socket.socket(socket.AF_UNIX)
        try:
            far.connect(self._target)
        except OSError:
            far.close()
            raise
        return far
