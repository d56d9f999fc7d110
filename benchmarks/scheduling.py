"""How fast are emails scheduled? `schedule_email()` against a plain INSERT of the same row, and against a set at once.

Each client is a process with a connection of its own that commits each call. The plain INSERT goes into a table with
the same columns, constraints and indexes; it checks nothing of an email. All take turns on one server.

Run: python benchmarks/scheduling.py
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import psycopg2

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.site import BODY, Bar, bars_table, fresh_database, machine, migrated, server  # noqa: E402
from models.database.connections import Database  # noqa: E402

FUNCTION = """
    SELECT duepost.schedule_email(
        kind => 'benchmark', address => %(address)s, subject => 'Benchmark', body_text => %(body)s
    )
"""

PLAIN = """
    INSERT INTO plain (
        kind, scheduled_at, due_at, message_id_header, date_header, address, subject, body_text
    )
    VALUES (
        'benchmark', now(), now(), '<' || gen_random_uuid() || '@example.com>', now(), %(address)s, 'Benchmark',
        %(body)s
    )
    RETURNING id
"""

SET = "SELECT count(*) FROM duepost.schedule_emails(%(emails)s)"

#: Emails of one set.
SIZE = 1000

#: What one measurement is called: what is called, by how many clients.
Calls = tuple[str, int]

SINGLE, PLAIN_INSERT, AT_ONCE = "schedule_email()", "plain INSERT", "schedule_emails() of 1,000"

MEASURED: tuple[Calls, ...] = (
    (SINGLE, 1), (PLAIN_INSERT, 1), (SINGLE, 4), (PLAIN_INSERT, 4), (SINGLE, 16), (PLAIN_INSERT, 16), (AT_ONCE, 1),
)  # fmt: skip


def main() -> None:
    """Measures all in turns, and prints."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--turns", type=int, default=5, help="turns; medians are shown")
    options.add_argument("--seconds", type=float, default=3, help="how long each is measured in a turn")
    given = options.parse_args()
    rates: dict[Calls, list[float]] = {calls: [] for calls in MEASURED}
    with server() as postgres:
        for turn in range(given.turns):
            with fresh_database(postgres.url, f"turn_{turn}") as url, migrated(url) as database:
                database.execute("CREATE TABLE plain (LIKE duepost.scheduled_email INCLUDING ALL)")
                for calls in MEASURED:
                    rates[calls].append(rate(database, calls, given.seconds))
                    print(f"turn {turn + 1}: {calls[0]}, {calls[1]} clients: {rates[calls][-1]:.0f}/s", file=sys.stderr)
    report({calls: statistics.median(each) for calls, each in rates.items()}, given.turns)


def rate(database: Database, calls: Calls, seconds: float) -> float:
    """Emails a second, scheduled by so many clients at once."""
    what, clients = calls
    database.execute("TRUNCATE plain, duepost.scheduled_email CASCADE")
    context = get_context("spawn")
    ready, counts = context.Barrier(clients), context.Queue()
    processes = [
        context.Process(target=client, args=(database.url, what, number, seconds, ready, counts.put))
        for number in range(clients)
    ]
    for process in processes:
        process.start()
    total = sum(counts.get() for _ in processes)
    for process in processes:
        process.join()
    return float(total)


def client(url: str, what: str, number: int, seconds: float, ready: Barrier, tell: Callable[[float], None]) -> None:
    """One client: calls and commits until the time is over; tells its emails a second."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    emails = json.dumps(
        [
            {"kind": "benchmark", "address": f"a{i}@example.com", "subject": "Benchmark", "body_text": BODY}
            for i in range(SIZE)
        ]
    )
    parameters = {"address": f"client{number}@example.com", "body": BODY}
    statement = FUNCTION if what == SINGLE else PLAIN
    with connection.cursor() as cursor:
        ready.wait()
        begun, count = time.monotonic(), 0
        while time.monotonic() < begun + seconds:
            if what == AT_ONCE:
                cursor.execute(SET, {"emails": emails})
                count += SIZE
            else:
                cursor.execute(statement, parameters)
                count += 1
        tell(count / (time.monotonic() - begun))
    connection.close()


def report(rates: dict[Calls, float], turns: int) -> None:
    """The tables, in Markdown."""
    print(f"Emails of 2 KB scheduled a second, each call committed; median of {turns} turns. {machine()}\n")
    print("| | clients | emails/s |\n| --- | ---: | ---: |")
    for (what, clients), each in rates.items():
        print(f"| {what} | {clients} | {each:,.0f} |")
    bars = [
        Bar("4 clients, × a plain INSERT", 0.5, rates[SINGLE, 4] / rates[PLAIN_INSERT, 4]),
        Bar("16 clients, × one client", 3.0, rates[SINGLE, 16] / rates[SINGLE, 1]),
        Bar(
            "16 clients, × one client, next to what a plain INSERT gains by them", 0.8,
            rates[SINGLE, 16] / rates[SINGLE, 1] / (rates[PLAIN_INSERT, 16] / rates[PLAIN_INSERT, 1]),
        ),
        Bar("1,000 at once, × one by one", 10.0, rates[AT_ONCE, 1] / rates[SINGLE, 1]),
    ]  # fmt: skip
    print(f"\n{bars_table(bars)}")


if __name__ == "__main__":
    main()
