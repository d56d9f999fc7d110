"""Connections and durable transactions: outermost, short, one a thread."""

import select
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import psycopg2
import psycopg2.errors
from psycopg2 import extensions

from models.errors import DatabaseUnreachable, NestedTransaction

#: What the driver raises when the server or the connection is gone, or the server takes no writes (a failover).
DISCONNECTS = (psycopg2.OperationalError, psycopg2.InterfaceError, psycopg2.errors.ReadOnlySqlTransaction)

#: Seconds to wait for a connection.
CONNECT_TIMEOUT = 5

#: Keepalives of our end: a dead peer is noticed within 5 + 3 * 2 seconds, unacknowledged data within 10.
KEEPALIVES: Mapping[str, int] = {
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

#: Limits of every session, and keepalives of the server's end, in PostgreSQL's units (ms, s).
SESSION_LIMITS: Mapping[str, str] = {
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "60s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10s",
    "timezone": "UTC",
}

Connection = extensions.connection
Cursor = extensions.cursor
Row = tuple[object, ...]


class Transaction:
    """An open transaction: its cursor, and what is to happen once it is committed."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor
        self._after_commit: list[Callable[[], None]] = []

    def after_commit(self, action: Callable[[], None]) -> None:
        """Runs `action` after the commit; a rollback forgets it."""
        self._after_commit.append(action)

    def committed(self) -> None:
        """Runs what was waiting for the commit, in order."""
        for action in self._after_commit:
            action()


class Database:
    """One PostgreSQL database, a connection for each thread that uses it.

    Building one does no I/O: a connection is made when a thread first needs it, and made anew when
    the server has closed it meanwhile.

    Args:
        url: a libpq URL or connection string.
        application_name: what `pg_stat_activity` shows.
    """

    def __init__(self, url: str, *, application_name: str = "duepost") -> None:
        self.url = url
        self.application_name = application_name
        self._thread = threading.local()

    def connect(self) -> Connection:
        """A new connection of the caller's own, with Duepost's limits and keepalives.

        Raises:
            DatabaseUnreachable: there is no server, no such database, or it refuses us.
        """
        if not self.url:
            raise DatabaseUnreachable("DUEPOST_DATABASE_URL: not set")
        try:
            dsn = extensions.make_dsn(
                self.url,
                connect_timeout=CONNECT_TIMEOUT,
                fallback_application_name=self.application_name,
                **KEEPALIVES,
            )
            connection = psycopg2.connect(dsn)
        except psycopg2.OperationalError as error:
            raise DatabaseUnreachable(_one_line(error)) from error
        except psycopg2.ProgrammingError as error:
            raise DatabaseUnreachable(f"DUEPOST_DATABASE_URL: {_one_line(error)}") from error
        connection.autocommit = True
        with connection.cursor() as cursor:
            settings = ", ".join(f"set_config('{name}', %s, false)" for name in SESSION_LIMITS)
            cursor.execute(f"SELECT {settings}", tuple(SESSION_LIMITS.values()))
        return connection

    @property
    def current(self) -> Transaction | None:
        """The transaction that this thread has open, if any."""
        transaction: Transaction | None = getattr(self._thread, "transaction", None)
        return transaction

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        """Opens a durable transaction: committed at the end of the block, rolled back if it raises.

        Raises:
            NestedTransaction: this thread has one open already.
            DatabaseUnreachable: no connection could be made.
        """
        connection = self._own_connection()
        connection.autocommit = False
        try:
            with connection.cursor() as cursor:
                self._thread.transaction = transaction = Transaction(cursor)
                yield cursor
            connection.commit()
        except BaseException:
            with suppress(*DISCONNECTS):
                connection.rollback()
            raise
        finally:
            self._thread.transaction = None
        transaction.committed()

    def execute(self, statement: str, parameters: Mapping[str, object] | None = None) -> list[Row]:
        """Runs one statement in a transaction of its own: one round trip.

        Returns:
            its rows; none where it gives none.

        Raises:
            NestedTransaction: this thread has a transaction open.
            DatabaseUnreachable: no connection could be made.
        """
        connection = self._own_connection()
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return list(cursor.fetchall()) if cursor.description else []

    def close(self) -> None:
        """Closes this thread's connection."""
        connection: Connection | None = getattr(self._thread, "connection", None)
        if connection is not None:
            connection.close()
        self._thread.connection = None

    def _own_connection(self) -> Connection:
        if self.current is not None:
            raise NestedTransaction("a transaction is open in this thread: transactions are outermost")
        connection: Connection | None = getattr(self._thread, "connection", None)
        if connection is None or not is_usable(connection):
            self.close()
            connection = self._thread.connection = self.connect()
        return connection


def is_usable(connection: Connection) -> bool:
    """Whether an idle connection is still good; asks the kernel, not the server."""
    if connection.closed:
        return False
    readable, _, _ = select.select([connection], [], [], 0)
    if readable:
        # An idle session has nothing to say but goodbye.
        try:
            connection.poll()
        except DISCONNECTS:
            return False
    return not connection.closed


def rows_as_dicts(cursor: Cursor) -> list[dict[str, object]]:
    """The rest of a cursor's rows, by column name."""
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
