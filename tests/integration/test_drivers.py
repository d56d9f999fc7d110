"""The client with every driver that it takes: the real libraries, and a real PostgreSQL."""

import asyncio
import hashlib
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import psycopg
import psycopg2
import pytest
import sqlalchemy
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker, create_async_engine

import duepost
import duepost.aio
from duepost import client, contract
from duepost.call import Paramstyle
from tests.drivers import DRIVERS, Driven
from tests.postgres import Connection, Cursor, PostgresServer, run

LATER = datetime(2030, 1, 1, 12, tzinfo=UTC)
EMAIL: dict[str, Any] = {"kind": "welcome", "address": "ann@example.com", "template": "welcome"}
MESSAGE: dict[str, Any] = {"kind": "news", "endpoint": "webhook", "payload": {"text": "Grüße"}}


@pytest.fixture(scope="module")
def shared_url(server: PostgresServer) -> Iterator[str]:
    with server.fresh_database() as url:
        with psycopg2.connect(url) as connection:
            run(
                connection, "SELECT duepost.set_endpoint('webhook', 'webhook', 'https://example.com/', secret => 'new')"
            )
        connection.close()
        yield url


@pytest.fixture(params=list(DRIVERS.values()), ids=list(DRIVERS))
def driven(shared_url: str, request: pytest.FixtureRequest) -> Iterator[Driven]:
    """An application on each driver; what it has not committed is rolled back."""
    with request.param(shared_url) as driven:
        yield driven
        driven.rollback()


@pytest.fixture
def outside(shared_url: str) -> Iterator[Connection]:
    """Somebody else, who sees what is committed."""
    connection = psycopg2.connect(shared_url)
    connection.autocommit = True
    yield connection
    run(connection, "DELETE FROM duepost.scheduled_email")
    connection.close()


def test_what_is_committed_is_scheduled_with_every_argument(driven: Driven, outside: Connection) -> None:
    email_id = driven.call(
        "schedule_email", kind="welcome", users=["ann"], template="welcome", scheduled_at=LATER,
        expires_at="2030-01-02T00:00:00 Europe/Berlin", context={"n": [1, None], "text": "Grüße %s :x $1"},
        headers={"X-A": "b"}, sender="Ann <ann@example.com>", reply_to="help@example.com",
    )  # fmt: skip
    assert run(outside, "SELECT count(*) FROM duepost.scheduled_email") == [(0,)]
    driven.commit()
    assert run(
        outside,
        "SELECT id, context, headers, scheduled_at, expires_at, sender, reply_to FROM duepost.scheduled_email",
    ) == [
        (email_id, {"n": [1, None], "text": "Grüße %s :x $1"}, {"X-A": "b"}, LATER,
         datetime(2030, 1, 1, 23, tzinfo=UTC), "Ann <ann@example.com>", "help@example.com")
    ]  # fmt: skip


def test_what_is_rolled_back_was_never_scheduled(driven: Driven, outside: Connection) -> None:
    driven.call("schedule_email", **EMAIL)
    driven.rollback()
    driven.commit()
    assert run(outside, "SELECT count(*) FROM duepost.scheduled_email") == [(0,)]


