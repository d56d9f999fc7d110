"""The mail catcher: a local relay that keeps every email in a folder and delivers none.

Each email is one `.eml` file: any mail program opens it with a double click, and any editor shows it.
"""

import asyncio
import itertools
import logging
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Self

from aiosmtpd.smtp import SMTP, Envelope, Session

from duepost.catching import CatcherError, Refusal
from duepost.private import make_private, write_private

#: Bytes; announced in the EHLO reply.
LARGEST_MESSAGE = 32 * 1024 * 1024
#: The header line in front of a stored email: its envelope's recipients, one a line.
RECIPIENTS_HEADER = b"X-RcptTo: "
#: Ends each recipient but the last: no address has a line break in it, so nothing needs quoting.
_NEXT_RECIPIENT = b",\r\n "
#: Connections that the kernel holds while the catcher is busy.
_BACKLOG = 512


class Catcher:
    """An SMTP server on this machine that stores what it is given; a context manager.

    Args:
        mailbox: the folder of the stored emails, for this user alone; made when it is missing. What it holds already
            stays.
        host: the address to listen on.
        port: the port to listen on; 0 takes a free one.
        rules: which recipients are refused. The first rule that matches and is not used up counts.
    """

    def __init__(self, mailbox: Path, *, host: str = "127.0.0.1", port: int = 0, rules: Sequence[Refusal] = ()) -> None:
        self.mailbox = mailbox
        self._address = (host, port)
        self._handler = _Handler(mailbox, _Rules(rules))
        self._server: _Server | None = None

    def start(self) -> str:
        """Listens, in a thread of its own; a running catcher just says its URL.

        Returns:
            The relay's URL, as `smtp://127.0.0.1:port`.

        Raises:
            CatcherError: the port is in use, or the mailbox cannot be written.
        """
        if self._server is None:
            try:
                make_private(self.mailbox)
            except OSError as error:
                raise CatcherError(f"the mailbox {self.mailbox} cannot be made: {error.strerror}") from error
            self._server = _Server(_listen(*self._address), self._handler)
            self._server.start()
        return self._server.url

    def stop(self) -> None:
        """Stops listening and cuts open connections at once; quiet if it is not running."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def messages(self) -> Iterator[tuple[list[str], bytes]]:
        """Gives the stored emails, oldest first, also those of earlier runs.

        Yields:
            The envelope's recipients, and the email's bytes as they came in.
        """
        for path in sorted(self.mailbox.glob("*.eml")):
            yield unpack(path.read_bytes())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise CatcherError(f"the mail catcher cannot listen on {host}:{port}: {reason}") from error


def _pack(recipients: Sequence[str], content: bytes) -> bytes:
    lines = [recipient.encode(errors="surrogateescape") for recipient in recipients]
    return RECIPIENTS_HEADER + _NEXT_RECIPIENT.join(lines) + b"\r\n" + content


def unpack(stored: bytes) -> tuple[list[str], bytes]:
    """The envelope's recipients of a stored email, and its bytes as they came in."""
    recipients: list[str] = []
    rest = stored.removeprefix(RECIPIENTS_HEADER)
    more = rest != stored
    while more:
        line, _, rest = rest.partition(b"\r\n")
        more = line.endswith(b",")
        recipients.append(line.removeprefix(b" ").removesuffix(b",").decode(errors="surrogateescape"))
    return recipients, rest


class _Rules:
    """Counts the refusals of each address; safe to ask from any thread."""

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        self._refusals = tuple(refusals)
        self._counts: Counter[tuple[Refusal, str]] = Counter()
        self._lock = threading.Lock()

    def reply_to(self, address: str) -> str | None:
        """The refusing reply to this recipient, now; None if it is welcome."""
        address = address.lower()
        for refusal in self._refusals:
            if fnmatchcase(address, refusal.pattern.lower()) and self._applies(refusal, address):
                return refusal.reply
        return None

    def _applies(self, refusal: Refusal, address: str) -> bool:
        if refusal.times is None:
            return True
        with self._lock:
            self._counts[refusal, address] += 1
            return self._counts[refusal, address] <= refusal.times


