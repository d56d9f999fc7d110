"""What the caller's transaction is given as: which driver's it is, and what to pass instead where it is none.

No driver is imported: what is not loaded cannot have made it.
"""

import sys
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from inspect import iscoroutinefunction
from typing import Never, Protocol

from duepost.call import Row

#: What can be done with any driver, as an error says it.
BY_HAND = "run SELECT duepost.schedule_email(…) by the driver's own means (duepost.statement() gives it)"

#: What SQLAlchemy has to be given as, at the least: before, a Connection did not open a transaction for a SELECT.
SQLALCHEMY = 2


class Cursor(Protocol):
    """Any DB-API 2.0 cursor with the `pyformat` style: psycopg, psycopg2, Django's, SQLAlchemy's raw one."""

    # Never: psycopg's takes literal texts only, psycopg2's any, and a cursor of either will do.
    def execute(self, operation: Never, parameters: Never, /) -> object:
        """Runs a statement."""

    def fetchall(self) -> "Iterable[AnyRow]":
        """The rest of the rows."""


class SqlalchemyHandle(Protocol):
    """SQLAlchemy's `Session`, `scoped_session` or `Connection`."""

    def scalars(self, statement: Never, /) -> object:
        """Runs a statement; returns its first column. No DB-API cursor has it."""

    def execute(self, statement: Never, parameters: Never, /) -> object:
        """Runs a statement."""


class AsyncCursor(Protocol):
    """An asynchronous cursor as psycopg has it."""

    def execute(self, operation: Never, parameters: Never, /) -> Awaitable[object]:
        """Runs a statement."""

    def fetchall(self) -> "Awaitable[Iterable[AnyRow]]":
        """The rest of the rows."""


class AsyncpgConnection(Protocol):
    """A connection of asyncpg."""

    def fetch(self, query: str, /, *args: object) -> Awaitable[Iterable[Iterable[object]]]:
        """Runs a statement; returns its rows."""


class PsycopgConnection(Protocol):
    """An asynchronous connection of psycopg."""

    def cursor(self) -> AsyncCursor:
        """A cursor."""


class AsyncSqlalchemyHandle(Protocol):
    """SQLAlchemy's `AsyncSession`, `async_scoped_session` or `AsyncConnection`."""

    def scalars(self, statement: Never, /) -> Awaitable[object]:
        """Runs a statement; returns its first column. No cursor has it."""

    def execute(self, statement: Never, parameters: Never, /) -> Awaitable[object]:
        """Runs a statement."""


#: Cursors give rows as sequences, or, if they are so made, by column name.
AnyRow = Sequence[object] | Mapping[str, object]

#: What the functions of `duepost` take.
Handle = Cursor | SqlalchemyHandle

#: What those of `duepost.aio` take.
AsyncHandle = AsyncCursor | PsycopgConnection | AsyncpgConnection | AsyncSqlalchemyHandle


def values(row: object) -> Row:
    """Returns a row's values in the order of its columns.

    Raises:
        TypeError: it has none that could be read.
    """
    if isinstance(row, Mapping):
        return list(row.values())
    if isinstance(row, Iterable) and not isinstance(row, str):
        return list(row)
    raise TypeError(f"cursor: gives rows as {type(row).__name__}; give one that gives tuples")


def is_made_by(handle: object, module: str, *names: str) -> bool:
    """Whether a handle is an instance of one of these classes of a module; no if nobody has loaded that."""
    loaded = sys.modules.get(module)
    classes = [getattr(loaded, name, None) for name in names]
    return any(isinstance(each, type) and isinstance(handle, each) for each in classes)


def is_sqlalchemy(handle: object) -> bool:
    """Whether it is what SQLAlchemy runs statements with.

    Raises:
        TypeError: it is, and not on PostgreSQL, or of a release before 2.
    """
    is_session = is_made_by(handle, "sqlalchemy.orm", "Session", "scoped_session")
    if not is_session and not is_made_by(handle, "sqlalchemy.engine", "Connection"):
        return False
    _check_sqlalchemy(handle)
    return True


def is_async_sqlalchemy(handle: object) -> bool:
    """Whether it is what SQLAlchemy runs statements with, asynchronously; raises what `is_sqlalchemy()` does."""
    names = ("AsyncSession", "async_scoped_session", "AsyncConnection")
    if not is_made_by(handle, "sqlalchemy.ext.asyncio", *names):
        return False
    _check_sqlalchemy(handle)
    return True


def is_asyncpg(handle: object) -> bool:
    """Whether it is a connection of asyncpg, also one out of a pool."""
    return is_made_by(handle, "asyncpg", "Connection") or is_made_by(handle, "asyncpg.pool", "PoolConnectionProxy")


