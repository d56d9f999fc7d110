"""What the benchmarks stand on: a server, a sink, Duepost's processes, and a few words to ask the database."""

import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2
from psycopg2.extensions import parse_dsn

from actors.queue.schema import queue_schema
from benchmarks.usage import kill
from duepost.embedded import EmbeddedPostgres
from models.database.connections import Database
from models.database.migrate import migrate

ROOT = Path(__file__).parent.parent

#: A text of 2 KB.
BODY = "All work and no play makes a dull benchmark.\n" * 45

#: Duepost's worker processes; the threads of each are as many as Dramatiq has without being asked.
PROCESSES = 2

SCHEDULE = """
    SELECT count(duepost.schedule_email(
        kind => %(kind)s, address => 'a' || i || '@example.com', subject => 'Benchmark', body_text => %(body)s
    ))
    FROM generate_series(1, %(count)s) AS i
"""


@dataclass(frozen=True, slots=True)
class Server:
    """The embedded PostgreSQL server, with fsync and synchronous_commit on."""

    url: str
    postgres: EmbeddedPostgres

    @property
    def postmaster(self) -> int:
        """Its process id."""
        return int((self.postgres.folder / "postmaster.pid").read_text().split()[0])

    def kill(self) -> None:
        """All its processes at once, with SIGKILL."""
        kill(self.postmaster)


@contextmanager
def server() -> Iterator[Server]:
    """The embedded one, new and empty."""
    with tempfile.TemporaryDirectory(prefix="duepost-bench-") as folder:
        Path(folder).chmod(0o755)
        postgres = EmbeddedPostgres(Path(folder) / "postgres")
        url = postgres.start()
        try:
            yield Server(url, postgres)
        finally:
            postgres.stop()


@contextmanager
def fresh_database(url: str, name: str) -> Iterator[str]:
    """A database of its own on a server; gives its URL."""
    default = parse_dsn(url)["dbname"]
    execute(url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)', f'CREATE DATABASE "{name}"', "CHECKPOINT")
    yield url.replace(f"/{default}?", f"/{name}?", 1)
    execute(url, f'DROP DATABASE "{name}" WITH (FORCE)')


def execute(url: str, *statements: str) -> None:
    """Statements that may not be in a transaction."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        for statement in statements:
            cursor.execute(statement)


@contextmanager
def migrated(url: str) -> Iterator[Database]:
    """A database with Duepost's schema."""
    database = Database(url)
    list(migrate(database, queue_schema=queue_schema()))
    try:
        yield database
    finally:
        database.close()


@contextmanager
def sink(latency: float = 0, record: Path | None = None) -> Iterator[int]:
    """The sink, in a process of its own, that many milliseconds away; gives its port.

    Args:
        latency: in milliseconds, for each round trip.
        record: a file for a line for each email: when it began, when it was taken, and to whom it goes.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = [str(port), str(latency), *([str(record)] if record else [])]
    process = subprocess.Popen([sys.executable, str(ROOT / "benchmarks" / "sink.py"), *arguments])
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


@dataclass(frozen=True, slots=True)
class Running:
    """Workers and a watch, each with all below it in a process group of its own."""

    workers: subprocess.Popen[bytes]
    watch: subprocess.Popen[bytes]

    def stop(self) -> None:
        """In order."""
        for process in (self.watch, self.workers):
            process.terminate()
            process.wait()

    def kill(self) -> None:
        """All at once, with SIGKILL."""
        for process in (self.watch, self.workers):
            os.killpg(process.pid, signal.SIGKILL)
        for process in (self.watch, self.workers):
            process.wait()


def start(url: str, port: int, state: Path, connections: int = 0, ahead: bool = False) -> Running:
    """Starts them; does not wait.

    Args:
        url: the database.
        port: of the sink.
        state: a folder for the workers' journals.
        connections: SMTP connections of all processes together; 0 stands for the default of each.
        ahead: whether the relay's URL asks for the next envelope to go out with the dot (`?pipelining=ahead`).
    """
    environment = {
        **os.environ,
        "DUEPOST_DATABASE_URL": url,
        "DUEPOST_SMTP_URL": f"smtp://127.0.0.1:{port}{'?pipelining=ahead' if ahead else ''}",
        "DUEPOST_FROM": "a@example.com",
        "DUEPOST_STATE_DIR": str(state),
        **({"DUEPOST_SMTP_CONNECTIONS": str(connections // PROCESSES)} if connections else {}),
    }
    workers, watch = (
        subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment,
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for command in (
            ["dramatiq", "actors", "--processes", str(PROCESSES)],
            ["duepost", "trigger", "--watch"],
        )
    )
    return Running(workers, watch)


@contextmanager
def running(
    database: Database, port: int, connections: int = 0, ahead: bool = False, state: Path | None = None
) -> Iterator[Running]:
    """Workers and a watch, up and idle; the arguments are those of `start`, with a folder of their own without one."""
    with ExitStack() as stack:
        folder = state or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="duepost-bench-state-")))
        processes = start(database.url, port, folder, connections, ahead)
        stack.callback(processes.stop)
        wait_for(
            lambda: database.execute("SELECT count(*) FROM duepost.worker WHERE gone_at IS NULL") == [(PROCESSES,)]
        )
        wait_for(lambda: database.execute("SELECT checked_in_at IS NOT NULL FROM duepost.control") == [(True,)])
        yield processes


def schedule(database: Database, count: int, kind: str = "benchmark") -> None:
    """Emails that are due now, in one transaction."""
    database.execute(SCHEDULE, {"kind": kind, "count": count, "body": BODY})


def now(database: Database) -> object:
    """The database's time."""
    [(moment,)] = database.execute("SELECT clock_timestamp()")
    return moment


def finished(database: Database, since: object) -> int:
    """How many emails are finished. In the ledger nothing is ever dead: this costs the same whatever is held."""
    [(count,)] = database.execute(
        "SELECT count(*) FROM duepost.delivery WHERE finished_at > %(since)s", {"since": since}
    )
    return int(str(count))


def seconds_to_last(database: Database, since: object) -> float:
    """From a moment to the last row of the ledger."""
    [(seconds,)] = database.execute(
        "SELECT extract(epoch FROM max(finished_at) - %(since)s)::float FROM duepost.delivery", {"since": since}
    )
    return float(str(seconds))


def wait_for(look: Callable[[], bool], pause: float = 0.1) -> None:
    """Looks again after that many seconds."""
    while not look():
        time.sleep(pause)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that so large a share of all is not above."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


@dataclass(frozen=True, slots=True)
class Bar:
    """What is to be reached, and what was."""

    what: str
    asked: float
    found: float
    at_most: bool = False

    def __str__(self) -> str:
        is_met = self.found <= self.asked if self.at_most else self.found >= self.asked
        relation = "at most" if self.at_most else "at least"
        return f"| {self.what} | {relation} {self.asked:g} | {self.found:.2f} | {'yes' if is_met else '**no**'} |"


def bars_table(bars: Sequence[Bar]) -> str:
    """Bars in Markdown."""
    return "\n".join(["| bar | asked | measured | met |", "| --- | ---: | ---: | --- |", *map(str, bars)])


def table(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """Named rows in Markdown."""
    head = ["| | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    return "\n".join([*head, *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items())])


def machine() -> str:
    """What the numbers were measured on."""
    return (
        f"{os.cpu_count()} CPUs, {platform.system()} {platform.machine()}, Python {platform.python_version()},"
        " embedded PostgreSQL with fsync and synchronous_commit on."
    )
