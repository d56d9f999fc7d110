"""Does a password reset overtake a million digests? From due to first byte of its SMTP dialogue, as a sink sees it.

Digests that have been due for an hour wait, all of normal priority or all bulk; while they are delivered an urgent
email falls due every 100 ms.

Run: python benchmarks/priorities.py
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.on_time import latenesses  # noqa: E402 - the path comes first
from benchmarks.site import (  # noqa: E402
    BODY,
    Bar,
    bars_table,
    finished,
    fresh_database,
    machine,
    migrated,
    now,
    percentile,
    running,
    schedule,
    server,
    sink,
)
from models.database.connections import UNLIMITED, Database  # noqa: E402

RESET = """
    SELECT extract(epoch FROM now())::float, duepost.schedule_email(
        kind => 'reset', address => %(address)s, subject => 'Benchmark', body_text => %(body)s, priority => 'urgent'
    )
"""

#: Seconds between two urgent emails.
EVERY = 0.1

#: Digests that are scheduled in one transaction.
PAGE = 50_000


def main() -> None:
    """Measures beside digests of both priorities, and prints."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--digests", type=int, default=1_000_000, help="how many wait")
    options.add_argument("--seconds", type=int, default=60, help="for how long urgent emails fall due")
    given = options.parse_args()
    bars: list[Bar] = []
    with server() as postgres, tempfile.TemporaryDirectory() as folder:
        for priority in ("bulk", "normal"):
            record = Path(folder) / f"record_{priority}"
            with (
                fresh_database(postgres.url, f"digests_{priority}") as url,
                migrated(url) as database,
                sink(record=record) as port,
            ):
                database.execute(
                    "INSERT INTO duepost.kind (kind, priority) VALUES ('digest', %(priority)s)", {"priority": priority}
                )
                fill(database, given.digests)
                with running(database, port):
                    begun = now(database)
                    due = resets(database, given.seconds)
                    rate = finished(database, begun) / given.seconds
                    late = latenesses(due, record)
            print(
                f"{priority}: {len(late)} of {len(due)} urgent ones, median {statistics.median(late):.0f} ms, p99"
                f" {percentile(late, 0.99):.0f} ms, slowest {max(late):.0f} ms; {rate:.0f} emails a second",
                file=sys.stderr,
            )
            bars.append(
                Bar(f"an urgent email each 100 ms beside {given.digests:,} {priority} digests: the slowest", 2000,
                    max(late), at_most=True)
            )  # fmt: skip
    print(f"Lateness in milliseconds, from due to the first byte of SMTP. {machine()}\n")
    print(bars_table(bars))


def fill(database: Database, digests: int) -> None:
    """Digests that have been due for an hour."""
    for begin in range(0, digests, PAGE):
        schedule(database, min(PAGE, digests - begin), kind="digest")
    database.execute("UPDATE duepost.item SET due_at = due_at - interval '1 h'", limits=UNLIMITED)
    database.execute("ANALYZE duepost.item", limits=UNLIMITED)


def resets(database: Database, seconds: int) -> Mapping[str, float]:
    """An urgent email each 100 ms; gives when each was due, by address, once all have had two seconds."""
    due: dict[str, float] = {}
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        address = f"reset{len(due)}@example.com"
        [(moment, _)] = database.execute(RESET, {"address": address, "body": BODY})
        due[address] = float(str(moment))
        time.sleep(EVERY)
    time.sleep(2.0)
    return due


if __name__ == "__main__":
    main()
