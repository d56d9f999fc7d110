"""What the real mail servers have in common for the tests: how they start, end, and what they have stored."""

import os
import random
import re
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from tests.servers.containment import Machine
from tests.servers.install import installed
from tests.waiting import wait_until

CONFIGURATIONS = Path(__file__).parent / "configurations"

#: Below the ports that the kernel gives to outgoing connections: those could take one while a server restarts.
PORTS = range(20000, 32000)

_MESSAGE_ID = re.compile(rb"^message-id:\s*(<[^>\s]+>)", re.IGNORECASE | re.MULTILINE)
_RECEIVED_ID = re.compile(rb"^received:.*?\bid ([\w.-]+)", re.IGNORECASE | re.MULTILINE)
_PLACEHOLDER = re.compile(r"@([A-Z_]+)@")

_ports_taken: set[int] = set()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, and that was not given before."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _ports_taken:
            _ports_taken.add(port)
            return port


class Server:
    """A mail server in a machine of its own; a context manager.

    `ports` has its ways in by name, such as `PLAIN`: what the placeholders of its configuration are called.
    """

    #: Its folder among the configurations.
    name: ClassVar[str]
    #: What `install.py` calls it, if not by its name.
    package: ClassVar[str] = ""
    #: The users that it drops to; the first one owns the mail.
    accounts: ClassVar[tuple[str, ...]]
    #: The folders that it wants to find, and their owners.
    folders: ClassVar[Mapping[str, str]] = {}
    #: Where the server sees its configuration.
    etc: ClassVar[str]
    #: Seconds that it may take to listen, where the machine is busy.
    patience: ClassVar[float] = 120

    def __init__(self, folder: Path, **known: str) -> None:
        self.machine = Machine(
            installed(self.package or self.name), folder, accounts=self.accounts, folders=dict(self.folders)
        )
        self.ports: dict[str, int] = {}
        self._known = {"MAIL_ID": str(self.machine.accounts[self.accounts[0]]), **known}
        self.mail = self.machine.folder("/var/mail", self.accounts[0])

    def configure(self) -> None:
        """Writes the configuration, with a free port for each of its ways in."""
        for file in sorted((CONFIGURATIONS / self.name).rglob("*")):
            if file.is_file():
                target = f"{self.etc}/{file.relative_to(CONFIGURATIONS / self.name)}"
                self.machine.write(target, self.filled(file.read_text(encoding="utf-8")))

    def filled(self, text: str) -> str:
        """A text with its placeholders filled in."""
        return _PLACEHOLDER.sub(lambda found: self._value(found[1]), text)

    def _value(self, name: str) -> str:
        if name in self._known:
            return self._known[name]
        return str(self.ports.setdefault(name, free_port()))

    def command(self) -> tuple[str, ...]:
        """What starts the server, in the foreground."""
        raise NotImplementedError

    def start(self) -> None:
        """Starts the server and waits until it listens everywhere."""
        self.machine.start(*self.command())
        self.wait_until_it_listens()

    def wait_until_it_listens(self) -> None:
        """Waits for all its ports."""
        wait_until(
            lambda: set(self.ports.values()) <= listening(),
            timeout=self.patience,
            what=f"{self.name} to listen",
            state=self.log,
        )

    def stop(self) -> None:
        """Tells it to stop and waits for its end."""
        raise NotImplementedError

    def kill(self) -> None:
        """Kill -9, all its processes."""
        self.machine.kill()

    def reload(self) -> None:
        """Has it read its configuration again."""
        raise NotImplementedError

    def url(self, way: str = "PLAIN", *, scheme: str = "smtp", login: str = "", host: str = "127.0.0.1") -> str:
        """The relay's URL for one of its ways in.

        Args:
            way: the name of a port.
            scheme: the URL's.
            login: `user:password`, if any.
            host: the name or address to be connected to.
        """
        return f"{scheme}://{login}{'@' if login else ''}{host}:{self.ports[way]}"

    def main_url(self) -> str:
        """The relay's URL that a user of this server would set."""
        return self.url()

    def messages(self) -> Iterable[Path]:
        """The files of what it has accepted and stored; a Maildir's unless a server does it otherwise."""
        return self.mail.glob("*/new/*")

    def stored(self) -> Counter[str]:
        """How often it has accepted each Message-ID.

        A server that is killed may store what it accepted once a second time: its own doing, known by its own id in
        the topmost `Received`.
        """
        return Counter(message_id for message_id, _ in set(self._accepted()))

    def _accepted(self) -> Iterator[tuple[str, str]]:
        for file in self.messages():
            try:
                head = re.sub(rb"\n[ \t]+", b" ", file.read_bytes().partition(b"\n\n")[0])
            except FileNotFoundError:
                # Moved on meanwhile; who calls looks again.
                continue
            if found := _MESSAGE_ID.search(head):
                received = _RECEIVED_ID.search(head)
                yield found[1].decode(), received[1].decode() if received else file.name

    def queue(self) -> Iterable[Path]:
        """The files of what it has accepted and has yet to store."""
        return ()

    def wait_until_stored(self) -> None:
        """Waits until its queue is empty: what it has accepted lies where it belongs."""
        wait_until(lambda: not list(self.queue()), timeout=120, what="the queue to be empty", state=self.log)

    def log(self) -> str:
        """The end of what it has logged, for the message of a failure."""
        logs = [
            path.read_text(errors="replace")[-3000:]
            for path in sorted(self.machine.path("/var/log").glob("*"))
            if path.is_file()
        ]
        return "\n".join([self.machine.output[-3000:], *logs])

    def __enter__(self) -> Self:
        try:
            self.configure()
            self.start()
        except BaseException:
            self.machine.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.machine.kill()


def files_below(*folders: Path) -> Iterator[Path]:
    """The files in folders that a server works in meanwhile."""
    for folder in folders:
        for place, _, names in os.walk(folder):
            yield from (Path(place) / name for name in names)


def listening() -> set[int]:
    """The ports of 127.0.0.1 that somebody listens on; looked up, for a server counts connections."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    return {int(row[1].partition(":")[2], 16) for row in rows if row[3] == "0A" and row[1].startswith("0100007F")}
