"""Stock dramatiq and dramatiq-pg: a message for each row, sent and deleted by threads; its own default pool.

Its processes are up, and wait for a file, before the clock runs.
"""

import os
import signal
import smtplib
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import dramatiq
import psycopg2
from dramatiq_pg import PostgresBroker
from turn import SENDER, Mode, Turn, begin, content, flow

#: Dramatiq's own.
THREADS = 8

#: dramatiq-pg's own: connections of a process's pool.
POOL = 16


def pool_url(url: str, threads: int) -> str:
    """The URL, and a pool that holds a connection for each thread, two for the consumer and some for the rest."""
    return f"{url}{'&' if '?' in url else '?'}maxconn={max(POOL, threads + 4)}"


URL = os.environ.get("PEER_URL", sys.argv[2] if len(sys.argv) > 2 else "")
broker = PostgresBroker(url=pool_url(URL, int(os.environ.get("PEER_THREADS", THREADS))))
dramatiq.set_broker(broker)
own = threading.local()


@dramatiq.actor
def send(row_id: int) -> None:
    """Sends one row and deletes it, in one transaction."""
    if not hasattr(own, "connection"):
        own.connection = psycopg2.connect(URL)
        own.client = smtplib.SMTP("127.0.0.1", int(os.environ["PEER_PORT"]))
    with own.connection, own.connection.cursor() as cursor:
        cursor.execute("SELECT address FROM email WHERE id = %s FOR UPDATE SKIP LOCKED", (row_id,))
        row = cursor.fetchone()
        if row is not None:
            own.client.sendmail(SENDER, [row[0]], content(row[0]))
            cursor.execute("DELETE FROM email WHERE id = %s", (row_id,))


if "PEER_GO" in os.environ:
    # A worker process, before its threads start.
    Path(os.environ["PEER_GO"], str(os.getpid())).touch()
    while not Path(os.environ["PEER_GO"], "go").exists():
        time.sleep(0.01)


def main() -> None:
    """A turn."""
    from dramatiq_pg.schema import generate_init_sql

    turn = Turn.given()
    connection = psycopg2.connect(turn.url)
    connection.autocommit = True
    with connection.cursor() as cursor, tempfile.TemporaryDirectory() as folder:

        def store(to: str) -> None:
            cursor.execute("INSERT INTO email (address) VALUES (%s) RETURNING id", (to,))
            [row_id] = cursor.fetchone() or ()
            send.send(row_id)

        if turn.mode is not Mode.RESUME:
            cursor.execute(generate_init_sql())
            cursor.execute("CREATE TABLE email (id serial PRIMARY KEY, address text NOT NULL)")
        if turn.mode is Mode.DRAIN:
            for to in turn.addresses:
                store(to)
        workers = start(turn, folder)
        if turn.mode is Mode.FLOW:
            Path(folder, "go").touch()
            time.sleep(2.0)  # They connect, and begin to listen.
            flow(turn, store)
        begin()
        Path(folder, "go").touch()
        while True:
            cursor.execute("SELECT count(*) FROM email")
            if turn.mode is Mode.DRAIN and cursor.fetchone() == (0,):
                break
            time.sleep(0.05)
        # All its processes: those that are left would work on the next turn.
        os.killpg(workers.pid, signal.SIGKILL)
        workers.wait()
    connection.close()


def start(turn: Turn, folder: str) -> "subprocess.Popen[bytes]":
    """Workers, up and waiting for the file `go` in the folder. Dramatiq's default is a process for each core."""
    threads = max(1, turn.connections // 2) if turn.connections else THREADS
    environment = {
        **os.environ,
        "PEER_URL": turn.url,
        "PEER_PORT": str(turn.port),
        "PEER_THREADS": str(threads),
        "PEER_GO": folder,
    }
    if turn.batch:
        # With its own, two for each thread, the consumer sleeps for up to a second whenever it is that much ahead.
        environment["dramatiq_queue_prefetch"] = str(turn.batch)
    workers = subprocess.Popen(
        [sys.executable, "-m", "dramatiq", Path(__file__).stem, "--processes", "2", "--threads", str(threads)],
        env=environment,
        cwd=Path(__file__).parent,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while len(list(Path(folder).iterdir())) < 2:
        time.sleep(0.05)
    return workers


if __name__ == "__main__":
    main()
