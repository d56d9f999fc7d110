"""An SMTP server that keeps every byte, and ends content by the letter: CRLF, dot, CRLF and nothing else."""

import socket
import threading
from types import TracebackType
from typing import Self

END_OF_CONTENT = b"\r\n.\r\n"


class ByteRecorder:
    """Takes everything on 127.0.0.1 and a port of its own; a context manager."""

    def __init__(self) -> None:
        #: What came after each DATA, its end included.
        self.contents: list[bytes] = []
        #: Each line outside of content.
        self.commands: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._stopped = False
        self._thread = threading.Thread(target=self._listen, daemon=True)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"smtp://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    def _listen(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        data = b""
        with client:
            client.sendall(b"220 recorder\r\n")
            while True:
                end = data.find(b"\n")
                if end < 0:
                    more = client.recv(65536)
                    if not more:
                        return
                    data += more
                    continue
                command, data = data[: end + 1], data[end + 1 :]
                self.commands.append(command)
                if command.upper().startswith(b"DATA"):
                    client.sendall(b"354 go ahead\r\n")
                    data = self._content(client, data)
                elif command.upper().startswith(b"EHLO"):
                    client.sendall(b"250-recorder\r\n250-8BITMIME\r\n250 PIPELINING\r\n")
                    continue
                client.sendall(b"250 2.0.0 ok\r\n")

    def _content(self, client: socket.socket, data: bytes) -> bytes:
        while END_OF_CONTENT not in data:
            data += client.recv(65536)
        end = data.index(END_OF_CONTENT) + len(END_OF_CONTENT)
        self.contents.append(data[:end])
        return data[end:]
