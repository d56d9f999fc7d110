"""Are emails on time? From the moment that each is due to the first byte of its SMTP dialogue, as the sink sees it.

First a steady flow, each email due at its own moment, ticked by `duepost trigger --watch`; then, while a long backlog
of one kind is delivered, an email of another kind every second that is due at once.

Run: python benchmarks/on_time.py
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

from benchmarks.site import (  # noqa: E402 - the path comes first
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
    wait_for,
)
from models.database.connections import Database  # noqa: E402

FLOW = """
    SELECT 'flow' || i || '@example.com', extract(epoch FROM due)::float, duepost.schedule_email(
        kind => 'flow', address => 'flow' || i || '@example.com', subject => 'Benchmark', body_text => %(body)s,
        scheduled_at => due
    )
    FROM generate_series(1, %(count)s) AS i, LATERAL (
        SELECT now() + interval '1 s' + i * make_interval(secs => 1.0 / %(pace)s) AS due
    ) AS moment
"""

URGENT = """
    SELECT extract(epoch FROM now())::float, duepost.schedule_email(
        kind => 'urgent', address => %(address)s, subject => 'Benchmark', body_text => %(body)s
    )
"""


def main() -> None:
    """Measures both, in turns, and prints."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--turns", type=int, default=3, help="turns; medians are shown")
    options.add_argument("--pace", type=int, default=100, help="emails of the flow in a second")
    options.add_argument("--seconds", type=int, default=30, help="how long the flow goes on")
    options.add_argument("--backlog", type=int, default=50_000, help="emails of the backlog")
    given = options.parse_args()
    medians, p99s, slowest = [], [], []
    with server() as postgres, tempfile.TemporaryDirectory() as folder:
        for turn in range(given.turns):
            record = Path(folder) / f"record_{turn}"
            with (
                fresh_database(postgres.url, f"turn_{turn}") as url,
                migrated(url) as database,
                sink(record=record) as port,
                running(database, port),
            ):
                flow = latenesses(flow_of(database, given.pace * given.seconds, given.pace), record)
                medians.append(statistics.median(flow))
                p99s.append(percentile(flow, 0.99))
                urgent = latenesses(urgent_among(database, given.backlog), record)
                slowest.append(max(urgent))
                print(
                    f"turn {turn + 1}: flow p50 {medians[-1]:.0f} ms, p99 {p99s[-1]:.0f} ms;"
                    f" {len(urgent)} urgent ones, median {statistics.median(urgent):.0f} ms,"
                    f" slowest {slowest[-1]:.0f} ms",
                    file=sys.stderr,
                )
    print(f"Lateness in milliseconds, from due to the first byte of SMTP; median of {given.turns} turns. {machine()}\n")
    bars = [
        Bar(f"{given.pace} emails a second, each due at its own moment: p50", 30, statistics.median(medians), True),
        Bar(f"{given.pace} emails a second, each due at its own moment: p99", 250, statistics.median(p99s), True),
        Bar(
            f"one urgent email each second while {given.backlog:,} are delivered: the slowest",
            1000, statistics.median(slowest), at_most=True,
        ),
    ]  # fmt: skip
    print(bars_table(bars))


def flow_of(database: Database, count: int, pace: int) -> Mapping[str, float]:
    """A flow, delivered; gives when each was due (seconds of the Unix epoch), by address."""
    begun = now(database)
    rows = database.execute(FLOW, {"body": BODY, "count": count, "pace": pace})
    wait_for(lambda: finished(database, begun) == count, pause=1.0)
    return {str(address): float(str(due)) for address, due, _ in rows}


def urgent_among(database: Database, backlog: int) -> Mapping[str, float]:
    """A backlog, and one email each second until it is done; gives when each of those was due, by address."""
    begun = now(database)
    schedule(database, backlog, kind="backlog")
    due: dict[str, float] = {}
    while finished(database, begun) < backlog:
        address = f"urgent{len(due)}@example.com"
        [(moment, _)] = database.execute(URGENT, {"address": address, "body": BODY})
        due[address] = float(str(moment))
        time.sleep(1.0)
    wait_for(lambda: finished(database, begun) == backlog + len(due))
    return due


def latenesses(due: Mapping[str, float], record: Path) -> list[float]:
    """How long after it was due each email began, in milliseconds."""
    began = {}
    for line in record.read_text().splitlines():
        moment, _, address = line.split()
        began[address] = float(moment)
    return [(began[address] - moment) * 1000 for address, moment in due.items()]


if __name__ == "__main__":
    main()
