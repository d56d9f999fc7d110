"""An SMTP server that takes everything and keeps nothing, as fast as Python can; counts what it took.

Run: python benchmarks/sink.py PORT
"""

import asyncio
import sys

GREETING = b"220 sink ESMTP\r\n"
EHLO = b"250-sink\r\n250-PIPELINING\r\n250 8BITMIME\r\n"
OK = b"250 2.0.0 ok\r\n"
GO_AHEAD = b"354 go ahead\r\n"
BYE = b"221 2.0.0 bye\r\n"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection, until the client hangs up."""
    writer.write(GREETING)
    try:
        while line := await reader.readline():
            verb = line[:4].upper()
            if verb == b"DATA":
                writer.write(GO_AHEAD)
                await reader.readuntil(b"\r\n.\r\n")
                writer.write(OK)
            elif verb == b"QUIT":
                writer.write(BYE)
                break
            else:
                writer.write(EHLO if verb == b"EHLO" else OK)
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main(port: int) -> None:
    """Serves until it is killed."""
    server = await asyncio.start_server(serve, "127.0.0.1", port, limit=2**22)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
