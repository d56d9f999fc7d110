"""What does a forgotten transaction cost? Duepost with and without old snapshots held open, on one server, in one run.

First without: the rate of a backlog, and the lateness of emails that fall due one by one. Then a repeatable-read
snapshot, a writer that idles and a replication slot are held while a long backlog is delivered, so that all that is
done stays in the tables and their indexes; then the same two are measured again, with everything still held.

Run: python benchmarks/snapshots.py --minutes 3
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from actors.broker_schema import queue_schema  # noqa: E402 - the path comes first
from benchmarks.delivery import BODY, sink, wait_for  # noqa: E402
from duepost.embedded import EmbeddedPostgres  # noqa: E402
from models.database import Database  # noqa: E402
from models.migrate import migrate  # noqa: E402

#: Emails that fall due a second while lateness is measured, and for how many seconds.
PACE = 40
PACED_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Measured:
    """Emails a second of a backlog; lateness of emails one by one, from due to sent, in milliseconds."""

    rate: float
    p50: float
    p99: float


def main() -> None:
    """Measures both, and prints the table."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--minutes", type=float, default=3, help="how long the snapshots are held under load")
    options.add_argument("--emails", type=int, default=3000, help="emails of a measured backlog")
    options.add_argument("--turns", type=int, default=3, help="turns of each; medians are shown")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="duepost-bench-") as folder, ExitStack() as stack:
        Path(folder).chmod(0o755)
        postgres = EmbeddedPostgres(Path(folder) / "postgres")
        database = Database(postgres.start())
        stack.callback(postgres.stop)
        list(migrate(database, queue_schema=queue_schema()))
        port = stack.enter_context(sink())
        stack.enter_context(running(database.url, port))
        wait_for(lambda: database.execute("SELECT count(*) FROM duepost.worker WHERE gone_at IS NULL")[0][0] == 2)
        deliver(database, given.emails)
        without = measured(database, given)
        stack.enter_context(held(database.url))
        delivered = deliver_for(database, given.minutes * 60)
        report(without, measured(database, given), delivered, given)
        database.close()


@contextmanager
def running(url: str, port: int) -> Iterator[None]:
    """Workers and a watch."""
    env = {
        **os.environ,
        "DUEPOST_DATABASE_URL": url,
        "DUEPOST_SMTP_URL": f"smtp://127.0.0.1:{port}",
        "DUEPOST_FROM": "a@example.com",
    }
    commands = [
        ["-m", "dramatiq", "actors", "--processes", "2", "--threads", "8"],
        ["-m", "duepost", "trigger", "--watch"],
    ]
    processes = [
        subprocess.Popen([sys.executable, *command], env=env, cwd=ROOT, stderr=subprocess.DEVNULL)
        for command in commands
    ]
    yield
    for process in processes:
        process.terminate()
        process.wait()


@contextmanager
def held(url: str) -> Iterator[None]:
    """A reader and a writer that idle in their transactions, and a slot that nobody reads from."""
    with closing(psycopg2.connect(url)) as reader, closing(psycopg2.connect(url)) as writer:
        reader.set_session(isolation_level="REPEATABLE READ")
        with reader.cursor() as reading, writer.cursor() as writing:
            writing.execute("INSERT INTO duepost.recipient (user_id, address) VALUES ('idle', 'idle@example.com')")
            reading.execute("SELECT count(*) FROM duepost.scheduled_email")
            with closing(psycopg2.connect(url)) as other, other.cursor() as cursor:
                cursor.execute("SELECT pg_create_physical_replication_slot('forgotten', true)")
                other.commit()
            yield
    with closing(psycopg2.connect(url)) as other, other.cursor() as cursor:
        cursor.execute("SELECT pg_drop_replication_slot('forgotten')")
        other.commit()


def deliver(database: Database, count: int) -> float:
    """Delivers a backlog; gives the seconds."""
    begun = now(database)
    database.execute(
        "SELECT count(duepost.schedule_email(kind => 'backlog', address => 'a' || i || '@example.com',"
        " subject => 'Benchmark', body_text => %(body)s)) FROM generate_series(1, %(count)s) AS i",
        {"body": BODY, "count": count},
    )
    started = time.monotonic()
    wait_for(lambda: finished(database, begun) == count)
    return time.monotonic() - started


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


def deliver_for(database: Database, seconds: float) -> int:
    """One backlog after the other for so long; gives how many emails that were."""
    until = time.monotonic() + seconds
    delivered = 0
    while time.monotonic() < until:
        deliver(database, 2000)
        delivered += 2000
    return delivered


def measured(database: Database, given: argparse.Namespace) -> Measured:
    """The rate of backlogs, and the lateness of emails one by one."""
    rates = [given.emails / deliver(database, given.emails) for _ in range(given.turns)]
    latenesses = [lateness(database) for _ in range(given.turns)]
    return Measured(
        statistics.median(rates),
        statistics.median(each[0] for each in latenesses),
        statistics.median(each[1] for each in latenesses),
    )


def lateness(database: Database) -> tuple[float, float]:
    """The median and the 99th percentile of emails that fall due one by one, in milliseconds."""
    count = PACE * PACED_SECONDS
    begun = now(database)
    database.execute(
        "SELECT count(duepost.schedule_email(kind => 'paced', address => 'a' || i || '@example.com',"
        " subject => 'Benchmark', body_text => %(body)s,"
        " scheduled_at => now() + interval '1 s' + i * make_interval(secs => 1.0 / %(pace)s)))"
        " FROM generate_series(1, %(count)s) AS i",
        {"body": BODY, "count": count, "pace": PACE},
    )
    wait_for(lambda: finished(database, begun) == count)
    [(p50, p99)] = database.execute(
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY late) * 1000,"
        " percentile_cont(0.99) WITHIN GROUP (ORDER BY late) * 1000"
        " FROM (SELECT extract(epoch FROM finished_at - scheduled_at) AS late FROM duepost.delivery"
        "       WHERE finished_at > %(begun)s) AS each",
        {"begun": begun},
    )
    print(f"p50 {p50:.0f} ms, p99 {p99:.0f} ms", file=sys.stderr)
    return float(str(p50)), float(str(p99))


def report(without: Measured, with_: Measured, delivered: int, given: argparse.Namespace) -> None:
    """The table, in Markdown."""
    print(f"A snapshot, a writer and a slot held for {given.minutes:g} min and {delivered} emails;")
    print(f"{os.cpu_count()} CPUs, {platform.system()} {platform.machine()}, Python {platform.python_version()}\n")
    print("| | emails/s | lateness p50, ms | lateness p99, ms |\n| --- | ---: | ---: | ---: |")
    for name, each in (("nothing held", without), ("held", with_)):
        print(f"| {name} | {each.rate:.0f} | {each.p50:.0f} | {each.p99:.0f} |")
    print(
        f"| ratio | {with_.rate / without.rate:.2f} | {with_.p50 / without.p50:.2f} | {with_.p99 / without.p99:.2f} |"
    )


if __name__ == "__main__":
    main()
