"""What does a forgotten transaction cost? Duepost with and without old snapshots held open, on one server, in one run.

First without: the rate of a backlog, and the lateness of emails that fall due one by one. Then a repeatable-read
snapshot, a writer that idles and a replication slot are held while a long backlog is delivered, so that all that is
done stays in the tables and their indexes; then the same two are measured again, with everything still held.

Run: python benchmarks/snapshots.py --minutes 3
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg2

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.site import (  # noqa: E402 - the path comes first
    BODY,
    Bar,
    bars_table,
    finished,
    machine,
    migrated,
    now,
    running,
    schedule,
    server,
    sink,
    table,
    wait_for,
)
from models.database import Database  # noqa: E402

#: Emails that fall due a second while lateness is measured, and for how many seconds.
PACE = 40
PACED_SECONDS = 20


class Measured(NamedTuple):
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
    with server() as postgres, migrated(postgres.url) as database, sink() as port, running(database, port):
        deliver(database, given.emails)
        without = measured(database, given)
        with held(database.url):
            delivered = deliver_for(database, given.minutes * 60)
            report(without, measured(database, given), delivered, given)


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
    schedule(database, count)
    started = time.monotonic()
    wait_for(lambda: finished(database, begun) == count)
    return time.monotonic() - started


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
    print(f"A snapshot, a writer and a slot held for {given.minutes:g} min and {delivered} emails. {machine()}\n")
    rows = {"nothing held": without, "held": with_}
    columns = ("emails/s", "lateness p50, ms", "lateness p99, ms")
    print(table(columns, {name: [f"{value:.0f}" for value in each] for name, each in rows.items()}))
    bars = [
        Bar("rate, held ÷ nothing held", 0.75, with_.rate / without.rate),
        Bar("lateness p99, held ÷ nothing held", 1.25, with_.p99 / without.p99, at_most=True),
    ]
    print(f"\n{bars_table(bars)}")


if __name__ == "__main__":
    main()
