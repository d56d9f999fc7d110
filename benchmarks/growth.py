"""Does it slow down as it grows? A backlog in a small database, and a long one in a large one, on one server.

The large one has emails scheduled for later, each to a user of its own, and a ledger of those that are long finished.
While its backlog is delivered, one user after another is cleared, in turns with a plain INSERT of one short row and
with a SELECT of nothing: that is what a commit of anything costs beside it, and what a question does.

Run: python benchmarks/growth.py (it takes some 4 GB of disk)
"""

import argparse
import statistics
import sys
import threading
import time
from pathlib import Path

import psycopg2
from psycopg2 import extensions

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.site import (  # noqa: E402 - the path comes first
    Bar,
    bars_table,
    execute,
    finished,
    fresh_database,
    machine,
    migrated,
    now,
    percentile,
    running,
    schedule,
    seconds_to_last,
    server,
    sink,
    table,
    wait_for,
)
from benchmarks.usage import largest_megabytes  # noqa: E402
from models.database.connections import UNLIMITED, Database  # noqa: E402

LATER = """
    WITH item AS (
        INSERT INTO duepost.item (id, kind, scheduled_at, due_at)
        SELECT nextval('duepost.scheduled_email_id_seq'), 'reminder', due, due
        FROM generate_series(1, %(count)s) AS i, LATERAL (
            SELECT now() + interval '1 day' + i * interval '1 s' AS due
        ) AS each
        RETURNING id, due_at
    ), email AS (
        INSERT INTO duepost.email (item_id, message_id_header, date_header, subject, body_text)
        SELECT id, '<' || gen_random_uuid() || '@example.com>', due_at, 'Later', 'Text' FROM item
    )
    INSERT INTO duepost.scheduled_email_user (email_id, user_id)
    SELECT id, 'user-' || row_number() OVER () FROM item
"""

LEDGER = """
    INSERT INTO duepost.delivery (
        email_id, kind, outcome, address, code, reply, attempts, unknowns, scheduled_at, finished_at, message_id_header
    )
    SELECT -i, 'digest', 'sent', 'a' || i || '@example.com', 250, '2.0.0 ok', 1, 0, moment, moment,
           '<' || md5(i::text) || '@example.com>'
    FROM generate_series(1, %(count)s) AS i, LATERAL (
        SELECT now() - interval '1 s' * i / 100 - interval '1 hour' AS moment
    ) AS each
"""

TENTHS = """
    SELECT count(*) / extract(epoch FROM max(finished_at) - lag(max(finished_at), 1, %(begun)s) OVER (ORDER BY tenth))
    FROM (
        SELECT finished_at, ntile(10) OVER (ORDER BY finished_at) AS tenth
        FROM duepost.delivery
        WHERE finished_at > %(begun)s AND outcome = 'sent'
    ) AS each
    GROUP BY tenth
    ORDER BY tenth
"""

#: Seconds between two statements.
CLEAR_INTERVAL = 0.02


class Clearing(threading.Thread):
    """An application that clears one user after another, inserts a row after each, and asks for nothing.

    Attributes:
        clears: how long each clear took, in seconds, with its commit.
        inserts: the same of each INSERT.
        selects: the same of each SELECT.
    """

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.stopping = threading.Event()
        self.clears: list[float] = []
        self.inserts: list[float] = []
        self.selects: list[float] = []
        self._connection = psycopg2.connect(url)
        self._connection.autocommit = True

    def run(self) -> None:
        """Until it is stopped."""
        number = 0
        with self._connection.cursor() as cursor:
            cursor.execute("CREATE TABLE short (number integer)")
            while not self.stopping.is_set():
                number += 37
                clear = "SELECT receipt FROM duepost.clear_scheduled_emails(ARRAY[%s])"
                self.clears.append(self._seconds(cursor, clear, f"user-{number}"))
                assert cursor.fetchall() == [("cleared",)]
                self.inserts.append(self._seconds(cursor, "INSERT INTO short VALUES (%s)", number))
                self.selects.append(self._seconds(cursor, "SELECT %s", number))
        self._connection.close()

    def _seconds(self, cursor: extensions.cursor, statement: str, value: str | int) -> float:
        """How long a statement takes, a moment after the last one."""
        self.stopping.wait(CLEAR_INTERVAL)
        begun = time.perf_counter()
        cursor.execute(statement, (value,))
        return time.perf_counter() - begun


