"""An SMTP server that takes everything and keeps nothing, as fast as Python can, at any distance.

Replies to commands that came together go out together (RFC 2920 section 3.2). With a latency, each group of replies
arrives that much later, as from a relay that is so far away (a round trip).

Where it is given a file, it writes a line for each email that it has taken: when the first byte of its dialogue came,
when its last one did (seconds of the Unix epoch), and to whom it goes.

Run: python benchmarks/sink.py PORT [LATENCY_MS [FILE]]
"""

import asyncio
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

GREETING = b"220 sink ESMTP\r\n"
EHLO = b"250-sink\r\n250-PIPELINING\r\n250 8BITMIME\r\n"
OK = b"250 2.0.0 ok\r\n"
GO_AHEAD = b"354 go ahead\r\n"
BYE = b"221 2.0.0 bye\r\n"

END_OF_DATA = b"\r\n.\r\n"


class Session(asyncio.Protocol):
    """One connection.

    Args:
        latency: seconds until a reply arrives.
        record: where a line for each email goes.
    """

    def __init__(self, latency: float, record: TextIO | None = None) -> None:
        self._latency = latency
        self._record = record
        self._began = 0.0
        self._recipient = ""
        self._buffer = bytearray()
        self._in_content = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greets."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._reply(GREETING)

    def data_received(self, data: bytes) -> None:
        """Takes what came, and replies to all of it at once."""
        self._buffer += data
        replies = bytearray()
        while (reply := self._next()) is not None:
            replies += reply
        if replies:
            self._reply(bytes(replies))

    def _next(self) -> bytes | None:
        end = self._buffer.find(END_OF_DATA if self._in_content else b"\r\n")
        if end < 0:
            return None
        if self._in_content:
            del self._buffer[: end + len(END_OF_DATA)]
            self._in_content = False
            if self._record:
                self._record.write(f"{self._began} {time.time()} {self._recipient}\n")
            return OK
        verb = bytes(self._buffer[:4]).upper()
        if verb == b"MAIL":
            self._began = time.time()
        elif verb == b"RCPT":
            self._recipient = self._buffer[8:end].decode().strip("<>")
        del self._buffer[: end + 2]
        if verb == b"DATA":
            self._in_content = True
            return GO_AHEAD
        return {b"EHLO": EHLO, b"QUIT": BYE}.get(verb, OK)

    def _reply(self, data: bytes) -> None:
        if self._transport is None:
            return
        if self._latency:
            asyncio.get_running_loop().call_later(self._latency, self._transport.write, data)
        else:
            self._transport.write(data)


async def main(port: int, latency: float, record: TextIO | None) -> None:
    """Serves until it is killed."""
    server = await asyncio.get_running_loop().create_server(
        lambda: Session(latency, record), "127.0.0.1", port, backlog=512
    )
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    _, port, *options = sys.argv
    with ExitStack() as stack:
        record = stack.enter_context(Path(options[1]).open("w", buffering=1)) if len(options) > 1 else None
        asyncio.run(main(int(port), float(options[0]) / 1000 if options else 0.0, record))
