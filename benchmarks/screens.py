"""How long do the console's screens take over a long backlog and a long ledger?

Each screen is asked for over HTTP, as a browser does, by its own page; a person has a hundred finished emails.

Run: python benchmarks/screens.py (it takes some 40 GB of disk, and half an hour to fill)
"""

import argparse
import http.client
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.site import (  # noqa: E402 - the path comes first
    Bar,
    bars_table,
    execute,
    fresh_database,
    machine,
    migrated,
    server,
    table,
    wait_for,
)
from models.database.connections import UNLIMITED, Database  # noqa: E402

#: Finished emails of each person.
OF_ONE = 100

#: Finished emails in a second.
A_SECOND = 10

PENDING = """
    WITH item AS (
        INSERT INTO duepost.item (id, kind, scheduled_at, due_at, last_error)
        SELECT nextval('duepost.scheduled_email_id_seq'), 'k' || i %% 20, due, due,
               CASE WHEN i %% 1000 = 0 THEN 'rcpt: 451 4.3.0 later' END
        FROM generate_series(1, %(count)s) AS i, LATERAL (SELECT now() + i * interval '1 s' AS due) AS each
        RETURNING id, due_at
    ), email AS (
        INSERT INTO duepost.email (item_id, message_id_header, date_header, address, subject, body_text)
        SELECT id, '<' || gen_random_uuid() || '@example.com>', due_at, 'a' || id %% %(people)s || '@example.com',
               'Later', 'Text'
        FROM item
    )
    INSERT INTO duepost.scheduled_email_user (email_id, user_id)
    SELECT id, 'user-' || id %% %(people)s FROM item
"""

LEDGER = """
    INSERT INTO duepost.delivery (
        email_id, kind, outcome, user_id, address, code, reply, attempts, unknowns, scheduled_at, finished_at,
        message_id_header
    )
    SELECT -i, 'k' || i %% 20, CASE WHEN i %% 500 = 0 THEN 'undeliverable' ELSE 'sent' END, 'user-' || i %% %(people)s,
           'a' || i %% %(people)s || '@example.com', 250, '2.0.0 ok', 1, 0, moment, moment,
           '<' || md5(i::text) || '@example.com>'
    FROM generate_series(%(first)s, %(last)s) AS i, LATERAL (
        SELECT now() - interval '1 s' * i / %(a_second)s - interval '1 minute' AS moment
    ) AS each
"""

#: The parts of the ledger for the months before this one.
PARTITION = """
    DO $$
    DECLARE
        month timestamp := date_trunc('month', now() AT TIME ZONE 'UTC') - make_interval(months => {months});
    BEGIN
        EXECUTE format(
            'CREATE TABLE duepost.%I PARTITION OF duepost.delivery FOR VALUES FROM (%L) TO (%L)',
            'delivery_' || to_char(month, 'YYYY_MM'), month AT TIME ZONE 'UTC',
            (month + interval '1 month') AT TIME ZONE 'UTC'
        );
    END
    $$
"""

#: What is asked for, and within how many seconds it is to be there.
SCREENS = {
    "Now": ("/", 1.0),
    "Items": ("/items", 1.0),
    "Items, of a kind and undeliverable": ("/items?kind=k10&outcome=undeliverable", 1.0),
    "Item": ("/items/{id}", 1.0),
    "Person, by address": ("/person?address=a77%40example.com", 0.3),
    "Person, by user": ("/person?user=user-77", 0.3),
    "Failures": ("/failures", 1.0),
    "Forecast": ("/forecast", 1.0),
    "Kinds and templates": ("/kinds", 1.0),
    "Routes and workers": ("/routes", 1.0),
    "Suppression": ("/suppression", 1.0),
    "Journal": ("/journal", 1.0),
    "/metrics": ("/metrics", 1.0),
}


