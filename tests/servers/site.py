"""A Duepost of a test's own, as a user runs it, against a real mail server."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.postgres import ask
from tests.processes import Watch, Workers, duepost
from tests.servers.server import Server
from tests.waiting import wait_until


@dataclass
class Site:
    """A database, the settings of its workers, and a folder for their logs.

    Attributes:
        url: of the migrated database.
        env: what workers, ticks and commands are run with.
        folder: of the logs.
    """

    url: str
    env: dict[str, str]
    folder: Path

    def query(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        """Asks the database, as anyone could."""
        return ask(self.url, statement, *parameters)

    def schedule(self, count: int = 1, *, to: str = "person", domain: str = "example.com", **more: str) -> None:
        """Schedules plain emails to `person-1@example.com` and so on; `more` are further arguments of the function."""
        arguments = {"subject": "Hello", "body_text": "World", **more}
        extra = "".join(f", {name} => %s" for name in arguments)
        self.query(
            f"SELECT duepost.schedule_email(kind => 'welcome', address => %s || '-' || i || '@' || %s{extra})"
            f" FROM generate_series(1, {count}) AS i",
            to,
            domain,
            *arguments.values(),
        )

    @contextmanager
    def running(self, processes: int = 1, *, connections: int = 8) -> Iterator[Workers]:
        """Workers and a tick; both end with the block."""
        with ExitStack() as stack:
            number = len(list(self.folder.glob("workers*")))
            env = {**self.env, "DUEPOST_SMTP_CONNECTIONS": str(connections)}
            stack.enter_context(Watch(env, self.folder / f"watch-{number}.log"))
            yield stack.enter_context(Workers(env, self.folder / f"workers-{number}.log", processes=processes))

    def outcomes(self) -> dict[str, int]:
        """The ledger, by outcome."""
        return dict(self.query("SELECT outcome, count(*) FROM duepost.delivery GROUP BY outcome"))  # type: ignore[arg-type]

    def by_address(self) -> dict[str, str]:
        """The ledger, by address."""
        rows = self.query("SELECT address, outcome FROM duepost.delivery")
        return {str(address): str(outcome) for address, outcome in rows}

    def undeliverable(self) -> set[str]:
        """The addresses that were given up."""
        rows = self.query("SELECT address FROM duepost.delivery WHERE outcome = 'undeliverable'")
        return {str(address) for (address,) in rows}

    def suppressed(self) -> set[str]:
        """The addresses that nothing is sent to any more."""
        return {str(address) for (address,) in self.query("SELECT address FROM duepost.suppression")}

    def pending(self) -> dict[str, int]:
        """What is not finished, by state."""
        return dict(self.query("SELECT state, count(*) FROM duepost.scheduled_email GROUP BY state"))  # type: ignore[arg-type]

    def tried(self) -> int:
        """How many attempts have been made."""
        [(count,)] = self.query("SELECT count(*) FROM duepost.attempt")
        return int(str(count))

    def circuit_reason(self) -> str:
        """Why nothing is sent; an empty text where the circuit is closed."""
        rows = self.query("SELECT circuit_reason FROM duepost.route WHERE circuit_open")
        return str(rows[0][0]) if rows else ""

    def hurry(self) -> None:
        """Moves time: what waits is due, and so is a probe."""
        self.query("UPDATE duepost.route SET probe_at = now() WHERE circuit_open")
        self.query("UPDATE duepost.scheduled_email SET due_at = now() WHERE state = 'scheduled' AND due_at > now()")

    def wait_until_finished(self, timeout: float = 180, *, hurry: bool = False) -> None:
        """Until nothing is pending; in a hurry, time is moved while it waits."""

        def finished() -> bool:
            if hurry:
                self.hurry()
            return not self.pending()

        wait_until(finished, timeout=timeout, what="all emails to be finished", state=self.report)

    def report(self) -> str:
        """How things stand, for the message of a failure."""
        attempts = self.query("SELECT verdict, phase, reply, count(*) FROM duepost.attempt GROUP BY 1, 2, 3 LIMIT 20")
        return f"{self.outcomes()} {self.pending()} circuit: {self.circuit_reason()!r} {attempts} {self.logs()[-2000:]}"

    def logs(self) -> str:
        """All that the processes have said."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    def doctor(self, check: str = "relay") -> tuple[str, str]:
        """What `duepost doctor` says of one thing: ok, warning or failed, and why."""
        said = duepost("doctor", "--json", env=self.env)
        [found] = [finding for finding in json.loads(said.stdout) if finding["check"] == check]
        return found["health"], found["detail"]

    def sent(self) -> dict[str, bool]:
        """The Message-IDs that the ledger calls sent, and whether it names each as possibly doubled."""
        rows = self.query("SELECT message_id_header, unknowns > 0 FROM duepost.delivery WHERE outcome = 'sent'")
        return {str(header): bool(doubtful) for header, doubtful in rows}

    def stored(self, server: Server) -> Counter[str]:
        """How often the server has each email of ours that it was given, whatever the ledger says of it."""
        server.wait_until_stored()
        rows = self.query(
            "SELECT message_id_header FROM duepost.delivery UNION SELECT message_id_header FROM duepost.scheduled_email"
        )
        ours = {str(header) for (header,) in rows}
        return Counter({header: copies for header, copies in server.stored().items() if header in ours})