class _Handler:
    """What the server asks at each step; the names and arguments are aiosmtpd's."""

    def __init__(self, mailbox: Path, rules: _Rules) -> None:
        self._mailbox = mailbox
        self._rules = rules
        self._numbers = itertools.count(1)

    async def handle_EHLO(  # noqa: N802
        self, _server: SMTP, session: Session, _envelope: Envelope, hostname: str, replies: list[str]
    ) -> list[str]:
        session.host_name = hostname
        # aiosmtpd reads pipelined commands well and does not announce it.
        return [*replies[:-1], "250-PIPELINING", replies[-1]]

    async def handle_RCPT(  # noqa: N802
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        refusal = self._rules.reply_to(address)
        if refusal is not None:
            return refusal
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 2.1.5 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        try:
            name = self._store(_pack(envelope.rcpt_tos, envelope.original_content or b""))
        except OSError as error:
            return f"452 4.3.1 cannot store it: {error.strerror}"
        return f"250 2.0.0 stored as {name}"

    def _store(self, stored: bytes) -> str:
        """Writes a file; it is not synced, as these emails are nobody's."""
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")
        name = f"{moment}-{os.getpid()}-{next(self._numbers):06}.eml"
        write_private(self._mailbox / name, stored)
        return name


class _Connection(SMTP):
    """One client's dialogue, which the server knows of until it is over."""

    def __init__(self, handler: _Handler, open_ones: set["_Connection"]) -> None:
        super().__init__(
            handler,
            data_size_limit=LARGEST_MESSAGE,
            enable_SMTPUTF8=True,
            hostname="localhost",
            ident="Duepost mail catcher",
            loop=asyncio.get_running_loop(),
        )
        self._open_ones = open_ones

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._open_ones.add(self)
        # asyncio leaves it out for a listener of our own, and each reply after the first would wait 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._open_ones.discard(self)
        super().connection_lost(error)

    def abort(self) -> None:
        if isinstance(self.transport, asyncio.WriteTransport):
            self.transport.abort()


class _Server:
    """The listening thread.

    Not aiosmtpd's Controller: that connects to itself to see whether it is up (never with port 0), finds a
    port in use late, and from Python 3.12 on waits in `stop` for clients to hang up.
    """

    def __init__(self, listener: socket.socket, handler: _Handler) -> None:
        self._listener = listener
        self._handler = handler
        self._open_ones: set[_Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="duepost-catcher", daemon=True)
        host, port = listener.getsockname()[:2]
        self.url = f"smtp://[{host}]:{port}" if ":" in host else f"smtp://{host}:{port}"

    def start(self) -> None:
        """Serves from now on: the socket listens already, so clients that come early just wait."""
        # It would write every recipient's address into a log of the host that is set to INFO.
        logging.getLogger("mail.log").setLevel(logging.WARNING)
        self._thread.start()

    def stop(self) -> None:
        """Returns when the thread has ended."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            self._loop.set_exception_handler(_report)
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await self._loop.create_server(self._connection, sock=self._listener)
        await self._stopping.wait()
        # Not `server.close()` yet: asyncio leaks the clients that it is just accepting when their server closes.
        self._loop.remove_reader(self._listener)
        while self._open_ones or len(asyncio.all_tasks()) > 1:
            for connection in tuple(self._open_ones):
                connection.abort()
            await asyncio.sleep(0)
        server.close()

    def _connection(self) -> _Connection:
        return _Connection(self._handler, self._open_ones)


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """Passes over clients that hang up in the middle, which aiosmtpd leaves to the loop as failed tasks."""
    if not isinstance(context.get("exception"), ConnectionError):
        loop.default_exception_handler(context)