def main() -> None:
    """Measures both, and prints."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--small", type=int, default=20_000, help="emails that are due in the small database")
    options.add_argument("--due", type=int, default=200_000, help="emails that are due in the large one")
    options.add_argument("--later", type=int, default=1_000_000, help="emails for later in the large one")
    options.add_argument("--ledger", type=int, default=10_000_000, help="finished emails in the large one")
    options.add_argument("--connections", type=int, default=128, help="SMTP connections of all workers")
    given = options.parse_args()
    with server() as postgres, sink() as port:
        before = small(postgres.url, port, given)
        with fresh_database(postgres.url, "large") as url, migrated(url) as database:
            fill(database, given)
            pace, clearing, megabytes = large(database, port, given)
        after = small(postgres.url, port, given)
    yardstick = statistics.median([*before, *after])
    print(
        f"{given.due:,} emails due beside {given.later:,} for later and {given.ledger:,} finished ones; the small"
        f" database has {given.small:,} due, before and after. {machine()}\n"
    )
    print(table(
        ("emails/s",),
        {
            "small, median": [f"{yardstick:,.0f}"],
            "large, all": [f"{len(pace) / sum(1 / rate for rate in pace):,.0f}"],
            "large, slowest tenth": [f"{min(pace):,.0f}"],
        },
    ))  # fmt: skip
    bars = [
        Bar("rate of all in the large one, × the small one", 0.85, len(pace) / sum(1 / r for r in pace) / yardstick),
        Bar("clear of one user meanwhile, p99 in ms", 5, percentile(clearing.clears, 0.99) * 1000, at_most=True),
        Bar("MB of the larger worker process", 120, megabytes, at_most=True),
    ]
    print(f"\n{bars_table(bars)}")
    print(
        f"\n{len(clearing.clears):,} clears, and after each a plain INSERT of one row and a SELECT of nothing,"
        " committed as they are:\n"
    )
    print(table(
        ("median, ms", "p99, ms"),
        {
            "clear of one user": in_milliseconds(clearing.clears),
            "INSERT of one row": in_milliseconds(clearing.inserts),
            "SELECT of nothing": in_milliseconds(clearing.selects),
        },
    ))  # fmt: skip


def in_milliseconds(seconds: list[float]) -> list[str]:
    """Median and 99th percentile."""
    return [f"{statistics.median(seconds) * 1000:.1f}", f"{percentile(seconds, 0.99) * 1000:.1f}"]


def small(url: str, port: int, given: argparse.Namespace) -> list[float]:
    """Emails a second of three backlogs, each in a fresh database."""
    rates = []
    for _ in range(3):
        with fresh_database(url, "small") as own, migrated(own) as database:
            with running(database, port, given.connections):
                schedule(database, given.small)
                begun = now(database)
                wait_for(lambda database=database: finished(database, "epoch") == given.small, pause=0.5)  # type: ignore[misc]
            rates.append(given.small / seconds_to_last(database, begun))
            print(f"small: {rates[-1]:.0f}/s", file=sys.stderr)
    return rates


def fill(database: Database, given: argparse.Namespace) -> None:
    """What is for later, and what is long finished."""
    for statement, count in ((LATER, given.later), (LEDGER, given.ledger)):
        begun = time.monotonic()
        with database.transaction(UNLIMITED) as cursor:
            cursor.execute("SET LOCAL synchronous_commit = off")
            cursor.execute(statement, {"count": count})
        print(f"{count:,} rows in {time.monotonic() - begun:.0f} s", file=sys.stderr)
    # Rows do not come by the million at once: what is old has long been vacuumed.
    execute(database.url, "VACUUM (FREEZE, ANALYZE)", "CHECKPOINT")


def large(database: Database, port: int, given: argparse.Namespace) -> tuple[list[float], Clearing, float]:
    """Emails a second of each tenth of the backlog; what was cleared; MB of the larger worker process."""
    clearing = Clearing(database.url)
    with running(database, port, given.connections) as processes:
        schedule(database, given.due)
        begun = now(database)
        clearing.start()
        wait_for(lambda: finished_of(database, begun) >= given.due, pause=2)
        clearing.stopping.set()
        clearing.join()
        megabytes = largest_megabytes(processes.workers.pid)
    tenths = database.execute(TENTHS, {"begun": begun}, limits=UNLIMITED)
    pace = [float(str(rate)) for (rate,) in tenths]
    print(f"large, by tenths: {', '.join(f'{rate:.0f}' for rate in pace)}", file=sys.stderr)
    return pace, clearing, megabytes


def finished_of(database: Database, since: object) -> int:
    """How many of the backlog are sent; those that are cleared meanwhile do not count."""
    [(count,)] = database.execute(
        "SELECT count(*) FROM duepost.delivery WHERE finished_at > %(since)s AND outcome = 'sent'", {"since": since}
    )
    return int(str(count))


if __name__ == "__main__":
    main()