def assert_stored_once(site: Site, server: Server) -> None:
    """Each email that the ledger calls sent is in what the server stored, once; no other is."""
    copies = site.stored(server)
    sent = site.sent()
    assert set(sent) - set(copies) == set(), "called sent, and not there"
    assert set(copies) - set(sent) == set(), "there, and not called sent"
    assert {header: count for header, count in copies.items() if count > 1} == {}, "copies"


def assert_nothing_lost(site: Site, server: Server) -> None:
    """Each email that the ledger calls sent is there; what is there twice, the ledger names as doubtful."""
    copies = site.stored(server)
    sent = site.sent()
    assert set(sent) - set(copies) == set(), "called sent, and not there"
    twice = {header for header, count in copies.items() if count > 1}
    assert twice <= {header for header, doubtful in sent.items() if doubtful}, "only what was in doubt may be doubled"
    assert max(copies.values()) <= 2


@dataclass(frozen=True)
class Refusal:
    """What was seen of a site that a server did not let send.

    Attributes:
        site: goes on running.
        doctor: what the doctor said of the relay or, where that seemed well, of the delivery.
        reason: why the circuit was open; an empty text where it was closed.
        outcomes: the ledger.
        suppressed: addresses that would get no more mail.
    """

    site: Site
    doctor: tuple[str, str]
    reason: str
    outcomes: dict[str, int]
    suppressed: set[str]


#: How many emails `refused` schedules, to two domains.
REFUSED = 12


@contextmanager
def refused(sites: Mapping[str, Site], top: str = "com") -> Iterator[dict[str, Refusal]]:
    """Runs several sites at once, each with a few emails, and looks what a refusal does to them; they go on running.

    Each is looked at when its circuit is open, or else when all its emails were tried.

    Args:
        sites: by name.
        top: the top-level domain of the recipients, who are at two domains.
    """

    def look(site: Site) -> Refusal:
        wait_until(lambda: site.circuit_reason() or site.tried() >= REFUSED, timeout=60, state=site.report)
        doctor = site.doctor()
        if doctor[0] == "ok":
            doctor = site.doctor("delivery")
        return Refusal(site, doctor, site.circuit_reason(), site.outcomes(), site.suppressed())

    with ExitStack() as stack:
        for site in sites.values():
            site.schedule(REFUSED // 2, domain=f"example.{top}")
            site.schedule(REFUSED // 2, to="other", domain=f"far.example.{top}")
            stack.enter_context(site.running())
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(look, sites.values()))
        yield dict(zip(sites, found, strict=True))
