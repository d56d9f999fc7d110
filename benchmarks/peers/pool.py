"""SMTP connections of an asyncio program, kept between emails."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiosmtplib


class Pool:
    """A number of connections; whoever wants to send takes one and returns it."""

    def __init__(self, port: int, size: int) -> None:
        self._port = port
        self._size = size
        self._free: asyncio.LifoQueue[aiosmtplib.SMTP] = asyncio.LifoQueue()

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Pool"]:
        """Connects them all, and quits at the end."""
        clients = [aiosmtplib.SMTP(hostname="127.0.0.1", port=self._port, start_tls=False) for _ in range(self._size)]
        await asyncio.gather(*(client.connect() for client in clients))
        for client in clients:
            self._free.put_nowait(client)
        yield self
        for client in clients:
            client.close()

    async def send(self, sender: str, to: str, content: bytes) -> None:
        """Sends one email over the next free connection."""
        client = await self._free.get()
        try:
            await client.sendmail(sender, [to], content)
        finally:
            self._free.put_nowait(client)
