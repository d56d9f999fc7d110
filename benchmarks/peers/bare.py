"""SMTP over plain asyncio streams, as a careful user would write it: a group of commands is one write (RFC 2920)."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from turn import SENDER, spliced


class Relay:
    """One connection. A refusal or an end of the connection raises ConnectionError."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._received = b""

    @classmethod
    async def connect(cls, port: int) -> "Relay":
        """Connects, and says EHLO."""
        relay = cls(*await asyncio.open_connection("127.0.0.1", port))
        await relay._replies(1)
        relay._writer.write(b"EHLO bare\r\n")
        await relay._replies(1)
        return relay

    async def send(self, to: str) -> None:
        """Two round trips: the envelope, then content and dot."""
        self._writer.write(envelope(to))
        await self._replies(3)
        self._writer.write(spliced(to))
        await self._replies(1)

    async def send_ahead(self, addresses: Iterable[str]) -> None:
        """One round trip an email: the next envelope goes out with the dot."""
        behind = iter(addresses)
        to = next(behind, None)
        if to is not None:
            self._writer.write(envelope(to))
            await self._replies(3)
        while to is not None:
            after = next(behind, None)
            self._writer.write(spliced(to) + (b"" if after is None else envelope(after)))
            await self._replies(1 if after is None else 4)
            to = after

    def close(self) -> None:
        """Hangs up."""
        self._writer.close()

    async def _replies(self, count: int) -> None:
        """Waits for that many replies; one of several lines counts once."""
        while count:
            end = self._received.find(b"\r\n")
            if end < 0:
                data = await self._reader.read(65536)
                if not data:
                    raise ConnectionError("the relay has hung up")
                self._received += data
                continue
            line, self._received = self._received[:end], self._received[end + 2 :]
            if line[:1] not in b"23":
                raise ConnectionError(line.decode(errors="replace"))
            count -= line[3:4] != b"-"


class Relays:
    """A number of connections; whoever wants to send takes one and returns it."""

    def __init__(self, port: int, size: int) -> None:
        self._port = port
        self._size = size
        self._free: asyncio.LifoQueue[Relay] = asyncio.LifoQueue()

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Relays"]:
        """Connects them all, and hangs up at the end."""
        relays = await asyncio.gather(*(Relay.connect(self._port) for _ in range(self._size)))
        for relay in relays:
            self._free.put_nowait(relay)
        yield self
        for relay in relays:
            relay.close()

    async def send(self, to: str) -> None:
        """Sends one email over the next free connection."""
        relay = await self._free.get()
        try:
            await relay.send(to)
        finally:
            self._free.put_nowait(relay)


def envelope(to: str) -> bytes:
    """MAIL, RCPT and DATA."""
    return f"MAIL FROM:<{SENDER}>\r\nRCPT TO:<{to}>\r\nDATA\r\n".encode()
