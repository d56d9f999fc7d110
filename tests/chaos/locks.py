"""A client that takes every advisory lock it can get, and waits for those it cannot: any login may."""

import threading
from contextlib import suppress

import psycopg2

from tests.postgres import Connection

#: The locks of those who are there now: class and object, as `pg_locks` shows them.
HELD = """
SELECT DISTINCT classid::bigint, objid::bigint, objsubid
FROM pg_locks
WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

#: Of the classes that Duepost has used for its workers and for itself, every object with a low number.
FREE = (
    "SELECT count(*) FROM generate_series(1148543344, 1148543345) AS class, generate_series(0, 1000) AS object"
    " WHERE pg_try_advisory_lock(class, object)"
)


class AdvisoryLocks:
    """Sessions of one client, until it lets go."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._sessions: list[Connection] = []
        with suppress(psycopg2.Error):
            session = self._connect()
            with session.cursor() as cursor:
                cursor.execute(HELD)
                held = cursor.fetchall()
                cursor.execute(FREE)
            for lock in held:
                threading.Thread(target=self._wait_for, args=lock, daemon=True).start()

    def _connect(self) -> Connection:
        session = psycopg2.connect(self._url, connect_timeout=5, application_name="locks")
        session.autocommit = True
        self._sessions.append(session)
        return session

    def _wait_for(self, class_id: int, object_id: int, kind: int) -> None:
        statement = (
            "SELECT pg_advisory_lock(%s::int, %s::int)" if kind == 2 else "SELECT pg_advisory_lock(%s << 32 | %s)"
        )
        with suppress(psycopg2.Error), self._connect().cursor() as cursor:
            cursor.execute(statement, (class_id, object_id))

    def let_go(self) -> None:
        """Ends all its sessions, waiting or not."""
        with suppress(psycopg2.Error):
            killer = psycopg2.connect(self._url, connect_timeout=5)
            killer.autocommit = True
            with killer.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'locks' AND datname = current_database()"
                )
            killer.close()
        for session in self._sessions:
            with suppress(psycopg2.Error):
                session.close()
