"""Real worker processes on a fresh database, a real tick, and a relay that does as it is told."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.http_servers import ScriptedServer
from tests.postgres import ask
from tests.processes import ROOT, Watch, Workers, environment
from tests.relays import ScriptedRelay
from tests.waiting import wait_until

#: What webhooks are signed with.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass
class Site:
    """Everything that runs, seen from outside: SQL, processes, SMTP."""

    url: str
    relay: ScriptedRelay
    env: dict[str, str]
    folder: Path

    def query(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        """Asks the database, as anyone could."""
        return ask(self.url, statement, *parameters)

    def schedule(self, count: int = 1, *, prefix: str = "person", **more: str) -> list[int]:
        """Schedules plain emails to `person-1@example.com` and so on."""
        extra = "".join(f", {name} => {value}" for name, value in more.items())
        rows = self.query(
            f"SELECT duepost.schedule_email(kind => 'welcome', address => '{prefix}-' || i || '@example.com',"
            f" subject => 'Hello ' || i, body_text => 'World' {extra}) FROM generate_series(1, {count}) AS i"
        )
        return [int(str(row[0])) for row in rows]

    def set_webhook(self, name: str, url: str) -> None:
        """Registers an endpoint on a server of this machine."""
        self.query(
            "SELECT duepost.set_endpoint(name => %s, format => 'webhook', url => %s, secret => %s,"
            " allow_private => true)",
            name, url, SECRET,
        )  # fmt: skip

    def schedule_messages(self, endpoint: str, count: int = 1) -> list[int]:
        """Schedules messages to an endpoint."""
        rows = self.query(
            "SELECT duepost.schedule_message(kind => 'event', endpoint => %s, payload => jsonb_build_object('n', n))"
            " FROM generate_series(1, %s) AS n",
            endpoint, count,
        )  # fmt: skip
        return [int(str(row[0])) for row in rows]

    def outcomes(self) -> dict[str, int]:
        """The ledger, by outcome."""
        return dict(self.query("SELECT outcome, count(*) FROM duepost.delivery GROUP BY outcome"))  # type: ignore[arg-type]

    def pending(self) -> dict[str, int]:
        """What is not finished, by state."""
        return dict(self.query("SELECT state, count(*) FROM duepost.scheduled_email GROUP BY state"))  # type: ignore[arg-type]

    def wait_until_finished(self, count: int, timeout: float = 60) -> None:
        """Until that many emails are in the ledger and nothing is pending."""
        wait_until(
            lambda: not self.pending() and sum(self.outcomes().values()) == count,
            timeout=timeout,
            what=f"{count} emails to be finished",
            state=lambda: (self.outcomes(), self.pending(), self.logs()[-3000:]),
        )

    def received(self) -> list[str]:
        """Each recipient of each message that the relay took."""
        return [recipient for message in self.relay.messages for recipient in message.recipients]

    def logs(self) -> str:
        """All that the processes have said."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    def workers(
        self, name: str = "workers", *, processes: int = 1, threads: int = 4, code: Path = ROOT, **more: str
    ) -> Workers:
        """Starts `dramatiq actors`, of this code or of a release's."""
        log = self.folder / f"{name}.log"
        return Workers({**self.env, **more}, log, processes=processes, threads=threads, code=code)

    def watch(self, name: str = "watch", *, code: Path = ROOT) -> Watch:
        """Starts `duepost trigger --watch`."""
        return Watch(self.env, self.folder / f"{name}.log", code=code)


@pytest.fixture
def relay() -> Iterator[ScriptedRelay]:
    """A relay that accepts everything, until it is told something else."""
    with ScriptedRelay() as relay:
        yield relay


@pytest.fixture
def hook() -> Iterator[ScriptedServer]:
    """A server that takes every request, until it is told something else."""
    with ScriptedServer() as hook:
        yield hook


@pytest.fixture
def site(url: str, relay: ScriptedRelay, tmp_path: Path) -> Site:
    """A fresh site; nothing runs yet."""
    folders = {"DUEPOST_TEMPLATES": str(tmp_path), "DUEPOST_STATE_DIR": str(tmp_path / "state")}
    return Site(url, relay, environment(url, relay.url, **folders), tmp_path)


@pytest.fixture
def running_site(site: Site) -> Iterator[Site]:
    """A site with a worker process and a watch."""
    with site.workers(), site.watch():
        yield site


Start = Callable[[], Workers]
