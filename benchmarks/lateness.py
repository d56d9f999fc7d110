"""How late is one email? From the call that stores it to the first byte of its SMTP dialogue, as the sink sees it.

A steady flow, each email stored by a call of its own and committed; then single emails, a second or more apart, with
nothing else to do. Duepost and those peers that are told of new jobs (LISTEN), each at its defaults. A job of stock
dramatiq-pg is two commits: the row, and the message that names it.

What PostgreSQL's processes use for an email of the flow is counted beside it, the call that stores it included; and
what Duepost's processes use while there is nothing to do.

Run: python benchmarks/lateness.py
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.on_time import latenesses  # noqa: E402 - the path comes first
from benchmarks.site import (  # noqa: E402
    BODY,
    PROCESSES,
    Bar,
    Server,
    bars_table,
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
from benchmarks.usage import cpu_seconds  # noqa: E402

SYSTEMS = ("Duepost", "PGQueuer, own client", "PGQueuer, aiosmtplib", "stock dramatiq-pg")

#: The peer that PostgreSQL's CPU is compared with.
LEAN = "PGQueuer, own client"

ONE = """
    SELECT duepost.schedule_email(
        kind => 'benchmark', address => %(address)s, subject => 'Benchmark', body_text => %(body)s
    )
"""

#: Emails a second that leave a system idle between two.
LONELY = 0.7

#: Seconds after which processes that have nothing to do have found that out.
REST = 10.0


@dataclass
class Found:
    """What was found of one system at one pace.

    Attributes:
        late: milliseconds, of each email of all turns.
        postgres: milliseconds of CPU that PostgreSQL used for an email, of each turn.
    """

    late: list[float] = field(default_factory=list)
    postgres: list[float] = field(default_factory=list)

    @property
    def p50(self) -> float:
        """Milliseconds that half of them were not later than."""
        return statistics.median(self.late)

    @property
    def p99(self) -> float:
        """Milliseconds that 99 of 100 were not later than."""
        return percentile(self.late, 0.99)

    @property
    def cpu(self) -> float:
        """PostgreSQL's milliseconds of CPU for an email: the median of the turns."""
        return statistics.median(self.postgres)


@dataclass
class Idle:
    """What processes use with nothing to do, in per cent of a core; each turn."""

    watch: list[float] = field(default_factory=list)
    worker: list[float] = field(default_factory=list)
    postgres: list[float] = field(default_factory=list)