def main() -> None:
    """Fills, asks, and prints."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--pending", type=int, default=1_000_000, help="emails for later")
    options.add_argument("--ledger", type=int, default=50_000_000, help="finished emails")
    options.add_argument("--times", type=int, default=11, help="how often each screen is asked for")
    given = options.parse_args()
    with server() as postgres, fresh_database(postgres.url, "screens") as url:
        # While it is filled: what is lost then is filled again.
        execute(
            postgres.url,
            "ALTER SYSTEM SET max_wal_size = '32GB'",
            "ALTER SYSTEM SET full_page_writes = off",
            "ALTER SYSTEM SET autovacuum = off",
            "SELECT pg_reload_conf()",
        )
        with migrated(url) as database:
            fill(database, url, given)
            execute(postgres.url, "ALTER SYSTEM RESET ALL", "SELECT pg_reload_conf()")
            [(email_id,)] = database.execute("SELECT max(id) FROM duepost.item")
        with console(url) as port:
            found = {name: times(port, path.format(id=email_id), given.times) for name, (path, _) in SCREENS.items()}
    print(
        f"{given.pending:,} emails for later and {given.ledger:,} finished ones, {OF_ONE} of each person; each screen"
        f" {given.times} times. {machine()}\n"
    )
    print(table(
        ("first, ms", "median, ms", "slowest, ms"),
        {
            name: [f"{each * 1000:.0f}" for each in (seconds[0], statistics.median(seconds), max(seconds))]
            for name, seconds in found.items()
        },
    ))  # fmt: skip
    bars = [Bar(f"{name}, slowest in s", SCREENS[name][1], max(found[name]), at_most=True) for name in found]
    print(f"\n{bars_table(bars)}")


def fill(database: Database, url: str, given: argparse.Namespace) -> None:
    """The backlog and the ledger, in two sessions side by side."""
    begun = time.monotonic()
    people = max(1, given.ledger // OF_ONE)
    for months in range(1, 3 + given.ledger // A_SECOND // 86_400 // 28):
        execute(url, PARTITION.format(months=months))
    half = given.ledger // 2
    parts = [(1, half), (half + 1, given.ledger)]
    threads = [threading.Thread(target=insert, args=(url, first, last, people)) for first, last in parts]
    for each in threads:
        each.start()
    with database.transaction(UNLIMITED) as cursor:
        cursor.execute(PENDING, {"count": given.pending, "people": people})
    for each in threads:
        each.join()
    database.execute("ANALYZE", limits=UNLIMITED)
    [(count,)] = database.execute("SELECT count(*) FROM duepost.delivery", limits=UNLIMITED)
    assert count == given.ledger
    print(f"filled in {time.monotonic() - begun:.0f} s", file=sys.stderr)


def insert(url: str, first: int, last: int, people: int) -> None:
    """A part of the ledger, in steps."""
    step = 500_000
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = off")
        for begin in range(first, last + 1, step):
            end = min(last, begin + step - 1)
            cursor.execute(LEDGER, {"first": begin, "last": end, "people": people, "a_second": A_SECOND})
            connection.commit()
            print(f"{end:,}", file=sys.stderr)
    connection.close()


@contextmanager
def console(url: str) -> Iterator[int]:
    """The console, for this machine alone; gives its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "duepost", "web", "--port", "0"],
        env={**os.environ, "DUEPOST_DATABASE_URL": url},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        port = int(said.rpartition(":")[2].split("/")[0].split()[0])
        wait_for(lambda: ask(port, "/health") == 200)
        yield port
    finally:
        process.terminate()
        process.wait()


def ask(port: int, path: str) -> int:
    """The status of a page, once all of it is there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
    except ConnectionError:
        return 0
    finally:
        connection.close()
    return answer.status


def times(port: int, path: str, number: int) -> list[float]:
    """Seconds that a page takes, each time."""
    found = []
    for _ in range(number):
        begun = time.perf_counter()
        status = ask(port, path)
        found.append(time.perf_counter() - begun)
        assert status == 200, (path, status)
        print(f"{path}: {found[-1] * 1000:.0f} ms", file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
