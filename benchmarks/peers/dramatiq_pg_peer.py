"""Stock dramatiq and dramatiq-pg: a message for each row, sent and deleted by threads; two processes."""

import os
import signal
import smtplib
import subprocess
import sys
import threading
import time
from pathlib import Path

import dramatiq
import psycopg2
from dramatiq_pg import PostgresBroker
from psycopg2.pool import ThreadedConnectionPool
from turn import SENDER, Turn, begin, content

PROCESSES = 2

URL = os.environ.get("PEER_URL", sys.argv[1] if len(sys.argv) > 1 else "")
broker = PostgresBroker(pool=ThreadedConnectionPool(0, 64, URL))
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


def main() -> None:
    """A turn."""
    from dramatiq_pg.schema import generate_init_sql

    turn = Turn.given()
    connection = psycopg2.connect(turn.url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(generate_init_sql())
        cursor.execute("CREATE TABLE email (id serial PRIMARY KEY, address text NOT NULL)")
        cursor.execute("INSERT INTO email (address) SELECT unnest(%s)", (turn.addresses,))
        cursor.execute("SELECT id FROM email")
        for (row_id,) in cursor.fetchall():
            send.send(row_id)
        begin()
        environment = {
            **os.environ,
            "PEER_URL": turn.url,
            "PEER_PORT": str(turn.port),
            # With its own, two for each thread, the consumer sleeps for up to a second whenever it is that much ahead.
            "dramatiq_queue_prefetch": str(turn.emails),
        }
        arguments = ["--processes", str(PROCESSES), "--threads", str(turn.share(PROCESSES))]
        workers = subprocess.Popen(
            [sys.executable, "-m", "dramatiq", Path(__file__).stem, *arguments],
            env=environment,
            cwd=Path(__file__).parent,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while True:
            cursor.execute("SELECT count(*) FROM email")
            if cursor.fetchone() == (0,):
                break
            time.sleep(0.1)
        # All its processes: those that are left would work on the next turn.
        os.killpg(workers.pid, signal.SIGKILL)
        workers.wait()
    connection.close()


if __name__ == "__main__":
    main()