def main() -> None:
    """Measures all in turns, and prints."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--turns", type=int, default=3, help="turns; all emails of all turns count together")
    options.add_argument("--pace", type=float, default=50, help="emails of the flow in a second")
    options.add_argument("--seconds", type=float, default=12, help="how long the flow goes on")
    options.add_argument("--lonely", type=int, default=8, help="single emails of a turn")
    options.add_argument("--idle", type=float, default=20, help="seconds of a turn with nothing to do")
    options.add_argument("--systems", nargs="*", default=SYSTEMS, help="only these")
    given = options.parse_args()
    names = list(given.systems)
    found: dict[tuple[str, float], Found] = {(name, pace): Found() for name in names for pace in (given.pace, LONELY)}
    idle = Idle()
    with server() as postgres, tempfile.TemporaryDirectory() as folder:
        for turn in range(given.turns):
            for name in names:
                for pace, count in ((given.pace, round(given.pace * given.seconds)), (LONELY, given.lonely)):
                    record = Path(folder) / f"{turn}-{name}-{pace}"
                    with fresh_database(postgres.url, f"turn_{turn}") as url, sink(record=record) as port:
                        stored, cpu = flow(named(name), postgres, url, port, record, count, pace)
                    late = latenesses(stored, record)
                    found[name, pace].late.extend(late)
                    found[name, pace].postgres.append(1000 * cpu / count)
                    print(
                        f"{name}, {pace:g}/s: p50 {statistics.median(late):.1f} ms, p99 {percentile(late, 0.99):.1f};"
                        f" PostgreSQL {1000 * cpu / count:.2f} ms of CPU an email; load {os.getloadavg()[0]:.1f}",
                        file=sys.stderr,
                    )
            if "Duepost" in names:
                with fresh_database(postgres.url, f"turn_{turn}") as url, sink() as port:
                    measure_idle(idle, postgres, url, port, given.idle)
    print_all(found, idle, given.pace, names)
    print(
        f"\n{given.turns} turns, {round(given.pace * given.seconds)} emails of the flow and {given.lonely} single ones"
        f" each. {machine()}"
    )


def print_all(found: Mapping[tuple[str, float], Found], idle: Idle, pace: float, names: Sequence[str]) -> None:
    """The table of all, and the bars."""
    rows = {
        name: [
            f"{found[name, pace].p50:.1f}",
            f"{found[name, pace].p99:.1f}",
            f"{found[name, LONELY].p50:.1f}",
            f"{max(found[name, LONELY].late):.1f}",
            f"{found[name, pace].cpu:.2f}",
        ]
        for name in names
    }
    columns = (
        f"{pace:g} a second, p50",
        "p99",
        "a single one, p50",
        "slowest",
        "PostgreSQL's CPU an email of the flow",
    )
    print("Milliseconds from the call that stores an email to the first byte of its SMTP dialogue; of CPU.\n")
    print(table(columns, rows))
    if "Duepost" not in names:
        return
    ours = found["Duepost", pace]
    bars = [
        Bar(f"{pace:g} a second: p50, ms", 15, ours.p50, at_most=True),
        Bar(f"{pace:g} a second: p99, ms", 60, ours.p99, at_most=True),
        Bar("a single one: p50, ms", 40, found["Duepost", LONELY].p50, at_most=True),
        Bar("an idle watch, per cent of a core", 1, statistics.median(idle.watch), at_most=True),
        Bar("an idle worker process, per cent of a core", 1, statistics.median(idle.worker), at_most=True),
    ]
    if LEAN in names:
        bars.append(Bar(f"PostgreSQL's CPU an email, x {LEAN}", 1.3, ours.cpu / found[LEAN, pace].cpu, at_most=True))
    print(f"\n{bars_table(bars)}")
    print(f"\nPostgreSQL beside idle processes: {statistics.median(idle.postgres):.2f} per cent of a core.")


def measure_idle(idle: Idle, postgres: Server, url: str, port: int, seconds: float) -> None:
    """Adds what a watch, a worker process and PostgreSQL use while there is nothing to do."""
    with migrated(url) as database, running(database, port) as processes:
        time.sleep(REST)
        before = [cpu_seconds(pid) for pid in (processes.watch.pid, processes.workers.pid, postgres.postmaster)]
        time.sleep(seconds)
        after = [cpu_seconds(pid) for pid in (processes.watch.pid, processes.workers.pid, postgres.postmaster)]
    watch, workers, server_ = (100 * (then - first) / seconds for first, then in zip(before, after, strict=True))
    idle.watch.append(watch)
    idle.worker.append(workers / PROCESSES)
    idle.postgres.append(server_)
    print(
        f"idle: watch {watch:.2f} %, each worker process {workers / PROCESSES:.2f} %, PostgreSQL {server_:.2f} %;"
        f" load {os.getloadavg()[0]:.1f}",
        file=sys.stderr,
    )


def flow(
    system: System, postgres: Server, url: str, port: int, record: Path, count: int, pace: float
) -> tuple[Mapping[str, float], float]:
    """Stores emails one by one until all are delivered.

    Returns:
        the moment before each call, by address; and the seconds of CPU that PostgreSQL used meanwhile.
    """
    if not system.script:
        return duepost_flow(postgres, url, port, record, count, pace)
    with peer(system, "flow", url, port, Setting(count), pace) as running_peer:
        before = cpu_seconds(postgres.postmaster)
        running_peer.begin()
        lines = running_peer.lines()
        stored = dict(next(lines).split() for _ in range(count))
        wait_for(lambda: taken(record) >= count)
        cpu = cpu_seconds(postgres.postmaster) - before
    return {address: float(moment) for address, moment in stored.items()}, cpu


def duepost_flow(
    postgres: Server, url: str, port: int, record: Path, count: int, pace: float
) -> tuple[Mapping[str, float], float]:
    """The same with Duepost: one call of `schedule_email` each."""
    chance = random.Random(1)
    stored: dict[str, float] = {}
    with migrated(url) as database, running(database, port), closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            before = cpu_seconds(postgres.postmaster)
            begun = time.monotonic()
            for number in range(count):
                address = f"a{number}@example.com"
                time.sleep(max(0.0, begun + (number + chance.random()) / pace - time.monotonic()))
                stored[address] = time.time()
                cursor.execute(ONE, {"address": address, "body": BODY})
        wait_for(lambda: taken(record) >= count)
        cpu = cpu_seconds(postgres.postmaster) - before
    return stored, cpu


def taken(record: Path) -> int:
    """How many emails the sink has noted."""
    return record.read_text().count("\n")


if __name__ == "__main__":
    main()
