"""How late is one email? From the call that stores it to the first byte of its SMTP dialogue, as the sink sees it.

A steady flow, each email stored by a call of its own and committed; then single emails, a second or more apart, with
nothing else to do. Duepost and those peers that are told of new jobs (LISTEN), each at its defaults. A job of stock
dramatiq-pg is two commits: the row, and the message that names it.

Run: python benchmarks/lateness.py
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import psycopg2

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.on_time import latenesses  # noqa: E402 - the path comes first
from benchmarks.site import (  # noqa: E402
    BODY,
    fresh_database,
    machine,
    migrated,
    percentile,
    running,
    server,
    sink,
    table,
    wait_for,
)
from benchmarks.systems import Setting, System, named, peer  # noqa: E402

SYSTEMS = ("Duepost", "PGQueuer, own client", "PGQueuer, aiosmtplib", "stock dramatiq-pg")

ONE = """
    SELECT duepost.schedule_email(
        kind => 'benchmark', address => %(address)s, subject => 'Benchmark', body_text => %(body)s
    )
"""

#: Emails a second that leave a system idle between two.
LONELY = 0.7


def main() -> None:
    """Measures all in turns, and prints."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--turns", type=int, default=3, help="turns; all emails of all turns count together")
    options.add_argument("--pace", type=float, default=50, help="emails of the flow in a second")
    options.add_argument("--seconds", type=float, default=12, help="how long the flow goes on")
    options.add_argument("--lonely", type=int, default=8, help="single emails of a turn")
    given = options.parse_args()
    late: dict[tuple[str, float], list[float]] = {}
    with server() as postgres, tempfile.TemporaryDirectory() as folder:
        for turn in range(given.turns):
            for name in SYSTEMS:
                for pace, count in ((given.pace, round(given.pace * given.seconds)), (LONELY, given.lonely)):
                    record = Path(folder) / f"{turn}-{name}-{pace}"
                    with fresh_database(postgres.url, f"turn_{turn}") as url, sink(record=record) as port:
                        stored = flow(named(name), url, port, record, count, pace)
                    found = latenesses(stored, record)
                    late.setdefault((name, pace), []).extend(found)
                    print(
                        f"{name}, {pace:g}/s: p50 {statistics.median(found):.1f} ms, p99 {percentile(found, 0.99):.1f}",
                        file=sys.stderr,
                    )
    rows = {
        name: [
            f"{value:.1f}"
            for pace in (given.pace, LONELY)
            for value in (statistics.median(late[name, pace]), percentile(late[name, pace], 0.99))
        ]
        for name in SYSTEMS
    }
    columns = (f"{given.pace:g} a second, p50", "p99", "a single one, p50", "slowest")
    print(
        f"Milliseconds from the call that stores an email to the first byte of its SMTP dialogue; {given.turns} turns,"
        f" {round(given.pace * given.seconds)} emails of the flow and {given.lonely} single ones each. {machine()}\n"
    )
    print(table(columns, rows))


def flow(system: System, url: str, port: int, record: Path, count: int, pace: float) -> Mapping[str, float]:
    """Stores emails one by one until all are delivered; gives the moment before each call, by address."""
    if not system.script:
        return duepost_flow(url, port, record, count, pace)
    with peer(system, "flow", url, port, Setting(count), pace) as running_peer:
        running_peer.begin()
        lines = running_peer.lines()
        stored = dict(next(lines).split() for _ in range(count))
        wait_for(lambda: taken(record) >= count)
    return {address: float(moment) for address, moment in stored.items()}


def duepost_flow(url: str, port: int, record: Path, count: int, pace: float) -> Mapping[str, float]:
    """The same with Duepost: one call of `schedule_email` each."""
    chance = random.Random(1)
    stored: dict[str, float] = {}
    with migrated(url) as database, running(database, port), closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            begun = time.monotonic()
            for number in range(count):
                address = f"a{number}@example.com"
                time.sleep(max(0.0, begun + (number + chance.random()) / pace - time.monotonic()))
                stored[address] = time.time()
                cursor.execute(ONE, {"address": address, "body": BODY})
        wait_for(lambda: taken(record) >= count)
    return stored


def taken(record: Path) -> int:
    """How many emails the sink has noted."""
    return record.read_text().count("\n")


if __name__ == "__main__":
    main()