def is_psycopg_connection(handle: object) -> bool:
    """Whether it is an asynchronous connection of psycopg."""
    return is_made_by(handle, "psycopg", "AsyncConnection")


def check_cursor(handle: object) -> None:
    """Returns if it is a synchronous cursor on PostgreSQL.

    Raises:
        TypeError: it is none; the message says what to pass.
    """
    _check_postgres(handle)
    if _is_asynchronous(handle):
        raise asynchronous(handle)
    if hasattr(handle, "execute") and hasattr(handle, "fetchall"):
        return
    raise TypeError(f"cursor: {_advice(handle)}; without one, {BY_HAND}")


def check_async_cursor(handle: object) -> None:
    """Returns if it is an asynchronous cursor.

    Raises:
        TypeError: it is none; the message says what to pass.
    """
    if iscoroutinefunction(getattr(handle, "execute", None)) and hasattr(handle, "fetchall"):
        return
    if is_sqlalchemy(handle) or (hasattr(handle, "execute") and hasattr(handle, "fetchall")):
        raise TypeError(
            f"cursor: {_name(handle)} is synchronous: call duepost.schedule_email(…) instead of duepost.aio, or give "
            f"an asynchronous one; or {BY_HAND}"
        )
    raise TypeError(f"cursor: {_async_advice(handle)}; without one, {BY_HAND}")


def asynchronous(handle: object) -> TypeError:
    """Returns the error for a handle that is to be awaited, and was given to a function that does not."""
    return TypeError(
        f"cursor: {_name(handle)} is asynchronous: await duepost.aio.schedule_email(…), or give a synchronous one; or "
        f"{BY_HAND}"
    )


def _is_asynchronous(handle: object) -> bool:
    if is_asyncpg(handle) or is_psycopg_connection(handle):
        return True
    if is_made_by(handle, "sqlalchemy.ext.asyncio", "AsyncSession", "async_scoped_session", "AsyncConnection"):
        return True
    return iscoroutinefunction(getattr(handle, "execute", None))


def _check_sqlalchemy(handle: object) -> None:
    release = str(getattr(sys.modules.get("sqlalchemy"), "__version__", ""))
    if int(release.partition(".")[0] or 0) < SQLALCHEMY:
        raise TypeError(f"cursor: needs SQLAlchemy 2 or later, and this {_name(handle)} is of {release}; {BY_HAND}")
    dialect = getattr(handle, "dialect", None)
    if dialect is None:
        dialect = handle.get_bind().dialect  # type: ignore[attr-defined]  # that of a session
    if dialect.name != "postgresql":
        raise TypeError(f"cursor: Duepost needs PostgreSQL, and this {_name(handle)} is on {dialect.name}")


def _check_postgres(handle: object) -> None:
    vendor = getattr(getattr(handle, "db", None), "vendor", None)  # as Django's cursors say
    if is_made_by(handle, "sqlite3", "Cursor", "Connection"):
        vendor = "sqlite"
    if isinstance(vendor, str) and vendor != "postgresql":
        raise TypeError(f"cursor: Duepost needs PostgreSQL, and this {_name(handle)} is on {vendor}")


def _advice(handle: object) -> str:
    if is_made_by(handle, "sqlalchemy", "Engine"):
        return "is an Engine: give a Connection of it, as in `with engine.begin() as connection`"
    if is_made_by(handle, "sqlalchemy.orm", "sessionmaker"):
        return "is a sessionmaker: give a Session that it makes"
    if callable(getattr(handle, "cursor", None)):
        return f"is a connection ({_name(handle)}): give a cursor of it, connection.cursor()"
    return f"must be a DB-API cursor, or SQLAlchemy's Session or Connection, not {_name(handle)}"


def _async_advice(handle: object) -> str:
    if is_made_by(handle, "asyncpg", "Pool"):
        return "is a pool: give a connection of it, as in `async with pool.acquire() as connection`"
    if is_made_by(handle, "sqlalchemy.ext.asyncio", "AsyncEngine"):
        return "is an AsyncEngine: give a connection of it, as in `async with engine.begin() as connection`"
    if is_made_by(handle, "sqlalchemy.ext.asyncio", "async_sessionmaker"):
        return "is an async_sessionmaker: give an AsyncSession that it makes"
    return (
        "must be psycopg's AsyncCursor or AsyncConnection, asyncpg's Connection, or SQLAlchemy's AsyncSession or "
        f"AsyncConnection, not {_name(handle)}"
    )


def _name(handle: object) -> str:
    return type(handle).__name__
