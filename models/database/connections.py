"""Connections and durable transactions: outermost, short, one for each thread or asyncio task."""

import asyncio
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from weakref import WeakSet

import psycopg2
import psycopg2.errors
from psycopg2 import extensions

from models.database.deadlines import Deadlines
from models.database.pool import Pool
from models.errors import DatabaseUnreachable, NestedTransaction, PooledSession

#: What the driver raises when the server or the connection is gone, or the server takes no writes (a failover).
_DISCONNECTS = (psycopg2.OperationalError, psycopg2.InterfaceError, psycopg2.errors.ReadOnlySqlTransaction)

#: Said when connecting, so that neither PGCLIENTENCODING nor a setting of the role or the database has a say.
CLIENT_ENCODING = "UTF8"

#: How transactions are isolated, whatever the role's or the database's default is: each statement has a snapshot of its
#: own, since what is looked at once a row is locked must be as it is then.
ISOLATION = "read committed"

#: A limit of PostgreSQL's that a value exceeds (SQLSTATE class 54); the driver counts it among the above.
_TOO_MUCH = (
    psycopg2.errors.ProgramLimitExceeded,
    psycopg2.errors.StatementTooComplex,
    psycopg2.errors.TooManyColumns,
    psycopg2.errors.TooManyArguments,
)

#: What a server says that ends a session instead of carrying out its statement, or while it was idle.
_ENDED_BEFORE = (psycopg2.errors.AdminShutdown, psycopg2.errors.IdleSessionTimeout)

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

#: Keepalives of the server's end, in PostgreSQL's units (s, ms).
SERVER_KEEPALIVES: Mapping[str, str] = {
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10s",
}

Row = tuple[object, ...]


