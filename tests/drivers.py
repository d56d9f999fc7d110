"""Applications on every driver that Duepost takes: what each hands to it, and how each ends its transaction."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, ExitStack
from typing import Self, TypeVar

import asyncpg
import psycopg
import psycopg2
import sqlalchemy
from sqlalchemy import orm
from sqlalchemy.ext import asyncio as sqlalchemy_asyncio

import duepost
import duepost.aio

R = TypeVar("R")


class Driven(ABC):
    """An application with one open transaction."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.handle: object = None

    @abstractmethod
    def open(self) -> None:
        """Connects."""

    @abstractmethod
    def call(self, function: str, *args: object, **arguments: object) -> object:
        """Calls a function of the contract in its transaction."""

    @abstractmethod
    def commit(self) -> None:
        """Commits."""

    @abstractmethod
    def rollback(self) -> None:
        """Rolls back."""

    @abstractmethod
    def close(self) -> None:
        """Hangs up."""

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def sqlalchemy_url(self, driver: str) -> str:
        """The database's URL as SQLAlchemy wants it."""
        return self.url.replace("postgresql://", f"postgresql+{driver}://")


class Synchronous(Driven):
    """One that waits."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.stack = ExitStack()
        self.owner: object = None

    def call(self, function: str, *args: object, **arguments: object) -> object:
        return getattr(duepost, function)(self.handle, *args, **arguments)

    def commit(self) -> None:
        self.owner.commit()  # type: ignore[attr-defined]

    def rollback(self) -> None:
        self.owner.rollback()  # type: ignore[attr-defined]

    def close(self) -> None:
        self.stack.close()


class Psycopg2(Synchronous):
    def open(self) -> None:
        connection = psycopg2.connect(self.url)
        self.stack.callback(connection.close)
        self.owner, self.handle = connection, connection.cursor()


class Psycopg(Synchronous):
    def open(self) -> None:
        connection = psycopg.connect(self.url)
        self.stack.callback(connection.close)
        self.owner, self.handle = connection, connection.cursor()


class PsycopgDicts(Synchronous):
    def open(self) -> None:
        connection = psycopg.connect(self.url, row_factory=psycopg.rows.dict_row)
        self.stack.callback(connection.close)
        self.owner, self.handle = connection, connection.cursor()


class OnEngine(Synchronous):
    driver = "psycopg2"

    def engine(self) -> sqlalchemy.Engine:
        engine = sqlalchemy.create_engine(self.sqlalchemy_url(self.driver))
        self.stack.callback(engine.dispose)
        return engine


class SqlalchemyConnection(OnEngine):
    def open(self) -> None:
        self.owner = self.handle = self.stack.enter_context(self.engine().connect())


class SqlalchemyConnectionOnPsycopg(SqlalchemyConnection):
    driver = "psycopg"


class SqlalchemySession(OnEngine):
    def open(self) -> None:
        self.owner = self.handle = self.stack.enter_context(orm.Session(self.engine()))


class SqlalchemySessionOnPsycopg(SqlalchemySession):
    driver = "psycopg"


class ScopedSession(OnEngine):
    def open(self) -> None:
        session = orm.scoped_session(orm.sessionmaker(self.engine()))
        self.stack.callback(session.remove)
        self.owner = self.handle = session


class Asynchronous(Driven):
    """One that awaits, in an event loop of its own."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.owner: object = None

    def wait(self, coroutine: Coroutine[object, object, R]) -> R:
        return self.runner.run(coroutine)

    def open(self) -> None:
        self.wait(self.connect())

    async def connect(self) -> None:
        raise NotImplementedError

    def call(self, function: str, *args: object, **arguments: object) -> object:
        return self.wait(getattr(duepost.aio, function)(self.handle, *args, **arguments))

    def commit(self) -> None:
        self.wait(self.owner.commit())  # type: ignore[attr-defined]

    def rollback(self) -> None:
        self.wait(self.owner.rollback())  # type: ignore[attr-defined]

    def close(self) -> None:
        self.wait(self.stack.aclose())
        self.runner.close()


class PsycopgAsyncConnection(Asynchronous):
    async def connect(self) -> None:
        self.owner = self.handle = await psycopg.AsyncConnection.connect(self.url)
        self.stack.push_async_callback(self.handle.close)


