"""What does the broker itself cost? Stock dramatiq-pg against Duepost's, in turns, with an actor that does nothing.

Prints a Markdown table: messages a second at a backlog (medians), and beside it a worker's memory and the server's
advisory locks in the middle of the run. Stock dramatiq-pg is left out of backlogs that it cannot survive.

Run: python benchmarks/broker.py --backlogs 1000 10000 1000000 --turns 3
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
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from psycopg2 import extensions

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from actors.queue.schema import queue_schema  # noqa: E402 - the path comes first
from duepost.embedded import EmbeddedPostgres  # noqa: E402
from models.database.connections import UNLIMITED, Database  # noqa: E402
from models.database.migrate import migrate  # noqa: E402

#: Stock dramatiq-pg takes the whole server down at about 13,000 waiting messages: a lock for each.
STOCK_SURVIVES = 10_000

#: How many messages are worked off at the most while the clock runs: at these rates, some seconds.
MEASURED = {"stock": 2_000, "ours": 9_000}

BACKLOG = """
INSERT INTO dramatiq.queue (message_id, queue_name, state, message)
SELECT id, 'default', 'queued', jsonb_build_object(
    'queue_name', 'default', 'actor_name', 'noop', 'args', '[]'::jsonb, 'kwargs', '{}'::jsonb,
    'options', '{}'::jsonb, 'message_id', id::text, 'message_timestamp', 0
)
FROM (SELECT gen_random_uuid() AS id FROM generate_series(1, %(count)s)) AS each
"""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn came to."""

    rate: float
    megabytes: float
    locks: int


def main() -> None:
    """Runs all turns and prints the table."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--backlogs", type=int, nargs="+", default=[1000, 10_000], help="messages that wait")
    options.add_argument("--turns", type=int, default=3, help="turns; medians are shown")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="duepost-bench-") as folder:
        Path(folder).chmod(0o755)
        postgres = EmbeddedPostgres(Path(folder) / "postgres")
        databases = prepare(Database(postgres.start()))
        try:
            report({backlog: measure(databases, backlog, given.turns) for backlog in given.backlogs}, given.turns)
        finally:
            for database in databases.values():
                database.close()
            postgres.stop()


def prepare(ours: Database) -> dict[str, Database]:
    """A database for each broker, on one server: stock dramatiq-pg with its own schema and indexes."""
    alone(ours, "CREATE DATABASE stock")
    parts = extensions.parse_dsn(ours.url)
    stock = Database(f"postgresql://{parts['user']}@/stock?host={parts['host']}")
    stock.execute(queue_schema())
    list(migrate(ours, queue_schema=queue_schema()))
    return {"stock": stock, "ours": ours}


def alone(database: Database, statement: str) -> None:
    """Runs a statement that must be the only one."""
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(statement)


def measure(databases: dict[str, Database], backlog: int, turns: int) -> dict[str, list[Turn]]:
    """The brokers in turns, on the same backlog."""
    found: dict[str, list[Turn]] = {name: [] for name in databases}
    for _ in range(turns):
        for name, each in found.items():
            if name == "ours" or backlog <= STOCK_SURVIVES:
                each.append(run(databases[name], name, backlog))
                print(f"{name} at {backlog}: {each[-1].rate:.0f}/s", file=sys.stderr)
    return found


def run(database: Database, name: str, backlog: int) -> Turn:
    """One worker of 2 × 8 threads on a fresh backlog."""
    database.execute("TRUNCATE dramatiq.queue")
    with database.transaction(UNLIMITED) as cursor:
        cursor.execute(BACKLOG, {"count": backlog})
    alone(database, "VACUUM ANALYZE dramatiq.queue")
    alone(database, "CHECKPOINT")
    goal = min(MEASURED[name], backlog * 9 // 10)
    with tempfile.TemporaryDirectory(prefix="duepost-bench-") as counts:
        folder = Path(counts)
        with worker(database.url, name, folder) as process:
            while done(folder) == 0:
                time.sleep(0.01)
            started, before = time.monotonic(), done(folder)
            middle = None
            while (now := done(folder)) < goal:
                if middle is None and now > goal / 2:
                    middle = megabytes(process), locks(database)
                time.sleep(0.02)
            rate = (now - before) / (time.monotonic() - started)
            memory, held = middle or (megabytes(process), locks(database))
    return Turn(rate, memory, held)


@contextmanager
def worker(url: str, name: str, counts: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`dramatiq noop` on the broker of that name."""
    environment = {
        **os.environ,
        "BENCHMARK_URL": url,
        "BENCHMARK_BROKER": name,
        "BENCHMARK_COUNTS": str(counts),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "dramatiq", "noop", "--processes", "2", "--threads", "8"],
        env=environment,
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def done(counts: Path) -> int:
    """Messages that the worker's processes have run."""
    return sum(int.from_bytes(file.read_bytes(), sys.byteorder) for file in counts.iterdir())


def locks(database: Database) -> int:
    """Advisory locks on the server."""
    [(count,)] = database.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
    return int(str(count))


def megabytes(process: subprocess.Popen[bytes]) -> float:
    """Resident memory of the largest worker process."""
    children = psutil.Process(process.pid).children()
    return float(max(child.memory_info().rss for child in children) / 1_000_000)


def report(found: dict[int, dict[str, list[Turn]]], turns: int) -> None:
    """The table, in Markdown."""
    print(f"2 × 8 threads, median of {turns} turns; {os.cpu_count()} CPUs, {platform.system()} {platform.machine()},")
    print(f"Python {platform.python_version()}\n")
    print("| backlog | broker | messages/s | ratio | MB a worker | advisory locks |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for backlog, brokers in found.items():
        yardstick = statistics.median(turn.rate for turn in brokers["stock"]) if brokers["stock"] else None
        for name, each in brokers.items():
            if each:
                rate = statistics.median(turn.rate for turn in each)
                ratio = f"{rate / yardstick:.1f}" if yardstick else ""
                memory = max(turn.megabytes for turn in each)
                print(
                    f"| {backlog} | {name} | {rate:.0f} | {ratio} | {memory:.0f} | {max(turn.locks for turn in each)} |"
                )


if __name__ == "__main__":
    main()
