"""The client for asyncio: the same functions, awaited, in the caller's own transaction.

Each takes, in front of the arguments of its namesake in `duepost`, one of these: psycopg's `AsyncCursor` or
`AsyncConnection`, asyncpg's `Connection`, SQLAlchemy's `AsyncSession` or `AsyncConnection`.

import duepost.aio

async with session.begin():
    await duepost.aio.schedule_email(session, kind="welcome", address="ann@example.com", template="welcome")
"""

from collections.abc import Callable, Coroutine
from typing import Concatenate, ParamSpec, TypeVar, cast

from duepost import contract
from duepost.call import Call, Row
from duepost.client import documented
from duepost.handles import (
    AsyncHandle,
    check_async_cursor,
    is_async_sqlalchemy,
    is_asyncpg,
    is_psycopg_connection,
    values,
)

P = ParamSpec("P")
R = TypeVar("R")


async def run(cursor: AsyncHandle, call: Call[R]) -> R:
    """Makes a call in the transaction of a cursor, connection or session; commits nothing.

    Raises:
        TypeError: the cursor is none of these, synchronous, or not on PostgreSQL.
        the driver's error: the database refuses the call.
    """
    return call.read(await _rows(cursor, call))


async def _rows(handle: object, call: Call[R]) -> list[Row]:
    if is_async_sqlalchemy(handle):
        from sqlalchemy import text  # noqa: PLC0415 - who has such a handle has loaded it

        found = await handle.execute(text(call.text("named")), dict(call.parameters))  # type: ignore[attr-defined]
        return [values(row) for row in found.fetchall()]
    if is_asyncpg(handle):
        rows = await handle.fetch(call.text("numeric_dollar"), *call.parameters.values())  # type: ignore[attr-defined]
        return [values(row) for row in rows]
    if is_psycopg_connection(handle):
        async with handle.cursor() as cursor:  # type: ignore[attr-defined]
            return await _by_cursor(cursor, call)
    return await _by_cursor(handle, call)


async def _by_cursor(cursor: object, call: Call[R]) -> list[Row]:
    check_async_cursor(cursor)
    await cursor.execute(call.text("pyformat"), dict(call.parameters))  # type: ignore[attr-defined]
    return [values(row) for row in await cursor.fetchall()]  # type: ignore[attr-defined]


def awaited(build: Callable[P, Call[R]]) -> Callable[Concatenate[AsyncHandle, P], Coroutine[object, object, R]]:
    """Makes the coroutine that makes a call, out of the function that builds the call."""

    async def function(cursor: AsyncHandle, *args: P.args, **kwargs: P.kwargs) -> R:
        return await run(cursor, build(*args, **kwargs))

    documented(function, build, __name__)
    return cast("Callable[Concatenate[AsyncHandle, P], Coroutine[object, object, R]]", function)


attachment = awaited(contract.attachment)
attachment_at = awaited(contract.attachment_at)
schedule_email = awaited(contract.schedule_email)
schedule_emails = awaited(contract.schedule_emails)
clear_scheduled_email = awaited(contract.clear_scheduled_email)
clear_scheduled_emails = awaited(contract.clear_scheduled_emails)
clear_scheduled_emails_to = awaited(contract.clear_scheduled_emails_to)
reschedule_email = awaited(contract.reschedule_email)
add_to_batch = awaited(contract.add_to_batch)
remove_from_batch = awaited(contract.remove_from_batch)
schedule_message = awaited(contract.schedule_message)
schedule_messages = awaited(contract.schedule_messages)
edit_message = awaited(contract.edit_message)
clear_scheduled_message = awaited(contract.clear_scheduled_message)
clear_scheduled_messages = awaited(contract.clear_scheduled_messages)
reschedule_message = awaited(contract.reschedule_message)
clear_scheduled = awaited(contract.clear_scheduled)
status = awaited(contract.status)
