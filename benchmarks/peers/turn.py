"""What all peers do alike. No dependency: it runs in each peer's own environment.

A peer is run as `python <name>_peer.py MODE URL PORT EMAILS CONNECTIONS BATCH PACE [OPTION]`. It prepares, prints
`ready`, and begins at a line on standard input. The modes:

- `drain`: stores the emails, then delivers until none is left, and ends.
- `resume`: stores nothing, and delivers what a killed run has left, the way its documentation says, until it is killed.
- `flow`: starts its workers, then stores the emails one by one, PACE a second, each call committed; prints each one's
  address and the moment before the call; goes on until it is killed.
"""

import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.mime.text import MIMEText
from email.utils import formatdate
from enum import StrEnum
from urllib.parse import parse_qs, unquote, urlsplit

SENDER = "a@example.com"
BODY = "All work and no play makes a dull benchmark.\n" * 45


class Mode(StrEnum):
    """What a run is for."""

    DRAIN = "drain"
    RESUME = "resume"
    FLOW = "flow"


@dataclass(frozen=True)
class Turn:
    """What a run is given.

    Attributes:
        mode: what it is for.
        url: of the database.
        port: of the sink.
        emails: how many.
        connections: SMTP connections of all processes together; 0 stands for whatever the peer does by default.
        batch: jobs or rows of one read; 0 stands for the peer's default.
        pace: emails a second of a flow.
        option: a variant of the peer, if it has any.
    """

    mode: Mode
    url: str
    port: int
    emails: int
    connections: int
    batch: int
    pace: float
    option: str

    @classmethod
    def given(cls) -> "Turn":
        """From the command line."""
        mode, url, port, emails, connections, batch, pace, *options = sys.argv[1:]
        return cls(Mode(mode), url, int(port), int(emails), int(connections), int(batch), float(pace), "".join(options))

    @property
    def addresses(self) -> list[str]:
        """To whom: each once."""
        return [f"a{number}@example.com" for number in range(self.emails)]

    @property
    def processes(self) -> int:
        """Two, one for each core; one where the peer's defaults are asked for."""
        return 2 if self.connections else 1

    def share(self, default: int) -> int:
        """Connections of each process; the default where none are asked for."""
        return max(1, self.connections // self.processes) if self.connections else default


def begin() -> None:
    """Everything is prepared; waits for the word. From here on the clock runs, until this process ends."""
    print("ready", flush=True)
    sys.stdin.readline()


def flow(turn: Turn, store: Callable[[str], None]) -> None:
    """Stores emails one by one at the turn's pace, at moments that keep no step with anybody's polling; never ends."""
    chance = random.Random(1)
    begin()
    begun = time.monotonic()
    for number, to in enumerate(turn.addresses):
        time.sleep(max(0.0, begun + (number + chance.random()) / turn.pace - time.monotonic()))
        moment = time.time()
        store(to)
        print(f"{to} {moment}", flush=True)
    while True:
        time.sleep(60)


def content(to: str) -> bytes:
    """An email as the standard library makes it, the cheapest way."""
    message = MIMEText(BODY)
    message["Subject"], message["From"], message["To"] = "Benchmark", SENDER, to
    return message.as_bytes()


HEADERS = (
    f"From: {SENDER}\r\nTo: {{to}}\r\nSubject: Benchmark\r\nDate: {{date}}\r\nMessage-ID: <{{to}}>\r\n"
    'MIME-Version: 1.0\r\nContent-Type: text/plain; charset="us-ascii"\r\nContent-Transfer-Encoding: 7bit\r\n\r\n'
)

#: The body as it goes over the wire: CRLF, and what begins with a dot has one more; then the dot that ends it.
WIRE_BODY = BODY.replace("\n", "\r\n").replace("\r\n.", "\r\n..").encode() + b".\r\n"


def spliced(to: str) -> bytes:
    """An email as it goes over the wire, from headers that are made once, the dot included."""
    return HEADERS.format(to=to, date=formatdate()).encode() + WIRE_BODY


def database(turn: Turn) -> dict[str, str]:
    """The database as Django wants it said; the host may be a socket's folder."""
    url = urlsplit(turn.url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": url.path.lstrip("/"),
        "USER": unquote(url.username or ""),
        "PASSWORD": unquote(url.password or ""),
        "HOST": parse_qs(url.query).get("host", [""])[0] or url.hostname or "",
        "PORT": str(url.port or ""),
    }
