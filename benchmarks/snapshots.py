"""What does a forgotten transaction cost? Duepost with and without old snapshots held open, in turns, in one run.

There are two databases on one server, with workers and a watch for each. In one of them a repeatable-read snapshot, a
writer that idles and a replication slot are held. Long backlogs are delivered in both, so that in one of them all that
is done stays in the tables and their indexes. Then, with everything still held, the rate of a backlog and the lateness
of emails that fall due one by one are measured, in one and the other by turns.

Run: python benchmarks/snapshots.py --minutes 3
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
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
    fresh_database,
    machine,
    migrated,
    now,
    running,
    schedule,
    seconds_to_last,
    server,
    sink,
    table,
    wait_for,
)
from models.database.connections import Database  # noqa: E402

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
    options.add_argument(
        "--minutes", type=float, default=3, help="how long they are held under load before it is measured"
    )
    options.add_argument("--emails", type=int, default=3000, help="emails of a measured backlog")
    options.add_argument("--turns", type=int, default=5, help="turns of each; medians are shown")
    given = options.parse_args()
    with (
        server() as postgres,
        sink() as port,
        fresh_database(postgres.url, "nothing_held") as free_url,
        fresh_database(postgres.url, "held") as held_url,
        migrated(free_url) as free,
        migrated(held_url) as old,
        running(free, port),
        running(old, port),
        held(held_url),
    ):
        delivered = deliver_for((free, old), given.minutes * 60)
        turns = [(measured(free, given.emails), measured(old, given.emails)) for _ in range(given.turns)]
        report([each[0] for each in turns], [each[1] for each in turns], delivered, given.minutes)


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
    scheduled = now(database)
    wait_for(lambda: finished(database, begun) == count)
    return seconds_to_last(database, scheduled)


def deliver_for(databases: Sequence[Database], seconds: float) -> int:
    """One backlog after the other in each, for so long in all; gives how many emails each has delivered."""
    until = time.monotonic() + seconds
    delivered = 0
    while time.monotonic() < until:
        for database in databases:
            deliver(database, 2000)
        delivered += 2000
    return delivered


def measured(database: Database, emails: int) -> Measured:
    """The rate of a backlog, and the lateness of emails one by one."""
    return Measured(emails / deliver(database, emails), *lateness(database))


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


def report(free: Sequence[Measured], old: Sequence[Measured], delivered: int, minutes: float) -> None:
    """The table, in Markdown."""
    rows = {
        name: Measured(*(statistics.median(values) for values in zip(*turns, strict=True)))
        for name, turns in (("nothing held", free), ("held", old))
    }
    print(
        f"A snapshot, a writer and a slot held for {minutes:g} min and {delivered:,} emails;"
        f" median of {len(free)} turns. {machine()}\n"
    )
    columns = ("emails/s", "lateness p50, ms", "lateness p99, ms")
    print(table(columns, {name: [f"{value:.0f}" for value in each] for name, each in rows.items()}))
    without, with_ = rows.values()
    bars = [
        Bar("rate, held ÷ nothing held", 0.75, with_.rate / without.rate),
        Bar("lateness p99, held ÷ nothing held", 1.25, with_.p99 / without.p99, at_most=True),
    ]
    print(f"\n{bars_table(bars)}")


if __name__ == "__main__":
    main()