def test_every_function_of_the_contract_can_be_called(driven: Driven) -> None:
    to_users = {"kind": "digest", "users": ["ann"], "template": "digest"}
    first = driven.call("schedule_email", **EMAIL)
    ids = driven.call("schedule_emails", [EMAIL, {**to_users, "scheduled_at": LATER}])
    assert isinstance(first, int)
    assert ids == [first + 1, first + 2]
    assert driven.call("reschedule_email", first, LATER) == "rescheduled"
    assert driven.call("reschedule_email", first, "2030-01-01T09:00+01:00") == "rescheduled"
    found = driven.call("status", first)
    assert isinstance(found, duepost.Status)
    assert (found.id, found.channel, found.state, found.outcome) == (first, "email", "scheduled", None)
    assert found.scheduled_at == LATER - timedelta(hours=4)
    assert driven.call("status", key="none") is None
    assert driven.call("clear_scheduled_email", first) == "cleared"
    assert driven.call("clear_scheduled_emails_to", "ANN@example.com", "welcome") == [(first + 1, "cleared")]
    assert driven.call("clear_scheduled_emails", ["ann"]) == [(first + 2, "cleared")]
    assert driven.call("clear_scheduled_emails", []) == []
    batch = driven.call(
        "add_to_batch", "b", {"n": 1}, kind="digest", template="digest", users=["ann"], item_key="one",
        wait=timedelta(minutes=5), longest_wait="1 hour", context={"a": 1},
    )  # fmt: skip
    assert driven.call("add_to_batch", "b", 2, kind="digest", template="digest", users=["ann"]) == batch
    assert driven.call("remove_from_batch", "b", "one") == "removed"
    file = driven.call("attachment", "Grüße.txt", b"a\0\xff", "text/plain", cid="a")
    assert file == {
        "filename": "Grüße.txt", "content_type": "text/plain", "cid": "a", "size": 3,
        "sha256": hashlib.sha256(b"a\0\xff").hexdigest(),
    }  # fmt: skip
    with_file = driven.call("schedule_email", **EMAIL, attachments=[file])
    assert driven.call("schedule_emails", [{**EMAIL, "attachments": [file]}]) == [int(str(with_file)) + 1]
    message = driven.call("schedule_message", **MESSAGE, users=["ann"], scheduled_at=LATER)
    assert driven.call("schedule_messages", [MESSAGE]) == [message_after := int(str(message)) + 1]
    assert driven.call("edit_message", message, {"text": "new"}) == "edited"
    assert driven.call("reschedule_message", message, LATER) == "rescheduled"
    assert driven.call("clear_scheduled_message", message_after) == "cleared"
    assert driven.call("clear_scheduled_messages", ["bob"]) == []
    assert driven.call("clear_scheduled", ["ann"]) == [(batch, "email", "cleared"), (message, "message", "cleared")]


def test_ids_of_users_may_be_the_numbers_and_uuids_of_a_table(driven: Driven) -> None:
    whom = [1, UUID(int=2), "ann"]
    email_id = driven.call("schedule_email", kind="digest", users=whom, template="digest")
    ids = driven.call("schedule_emails", [{"kind": "digest", "users": whom, "template": "digest"}])
    assert driven.call("clear_scheduled_emails", [str(UUID(int=2)), 1]) == [
        (each, "user_removed")
        for each in [email_id, *ids]  # type: ignore[misc]
    ]


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"scheduled_at": datetime(2030, 1, 1)}, ValueError, "scheduled_at: needs a time zone"),  # noqa: DTZ001 - the point
        ({"expires_at": "2030-01-01"}, ValueError, "expires_at: must be a time with its zone"),
        ({"scheduled_at": date(2030, 1, 1)}, ValueError, "scheduled_at: needs a time zone and a time of day"),
        (
            {"context": {"user": {"born": date(2000, 1, 1)}}},
            TypeError,
            "context: user: born: not JSON serializable: date",
        ),
        ({"users": "ann"}, TypeError, "users: must be a list of user ids"),
        ({"users": ["ann", True]}, TypeError, r"users\[1\]: must be a string, is a bool"),
        ({"adress": "ann@example.com"}, TypeError, "got an unexpected keyword argument 'adress'"),
    ],
)
def test_a_bad_value_is_named_before_the_database_is_asked(
    driven: Driven, wrong: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=f"^{said}"):
        driven.call("schedule_email", **{**EMAIL, **wrong})
    # The transaction goes on.
    assert driven.call("clear_scheduled_emails", ["nobody"]) == []