#: How a look at the beginning of a long line is planned: row by row along its index. A table that has just been filled
#: has no statistics, and the planner, which takes it for a small one, would read and sort all of it at each look.
BY_INDEX = {
    **dict.fromkeys(("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "enable_material", "enable_sort"), "off"),
    "jit": "off",
}


@dataclass(frozen=True)
class Limits:
    """How long things may take, in seconds; 0 is for ever.

    Attributes:
        statement: one statement, by the server's clock.
        lock: waiting for a lock.
        idle: between two statements of a transaction, before the server ends it.
        session: of a session of one's own between two statements, before the server ends it.
        patience: how long after `statement` an answer may still come, before this end hangs up.
        are_by_index: whether statements read row by row along indexes, whatever the statistics say.
    """

    statement: float = 30.0
    lock: float = 10.0
    idle: float = 5.0
    session: float = 0.0
    patience: float = 5.0
    are_by_index: bool = False

    @property
    def answer(self) -> float:
        """Seconds until this end hangs up; 0 for never."""
        return self.statement + self.patience if self.statement else 0.0

    @property
    def parameters(self) -> dict[str, str]:
        """PostgreSQL's settings for them."""
        return {
            "statement_timeout": _milliseconds(self.statement),
            "lock_timeout": _milliseconds(self.lock),
            "idle_in_transaction_session_timeout": _milliseconds(self.idle),
            "timezone": "UTC",
            **(BY_INDEX if self.are_by_index else {}),
        }

    @cached_property
    def by_index(self) -> "Limits":
        """The same for statements that read along indexes."""
        return replace(self, are_by_index=True)

    @cached_property
    def opening(self) -> str:
        """What goes before a transaction's first statement, in the same round trip.

        The limits hold for that transaction alone: a pooler may give its session to others afterwards. An answer that
        cannot be written, as the network is cut, must not keep locks until the kernel gives up, a quarter of an hour
        later: no other limit holds while the server writes.
        """
        settings = {
            "transaction_isolation": ISOLATION,
            **self.parameters,
            "tcp_user_timeout": SERVER_KEEPALIVES["tcp_user_timeout"],
        }
        return "".join(f"SET LOCAL {name} = '{value}'; " for name, value in settings.items())


#: Work that takes as long as it takes, such as an index over millions of rows.
UNLIMITED = Limits(statement=0, lock=0)

#: Classes of SQLSTATE that say that the server, or the connection, is gone or takes no writes.
_AWAY = frozenset({"08", "57", "25"})

#: A statement took longer than it may, which is in such a class.
_CANCELLED = "57014"


def refusal_behind(error: DatabaseUnreachable) -> psycopg2.Error | None:
    """What the server has refused, or cut short, where that is all: it is there, and takes other statements."""
    cause = error.__cause__
    sqlstate = cause.pgcode if isinstance(cause, psycopg2.Error) else None
    if not isinstance(cause, psycopg2.Error) or sqlstate is None:
        return None
    return cause if sqlstate == _CANCELLED or sqlstate[:2] not in _AWAY else None


class Cursor(extensions.cursor):
    """The driver's cursor, which says `DatabaseUnreachable` when the server or the connection is gone.

    Attributes:
        opening: what goes before the next statement, in the same round trip.
        answer: seconds until it hangs up on a server that does not answer; 0 for never.
        deadlines: what hangs up.
    """

    opening = ""
    answer = 0.0
    deadlines: Deadlines

    def execute(self, query: str, vars: object = None) -> None:  # type: ignore[override]  # noqa: A002 - the driver's
        """Runs a statement.

        Raises:
            DatabaseUnreachable: the server, the connection or the session has ended, or it was too slow.
            psycopg2.Error: the server refuses the statement.
        """
        with _answered(self.connection, self.deadlines, self.answer):
            # What the driver cannot put into a statement fails here, and BEGIN still goes before the next one.
            statement = self.mogrify(query, vars)  # type: ignore[arg-type]
            opening, self.opening = self.opening, ""
            super().execute(opening.encode() + statement)


class Connection(extensions.connection):
    """The driver's connection, with our cursors.

    Attributes:
        answer: seconds until it hangs up on a server that does not answer; 0 for never.
        deadlines: what hangs up.
    """

    answer = 0.0
    deadlines: Deadlines

    def cursor(self) -> Cursor:  # type: ignore[override]  # the driver's takes options that nobody here needs
        """A new cursor.

        Raises:
            DatabaseUnreachable: the connection is closed.
        """
        if self.closed:
            raise DatabaseUnreachable("the connection is closed")
        cursor = super().cursor(cursor_factory=Cursor)
        cursor.answer = self.answer
        cursor.deadlines = self.deadlines
        return cursor


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
    """One PostgreSQL database, and the connections that the threads of this process share.

    Building one does no I/O: a connection is made when a thread needs one and none is free, and a new one is made when
    the server has closed it meanwhile. A thread or an asyncio task has one for a transaction, and then another may.
    There may be a pooler in transaction mode in between: nothing is left in a session but for those of `connect()`. A
    child process after a fork makes connections of its own.

    Args:
        url: a libpq URL or connection string.
        application_name: what `pg_stat_activity` shows.
        limits: how long things may take.
        variable: the setting that the URL is from, for errors.
        most: how many connections at the most; a thread waits for one to be free, an asyncio task does not. Any number
            without it.
        deadlines: what hangs up on a server that does not answer, and has a thread; its own without it.
    """

    def __init__(
        self,
        url: str,
        *,
        application_name: str = "duepost",
        limits: Limits | None = None,
        variable: str = "DUEPOST_DATABASE_URL",
        most: int | None = None,
        deadlines: Deadlines | None = None,
    ) -> None:
        self.url = url
        self.application_name = application_name
        self.limits = limits or Limits()
        self.variable = variable
        self.deadlines = deadlines or Deadlines()
        self._most = most
        self._forget_connections()
        _databases.add(self)

    def _forget_the_parents(self) -> None:
        self.deadlines.forget()
        self._forget_connections()

    def _forget_connections(self) -> None:
        #: The open transactions, by the asyncio task or the thread that each belongs to.
        self._transactions: dict[object, Transaction] = {}
        self._pool = Pool(self._open, is_usable, self._most)

    def connect(self) -> Connection:
        """A new connection of the caller's own, in autocommit mode; its session has the limits and keepalives.

        Raises:
            PooledSession: there is a pooler in between: the session would not be our own.
            DatabaseUnreachable: there is no server, no such database, or it refuses us.
        """
        connection = self._open()
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            if cursor.fetchone() != (connection.info.backend_pid,):
                connection.close()
                raise PooledSession(
                    "there is a pooler between here and PostgreSQL: DUEPOST_SESSION_DATABASE_URL must lead past it"
                )
        session = {
            **self.limits.parameters,
            **SERVER_KEEPALIVES,
            "default_transaction_isolation": ISOLATION,
            "idle_session_timeout": f"{self.limits.session:.0f}s",
        }
        with connection.cursor() as cursor:
            settings = ", ".join(f"set_config('{name}', %s, false)" for name in session)
            cursor.execute(f"SELECT {settings}", tuple(session.values()))
        return connection

    @property
    def current(self) -> Transaction | None:
        """The transaction that is open here, if any: this asyncio task's own, or outside of tasks this thread's.

        It is nobody else's: a task or a thread that is started while it is open has none.
        """
        return self._transactions.get(_who_runs()) if self._transactions else None

    @contextmanager
    def transaction(self, limits: Limits | None = None) -> Iterator[Cursor]:
        """Opens a durable transaction: committed at the end of the block, rolled back if it raises.

        BEGIN goes with the first statement; a block without one does nothing.

        Raises:
            NestedTransaction: this task or thread has one open already.
            DatabaseUnreachable: no connection could be made, or it was lost.
        """
        with self._borrowed() as connection, self._cursor(connection, limits or self.limits) as cursor:
            cursor.opening = f"BEGIN; {cursor.opening}"
            owner = _who_runs()
            self._transactions[owner] = transaction = Transaction(cursor)
            try:
                yield cursor
                _commit(cursor)
            except BaseException:
                _roll_back(connection)
                raise
            finally:
                self._transactions.pop(owner, None)
        transaction.committed()

    def execute(
        self, statement: str, parameters: Mapping[str, object] | None = None, *, limits: Limits | None = None
    ) -> list[Row]:
        """Runs one statement in a transaction of its own: one round trip.

        Where the server says that it ended the session instead, nothing was done, and it is tried once more.

        Returns:
            its rows; none where it gives none.

        Raises:
            NestedTransaction: this task or thread has a transaction open.
            DatabaseUnreachable: no connection could be made, or it was lost.
        """
        try:
            return self._execute_once(statement, parameters, limits or self.limits)
        except DatabaseUnreachable as error:
            if not isinstance(error.__cause__, _ENDED_BEFORE):
                raise
        return self._execute_once(statement, parameters, limits or self.limits)

    def _execute_once(self, statement: str, parameters: Mapping[str, object] | None, limits: Limits) -> list[Row]:
        with self._borrowed() as connection, self._cursor(connection, limits) as cursor:
            cursor.execute(statement, parameters)
            return list(cursor.fetchall()) if cursor.description else []

    def call(self, statement: str, parameters: Mapping[str, object]) -> list[Row]:
        """Calls a procedure that commits on its own, and sets its own limits; this end hangs up as with any other.

        So is asked, too, what only looks and is asked many times a second: the limits cost more than the look.

        Returns:
            its rows.

        Raises:
            NestedTransaction: this task or thread has a transaction open.
            DatabaseUnreachable: no connection could be made, or it was lost; some of it may be committed.
        """
        with self._borrowed() as connection, self._cursor(connection, self.limits) as cursor:
            cursor.opening = ""
            cursor.execute(statement, parameters)
            return list(cursor.fetchall())

    def close(self) -> None:
        """Closes the connections that no thread has just now; the next statement makes a new one."""
        while (connection := self._pool.take_free()) is not None:
            connection.close()

    def _open(self) -> Connection:
        if not self.url:
            raise DatabaseUnreachable(f"{self.variable}: not set")
        try:
            dsn = extensions.make_dsn(
                self.url,
                connect_timeout=CONNECT_TIMEOUT,
                fallback_application_name=self.application_name,
                client_encoding=CLIENT_ENCODING,
                **KEEPALIVES,
            )
            connection: Connection = psycopg2.connect(dsn, connection_factory=Connection)
        except psycopg2.OperationalError as error:
            raise DatabaseUnreachable(_one_line(error)) from error
        except psycopg2.ProgrammingError as error:
            raise DatabaseUnreachable(f"{self.variable}: {_one_line(error)}") from error
        connection.autocommit = True
        connection.answer = self.limits.answer
        connection.deadlines = self.deadlines
        _connections.add(connection)
        return connection

    def _cursor(self, connection: Connection, limits: Limits) -> Cursor:
        cursor = connection.cursor()
        cursor.opening = limits.opening
        cursor.answer = limits.answer
        return cursor

    def _borrowed(self) -> AbstractContextManager[Connection]:
        if self.current is not None:
            raise NestedTransaction("a transaction is open here already: transactions are outermost")
        # A task that waited for a connection would stop its whole thread, that one too which is to return a connection.
        return self._pool.lent(waits=not isinstance(_who_runs(), asyncio.Task))


@contextmanager
def _answered(connection: extensions.connection, deadlines: Deadlines, seconds: float) -> Iterator[None]:
    """Waits no longer than `seconds` for the server, and gives all that means "it is gone" one name."""
    if connection.closed:
        raise DatabaseUnreachable("the connection is closed")
    descriptor = connection.fileno()
    if seconds:
        deadlines.begin(descriptor, seconds)
    try:
        yield
    except _TOO_MUCH:
        raise
    except _DISCONNECTS as error:
        raise DatabaseUnreachable(_one_line(error)) from error
    except psycopg2.DatabaseError as error:
        # The driver has no better name for a server that ends in the middle of an answer.
        if type(error) is not psycopg2.DatabaseError:
            raise
        raise DatabaseUnreachable(_one_line(error)) from error
    finally:
        if seconds:
            deadlines.end(descriptor)


def _commit(cursor: Cursor) -> None:
    if cursor.connection.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE:
        # Nothing was said in it, or the server has ended it: then the next statement would have failed.
        return
    cursor.execute("COMMIT")
    if cursor.statusmessage != "COMMIT":
        raise psycopg2.InternalError("a statement of the transaction had failed: nothing was committed")


def _roll_back(connection: Connection) -> None:
    with suppress(DatabaseUnreachable, psycopg2.Error):
        if not connection.closed and connection.get_transaction_status() != extensions.TRANSACTION_STATUS_IDLE:
            with connection.cursor() as cursor:
                cursor.execute("ROLLBACK")


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f}ms"


def is_usable(connection: Connection) -> bool:
    """Whether an idle connection is still good; asks the kernel, not the server. One that is not is closed."""
    if connection.closed:
        return False
    # An idle session has nothing to say but goodbye: what can be read is the end, or what comes before it. And a thread
    # may have been interrupted in the middle of something.
    if _is_readable(connection) or connection.get_transaction_status() != extensions.TRANSACTION_STATUS_IDLE:
        connection.close()
    return not connection.closed


def _is_readable(connection: Connection) -> bool:
    # Not select(): a process may have more than its 1,024 descriptors.
    looked = select.poll()
    looked.register(connection.fileno(), select.POLLIN)
    return bool(looked.poll(0))


def _who_runs() -> object:
    """What a transaction belongs to: the asyncio task that runs here, else the thread."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return task or threading.get_ident()


def _forget_the_parents_connections() -> None:
    """In a child after a fork: what the parent has open is the parent's; nothing is said on it, not even goodbye.

    The child's copies of the sockets are replaced by one whose other end is closed: the sessions end with the parent,
    and what still goes on in a transaction of the parent's is told that it is disconnected.
    """
    dead, other_end = socket.socketpair()
    other_end.close()
    with dead:
        for connection in list(_connections):
            with suppress(psycopg2.Error, OSError):
                os.dup2(dead.fileno(), connection.fileno(), inheritable=False)
    _connections.clear()
    for database in list(_databases):
        database._forget_the_parents()  # noqa: SLF001 - of this module


#: What a child has to forget.
_connections: WeakSet[Connection] = WeakSet()
_databases: WeakSet[Database] = WeakSet()
os.register_at_fork(after_in_child=_forget_the_parents_connections)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
