"""An HTTP server that takes everything and keeps nothing, as fast as Python can: 204 to each request.

Run: python benchmarks/http_sink.py PORT
"""

import asyncio
import sys

REPLY = b"HTTP/1.1 204 No Content\r\n\r\n"
END_OF_HEAD = b"\r\n\r\n"
LENGTH = b"content-length: "


class Connection(asyncio.Protocol):
    """One connection: requests with a Content-Length, one after the other."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remembers where replies go."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answers each request that is whole."""
        self._buffer += data
        while (end := self._buffer.find(END_OF_HEAD)) >= 0:
            head = bytes(self._buffer[:end]).lower()
            _, _, rest = head.partition(LENGTH)
            length = int(rest.split(b"\r\n", 1)[0]) if rest else 0
            if len(self._buffer) < end + 4 + length:
                return
            del self._buffer[: end + 4 + length]
            assert self._transport is not None
            self._transport.write(REPLY)


async def serve(port: int) -> None:
    """Serves for good."""
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