def test_what_the_database_refuses_is_the_drivers_own_error(driven: Driven) -> None:
    with pytest.raises(
        (psycopg.Error, psycopg2.Error, asyncpg.PostgresError, sqlalchemy.exc.DBAPIError),
        match=r"address: must be one address such as ann@example\.com",
    ):
        driven.call("schedule_email", **{**EMAIL, "address": "nobody"})


def test_a_bigint_is_one_with_every_driver(driven: Driven) -> None:
    assert driven.call("clear_scheduled_email", 2**62) == "too_late"


def _fetched(connection: Connection, sql: str, given: object) -> list[tuple[object, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, given)  # type: ignore[arg-type]
        return list(cursor.fetchall())


@pytest.mark.parametrize("style", ["pyformat", "format"])
def test_statement_gives_sql_and_parameters_for_cursors(outside: Connection, style: Paramstyle) -> None:
    for function in (duepost.schedule_email, duepost.aio.schedule_email, "schedule_email"):
        sql, parameters = duepost.statement(
            function, **EMAIL, scheduled_at=LATER, context={"a": "50 %"}, paramstyle=style
        )
        [[email_id]] = _fetched(outside, sql, parameters)
        assert run(outside, "SELECT context FROM duepost.scheduled_email WHERE id = %s", email_id) == [({"a": "50 %"},)]
    sql, parameters = duepost.statement(duepost.clear_scheduled_email, 1, paramstyle=style)
    assert _fetched(outside, sql, parameters) == [("too_late",)]


def test_statement_gives_sql_and_parameters_for_sqlalchemy_and_asyncpg(shared_url: str, outside: Connection) -> None:
    sql, named = duepost.statement("schedule_email", **EMAIL, scheduled_at=LATER, paramstyle="named")
    engine = sqlalchemy.create_engine(shared_url.replace("postgresql", "postgresql+psycopg", 1))
    assert isinstance(named, dict)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text(sql), named)
    engine.dispose()
    sql, listed = duepost.statement(
        "schedule_email", **EMAIL, scheduled_at="2030-01-01T12:00Z", context={"a": 1}, paramstyle="numeric_dollar"
    )

    async def schedule() -> None:
        connection = await asyncpg.connect(shared_url)
        await connection.fetchval(sql, *listed)
        await connection.close()

    asyncio.run(schedule())
    assert run(outside, "SELECT scheduled_at FROM duepost.scheduled_email") == [(LATER,), (LATER,)]


def test_statement_checks_what_it_is_given() -> None:
    with pytest.raises(ValueError, match="scheduled_at: needs a time zone"):
        duepost.statement("schedule_email", **EMAIL, scheduled_at=datetime(2030, 1, 1))  # noqa: DTZ001 - the point
    with pytest.raises(TypeError, match=r"function: must be one of attachment, .*, not 'drop_table'"):
        duepost.statement("drop_table")
    with pytest.raises(TypeError, match="function: must be one of"):
        duepost.statement(print)
    with pytest.raises(
        ValueError, match="paramstyle: must be one of pyformat, format, named, numeric_dollar, not 'qmark'"
    ):
        duepost.statement("status", 1, paramstyle="qmark")  # type: ignore[arg-type]


def test_every_function_is_there_in_each_of_its_forms() -> None:
    assert set(client.FUNCTIONS) | {
        "Attachment",
        "AttachmentAt",
        "NewEmail",
        "NewMessage",
        "Status",
        "statement",
    } == set(duepost.__all__)
    for name in client.FUNCTIONS:
        for module in (duepost, duepost.aio):
            function = getattr(module, name)
            assert function.__name__ == name
            assert (function.__doc__ or "").splitlines()[0] == (getattr(contract, name).__doc__ or "").splitlines()[0]


def failing(function: Callable[..., object], handle: object) -> str:
    """What a function says of a handle that it does not take."""

    async def call() -> None:
        found = function(handle, **EMAIL)
        assert isinstance(found, Awaitable)
        await found

    with pytest.raises(TypeError, match=r"^cursor: ") as caught:
        asyncio.run(call())
    return str(caught.value)