class PsycopgAsyncCursor(Asynchronous):
    async def connect(self) -> None:
        connection = await psycopg.AsyncConnection.connect(self.url)
        self.stack.push_async_callback(connection.close)
        self.owner, self.handle = connection, connection.cursor()


class AsyncpgTransaction(Asynchronous):
    async def connect(self) -> None:
        self.handle = await asyncpg.connect(self.url)
        self.stack.push_async_callback(self.handle.close)  # type: ignore[attr-defined]
        await self.begin()

    async def begin(self) -> None:
        self.owner = self.handle.transaction()  # type: ignore[attr-defined]
        await self.owner.start()  # type: ignore[attr-defined]

    def commit(self) -> None:
        super().commit()
        self.wait(self.begin())

    def rollback(self) -> None:
        super().rollback()
        self.wait(self.begin())


class AsyncpgWithJson(AsyncpgTransaction):
    """One that has taught its connection to make JSON of values."""

    async def connect(self) -> None:
        import json

        await super().connect()
        await self.handle.set_type_codec(  # type: ignore[attr-defined]
            "jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog"
        )


class AsyncpgOfPool(AsyncpgTransaction):
    async def connect(self) -> None:
        pool = await asyncpg.create_pool(self.url, min_size=1, max_size=1)
        self.stack.callback(pool.terminate)
        self.handle = await pool.acquire()
        await self.begin()


class OnAsyncEngine(Asynchronous):
    driver = "asyncpg"

    def engine(self) -> sqlalchemy_asyncio.AsyncEngine:
        engine = sqlalchemy_asyncio.create_async_engine(self.sqlalchemy_url(self.driver))
        self.stack.push_async_callback(engine.dispose)
        return engine


class SqlalchemyAsyncConnection(OnAsyncEngine):
    async def connect(self) -> None:
        self.owner = self.handle = await self.stack.enter_async_context(self.engine().connect())


class SqlalchemyAsyncSession(OnAsyncEngine):
    async def connect(self) -> None:
        self.owner = self.handle = await self.stack.enter_async_context(sqlalchemy_asyncio.AsyncSession(self.engine()))


class SqlalchemyAsyncSessionOnPsycopg(SqlalchemyAsyncSession):
    driver = "psycopg"


class ScopedAsyncSession(OnAsyncEngine):
    async def connect(self) -> None:
        make = sqlalchemy_asyncio.async_sessionmaker(self.engine())
        session = sqlalchemy_asyncio.async_scoped_session(make, asyncio.current_task)
        # One session whatever task asks: each call of a test is a task of its own.
        session.registry.scopefunc = lambda: None
        self.stack.push_async_callback(session.close)
        self.owner = self.handle = session


#: Every application, by what it hands to the client.
DRIVERS: Mapping[str, Callable[[str], Driven]] = {
    "psycopg2's cursor": Psycopg2,
    "psycopg's cursor": Psycopg,
    "psycopg's cursor of dicts": PsycopgDicts,
    "SQLAlchemy's Connection on psycopg2": SqlalchemyConnection,
    "SQLAlchemy's Connection on psycopg": SqlalchemyConnectionOnPsycopg,
    "SQLAlchemy's Session on psycopg2": SqlalchemySession,
    "SQLAlchemy's Session on psycopg": SqlalchemySessionOnPsycopg,
    "SQLAlchemy's scoped_session": ScopedSession,
    "psycopg's AsyncConnection": PsycopgAsyncConnection,
    "psycopg's AsyncCursor": PsycopgAsyncCursor,
    "asyncpg's Connection": AsyncpgTransaction,
    "asyncpg's Connection with a codec for JSON": AsyncpgWithJson,
    "asyncpg's Connection of a pool": AsyncpgOfPool,
    "SQLAlchemy's AsyncConnection on asyncpg": SqlalchemyAsyncConnection,
    "SQLAlchemy's AsyncSession on asyncpg": SqlalchemyAsyncSession,
    "SQLAlchemy's AsyncSession on psycopg": SqlalchemyAsyncSessionOnPsycopg,
    "SQLAlchemy's async_scoped_session": ScopedAsyncSession,
}
