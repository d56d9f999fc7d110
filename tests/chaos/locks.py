"""A client that takes every advisory lock it can get, and waits for those it cannot: any login may."""

import threading
from contextlib import closing, suppress

import psycopg2

from models.database import advisory_locks
from tests.postgres import Connection

#: What its sessions are called.
NAME = "locks"

#: The locks of those who are there now, but for another one of these clients, which has thousands: class and object, as
#: `pg_locks` shows them.
HELD = """
SELECT DISTINCT l.classid::bigint, l.objid::bigint, l.objsubid
FROM pg_locks AS l
JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND a.application_name <> 'locks'
"""

#: Of the classes that Duepost has used for its workers and for itself, every object with a low number.
FREE = (
    f"SELECT count(*) FROM unnest(ARRAY[{advisory_locks.WORKER}, {advisory_locks.ROLE}]) AS class,"
    " generate_series(0, 1000) AS object"
    " WHERE pg_try_advisory_lock(class, object)"
)


class AdvisoryLocks:
    """Sessions of one client, until it lets go."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._is_over = threading.Event()
        with suppress(psycopg2.Error):
            holder = self._connect()
            with holder.cursor() as cursor:
                cursor.execute(HELD)
                held = cursor.fetchall()
                cursor.execute(FREE)
            self._holder = holder
            for lock in held:
                threading.Thread(target=self._wait_for, args=lock, daemon=True).start()

    def _connect(self) -> Connection:
        session = psycopg2.connect(self._url, connect_timeout=5, application_name=NAME)
        session.autocommit = True
        return session

    def _wait_for(self, class_id: int, object_id: int, kind: int) -> None:
        # pg_locks shows a pair of integers with the sub-id 2, one bigint as its two halves with 1.
        pair, whole = "SELECT pg_advisory_lock(%s::int, %s::int)", "SELECT pg_advisory_lock((%s::bigint << 32) | %s)"
        with suppress(psycopg2.Error), closing(self._connect()) as session, session.cursor() as cursor:
            # The client that waits ends by itself should nobody end it.
            cursor.execute("SET lock_timeout = '10s'")
            cursor.execute(pair if kind == 2 else whole, (class_id, object_id))
            self._is_over.wait(10)

    def let_go(self) -> None:
        """Ends all its sessions, waiting or not."""
        self._is_over.set()
        with suppress(psycopg2.Error), closing(psycopg2.connect(self._url, connect_timeout=5)) as session:
            session.autocommit = True
            with session.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = %s AND datname = current_database()",
                    (NAME,),
                )
