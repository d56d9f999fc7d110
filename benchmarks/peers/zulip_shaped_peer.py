"""A loop shaped like Zulip's: one process, one connection, a transaction for each row; lock, send, delete."""

import smtplib

import psycopg2
from turn import SENDER, Turn, begin, content


def main() -> None:
    """A turn."""
    turn = Turn.given()
    connection = psycopg2.connect(turn.url)
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE email (id serial PRIMARY KEY, due_at timestamptz DEFAULT now(), address text)")
        cursor.execute("CREATE INDEX ON email (due_at)")
        cursor.execute("INSERT INTO email (address) SELECT unnest(%s)", (turn.addresses,))
    begin()
    with smtplib.SMTP("127.0.0.1", turn.port) as client:
        while True:
            with connection, connection.cursor() as cursor:
                cursor.execute(
                    "SELECT id, address FROM email WHERE due_at <= now() ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED"
                )
                row = cursor.fetchone()
                if row is None:
                    break
                client.sendmail(SENDER, [row[1]], content(row[1]))
                cursor.execute("DELETE FROM email WHERE id = %s", (row[0],))
    connection.close()


if __name__ == "__main__":
    main()
