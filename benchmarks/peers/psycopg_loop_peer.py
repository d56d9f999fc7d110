"""A SKIP LOCKED loop in plain psycopg 3: a thread for each connection, one row a commit; two processes.

Each thread keeps a session and an smtplib connection: lock a row, send it, delete it, commit.
"""

import multiprocessing
import smtplib
import threading
import time

import psycopg
from turn import SENDER, Mode, Turn, begin, content

TABLE = """
    CREATE TABLE email (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        due_at timestamptz NOT NULL DEFAULT now(),
        address text NOT NULL
    );
    CREATE INDEX ON email (due_at, id);
"""

NEXT = "SELECT id, address FROM email WHERE due_at <= now() ORDER BY due_at, id LIMIT 1 FOR UPDATE SKIP LOCKED"


def deliver(turn: Turn, go: "multiprocessing.synchronize.Event") -> None:
    """One thread's part: until no row is due, or for ever where it is resumed."""
    with psycopg.connect(turn.url) as connection, smtplib.SMTP("127.0.0.1", turn.port) as relay:
        go.wait()
        while True:
            with connection.transaction(), connection.cursor() as cursor:
                row = cursor.execute(NEXT).fetchone()
                if row is not None:
                    row_id, to = row
                    relay.sendmail(SENDER, [to], content(to))
                    cursor.execute("DELETE FROM email WHERE id = %s", (row_id,))
            if row is None:
                if turn.mode is Mode.DRAIN:
                    return
                time.sleep(0.1)


def work(turn: Turn, go: "multiprocessing.synchronize.Event") -> None:
    """A process."""
    threads = [threading.Thread(target=deliver, args=(turn, go)) for _ in range(turn.share(1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """A turn."""
    turn = Turn.given()
    if turn.mode is Mode.DRAIN:
        with psycopg.connect(turn.url) as connection:
            connection.execute(TABLE)
            connection.execute("INSERT INTO email (address) SELECT unnest(%s::text[])", (turn.addresses,))
    go = multiprocessing.Event()
    processes = [multiprocessing.Process(target=work, args=(turn, go)) for _ in range(turn.processes)]
    for process in processes:
        process.start()
    begin()
    go.set()
    for process in processes:
        process.join()


if __name__ == "__main__":
    main()