@pytest.mark.filterwarnings("error")
def test_a_handle_of_another_sort_is_a_type_error_that_says_what_to_pass(shared_url: str, outside: Connection) -> None:
    engine = sqlalchemy.create_engine(shared_url.replace("postgresql", "postgresql+psycopg", 1))
    async_engine = create_async_engine(shared_url.replace("postgresql", "postgresql+asyncpg", 1))
    lite = sqlalchemy.create_engine("sqlite://")
    sync, later = duepost.schedule_email, duepost.aio.schedule_email
    assert "SQLAlchemy's Session or Connection, not str" in failing(sync, "postgresql://")
    assert "is a connection (connection): give a cursor of it" in failing(sync, outside)
    assert "`with engine.begin() as connection`" in failing(sync, engine)
    assert "give a Session that it makes" in failing(sync, orm.sessionmaker(engine))
    assert "AsyncSession is asynchronous: await duepost.aio.schedule_email" in failing(sync, AsyncSession(async_engine))
    assert "`async with engine.begin() as connection`" in failing(later, async_engine)
    assert "give an AsyncSession that it makes" in failing(later, async_sessionmaker(async_engine))
    assert "is synchronous: call duepost.schedule_email(…)" in failing(later, outside.cursor())
    with orm.Session(engine) as session:
        assert "Session is synchronous: call duepost.schedule_email(…)" in failing(later, session)
    with lite.connect() as connection:
        assert "needs PostgreSQL, and this Connection is on sqlite" in failing(sync, connection)
    with orm.Session(lite) as session:
        assert "needs PostgreSQL, and this Session is on sqlite" in failing(sync, session)
    plain = sqlite3.connect(":memory:")
    assert "needs PostgreSQL, and this Cursor is on sqlite" in failing(sync, plain.cursor())
    plain.close()
    lite.dispose()
    engine.dispose()

    async def pool() -> str:
        pool = await asyncpg.create_pool(shared_url, min_size=1)
        with pytest.raises(TypeError, match=r"is a pool: .*pool.acquire") as caught:
            await later(pool, **EMAIL)
        await pool.close()
        connection = await psycopg.AsyncConnection.connect(shared_url)
        with pytest.raises(TypeError, match=r"AsyncCursor is asynchronous: await duepost.aio"):
            sync(connection.cursor(), **EMAIL)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"AsyncConnection is asynchronous: await duepost.aio"):
            sync(connection, **EMAIL)  # type: ignore[arg-type]
        await connection.close()
        return str(caught.value)

    asyncio.run(pool())
    assert run(outside, "SELECT count(*) FROM duepost.scheduled_email") == [(0,)]


async def _type_checkers_take_what_the_client_takes(
    connection: sqlalchemy.Connection,
    session: orm.Session,
    scoped: orm.scoped_session[orm.Session],
    async_connection: AsyncConnection,
    async_session: AsyncSession,
    cursor: psycopg.Cursor[tuple[object, ...]],
    old_cursor: Cursor,
    async_cursor: psycopg.AsyncCursor[dict[str, object]],
    psycopg_connection: psycopg.AsyncConnection[tuple[object, ...]],
    asyncpg_connection: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    """Never run: `make lint` reads it."""
    for each in (connection, session, scoped, cursor, old_cursor):
        one: int = duepost.schedule_email(each, kind="k", address="a@example.com", template="t")
        two: list[tuple[int, str]] = duepost.clear_scheduled_emails(each, ["1"], kind="k")
    for handle in (async_connection, async_session, async_cursor, psycopg_connection, asyncpg_connection):
        one = await duepost.aio.schedule_email(handle, kind="k", address="a@example.com", template="t")
        two = await duepost.aio.clear_scheduled_emails(handle, ["1"], kind="k")
    assert one
    assert two
