"""The limit: a pipelining client without any table; nothing is recorded, nothing can be lost."""

import asyncio

from turn import SENDER, Turn, begin, content


async def deliver(port: int, addresses: list[str]) -> None:
    """One connection's part: two round trips an email (RFC 2920)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await reader.readline()
    writer.write(b"EHLO limit\r\n")
    while (await reader.readline())[3:4] == b"-":
        pass
    for to in addresses:
        writer.write(f"MAIL FROM:<{SENDER}>\r\nRCPT TO:<{to}>\r\nDATA\r\n".encode())
        for _ in range(3):
            await reader.readline()
        writer.write(content(to).replace(b"\n", b"\r\n") + b".\r\n")
        await reader.readline()
    writer.close()


async def deliver_all(turn: Turn) -> None:
    """All of them, shared out among the connections."""
    shares = [turn.addresses[start :: turn.connections] for start in range(turn.connections)]
    await asyncio.gather(*(deliver(turn.port, share) for share in shares))


def main() -> None:
    """A turn."""
    turn = Turn.given()
    begin()
    asyncio.run(deliver_all(turn))


if __name__ == "__main__":
    main()
