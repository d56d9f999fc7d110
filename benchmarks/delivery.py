"""How fast are due emails delivered? Duepost against a bare loop, in turns, on one server, into one sink.

The bare loop is what a careful person writes without a queue: one process, one SMTP connection, lock a row, send it,
delete it, commit. It has no retries, no journal and no second worker; its rate is a yardstick, not a rival.

Prints a Markdown table: the median of several turns, and the ratio. The machine is named, for the numbers mean little
elsewhere; the ratio travels better.

Run: make bench, or python benchmarks/delivery.py --emails 2000 --turns 3
"""

import argparse
import os
import platform
import smtplib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.mime.text import MIMEText
from pathlib import Path

import psycopg2

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from actors.broker_schema import queue_schema  # noqa: E402 - the path comes first
from duepost.embedded import EmbeddedPostgres  # noqa: E402
from models.database import Database  # noqa: E402
from models.migrate import migrate  # noqa: E402

BODY = "All work and no play makes a dull benchmark.\n" * 45


def main() -> None:
    """Runs all turns and prints the table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--emails", type=int, default=2000, help="emails in each turn")
    options.add_argument("--turns", type=int, default=3, help="turns; medians are shown")
    options.add_argument("--processes", type=int, default=2, help="Duepost's worker processes")
    options.add_argument("--threads", type=int, default=8, help="threads of each")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="duepost-bench-") as folder:
        Path(folder).chmod(0o755)
        postgres = EmbeddedPostgres(Path(folder) / "postgres")
        url = postgres.start()
        try:
            with sink() as port:
                rates = measure(url, port, given)
        finally:
            postgres.stop()
    report(rates, given)


def measure(url: str, port: int, given: argparse.Namespace) -> dict[str, list[float]]:
    """Emails a second of each turn, the two in turns."""
    database = Database(url)
    list(migrate(database, queue_schema=queue_schema()))
    rates: dict[str, list[float]] = {"bare loop": [], "Duepost": []}
    for turn in range(given.turns):
        rates["bare loop"].append(given.emails / bare_loop(url, port, given.emails))
        rates["Duepost"].append(given.emails / duepost(database, port, given))
        print(
            f"turn {turn + 1}: " + ", ".join(f"{name} {each[-1]:.0f}/s" for name, each in rates.items()),
            file=sys.stderr,
        )
    database.close()
    return rates


def bare_loop(url: str, port: int, count: int) -> float:
    """Seconds that a loop takes which sends and commits one email after the other."""
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS bare; CREATE TABLE bare (id int PRIMARY KEY, address text, body text)")
        cursor.execute(
            "INSERT INTO bare SELECT i, 'a' || i || '@example.com', %s FROM generate_series(1, %s) i", (BODY, count)
        )
    started = time.monotonic()
    with smtplib.SMTP("127.0.0.1", port) as client:
        while True:
            with connection, connection.cursor() as cursor:
                cursor.execute("SELECT id, address, body FROM bare ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED")
                row = cursor.fetchone()
                if row is None:
                    break
                message = MIMEText(row[2])
                message["Subject"], message["From"], message["To"] = "Benchmark", "a@example.com", row[1]
                client.sendmail("a@example.com", [row[1]], message.as_bytes())
                cursor.execute("DELETE FROM bare WHERE id = %s", (row[0],))
    seconds = time.monotonic() - started
    connection.close()
    return seconds


def duepost(database: Database, port: int, given: argparse.Namespace) -> float:
    """Seconds from the first tick to the last ledger row, scheduler included; workers are up before."""
    environment = {
        **os.environ,
        "DUEPOST_DATABASE_URL": database.url,
        "DUEPOST_SMTP_URL": f"smtp://127.0.0.1:{port}",
        "DUEPOST_FROM": "a@example.com",
    }
    arguments = ["--processes", str(given.processes), "--threads", str(given.threads)]
    worker = subprocess.Popen(
        [sys.executable, "-m", "dramatiq", "actors", *arguments], env=environment, cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(
            lambda: (
                database.execute("SELECT count(*) FROM duepost.worker WHERE gone_at IS NULL")[0][0] == given.processes
            )
        )
        database.execute("TRUNCATE duepost.delivery, duepost.attempt")
        database.execute(
            "SELECT count(duepost.schedule_email(kind => 'benchmark', address => 'a' || i || '@example.com',"
            " subject => 'Benchmark', body_text => %(body)s)) FROM generate_series(1, %(count)s) AS i",
            {"body": BODY, "count": given.emails},
        )
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "duepost", "trigger", "--quiet"], env=environment, cwd=ROOT, check=True)
        wait_for(lambda: database.execute("SELECT count(*) FROM duepost.delivery")[0][0] == given.emails)
        return time.monotonic() - started
    finally:
        worker.terminate()
        worker.wait()


def wait_for(look: Callable[[], bool], pause: float = 0.1) -> None:
    """Looks again after so many seconds."""
    while not look():
        time.sleep(pause)


@contextmanager
def sink(latency: float = 0) -> Iterator[int]:
    """The sink, in a process of its own, so many milliseconds away; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(ROOT / "benchmarks" / "sink.py"), str(port), str(latency)])
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def report(rates: dict[str, list[float]], given: argparse.Namespace) -> None:
    """The table, in Markdown."""
    yardstick = statistics.median(rates["bare loop"])
    print(f"{given.emails} emails of 2 KB, median of {given.turns} turns, {given.processes} × {given.threads} threads;")
    print(f"{os.cpu_count()} CPUs, {platform.system()} {platform.machine()}, Python {platform.python_version()}\n")
    print("| | emails/s | ratio |\n| --- | ---: | ---: |")
    for name, each in rates.items():
        median = statistics.median(each)
        print(f"| {name} | {median:.0f} | {median / yardstick:.2f} |")


if __name__ == "__main__":
    main()
