"""What all peers do alike. No dependency: it runs in each peer's own environment."""

import sys
from dataclasses import dataclass
from email.mime.text import MIMEText
from urllib.parse import parse_qs, unquote, urlsplit

SENDER = "a@example.com"
BODY = "All work and no play makes a dull benchmark.\n" * 45


@dataclass(frozen=True)
class Turn:
    """What a turn is given: a fresh database, the sink's port, how many emails, over how many connections."""

    url: str
    port: int
    emails: int
    connections: int

    @classmethod
    def given(cls) -> "Turn":
        """From the command line."""
        url, port, emails, connections = sys.argv[1:5]
        return cls(url, int(port), int(emails), int(connections))

    @property
    def addresses(self) -> list[str]:
        """To whom: each once."""
        return [f"a{number}@example.com" for number in range(self.emails)]

    def share(self, processes: int) -> int:
        """Connections of each of several processes."""
        return max(1, self.connections // processes)


def begin() -> None:
    """Everything is prepared; waits for the word. From here on the clock runs, until this process ends."""
    print("ready", flush=True)
    sys.stdin.readline()


def content(to: str) -> bytes:
    """An email as the standard library makes it, the cheapest way."""
    message = MIMEText(BODY)
    message["Subject"], message["From"], message["To"] = "Benchmark", SENDER, to
    return message.as_bytes()


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
