"""The client: the SQL functions from Python, in the caller's own transaction. Imports no worker code."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from inspect import signature
from typing import Protocol, Unpack

from duepost.arguments import ARGUMENTS, NewEmail, checked_moment, encoded, takes_email


class Cursor(Protocol):
    """Any DB-API 2.0 cursor with the `pyformat` style: psycopg, psycopg2, Django's, SQLAlchemy's raw one."""

    def execute(self, operation: str, parameters: Mapping[str, object], /) -> object:
        """Runs a statement."""

    def fetchone(self) -> "Row | None":
        """The next row."""

    def fetchall(self) -> "Iterable[Row]":
        """The rest of the rows."""


#: Cursors give rows as sequences, or, if they are so made, by column name.
Row = Sequence[object] | Mapping[str, object]


@takes_email
def schedule_email(cursor: Cursor, **email: Unpack[NewEmail]) -> int:
    """Schedules one email in the cursor's transaction; it leaves only if that transaction commits.

    Args:
        cursor: a DB-API cursor of the application's own.
        **email: see `NewEmail`.

    Returns:
        the email's id.

    Raises:
        ValueError: a time without a time zone.
        TypeError: one text as `users`, or a context or headers that are not JSON serializable; the key is named.
        the driver's error: SQLSTATE 22023 for a bad argument, 23505 for a key used for another content.
    """
    signature(schedule_email).bind(cursor, **email)
    given = {name: value for name, value in email.items() if value is not None}
    return schedule_encoded(cursor, {name: ARGUMENTS[name].parameter(name, value) for name, value in given.items()})


def schedule_encoded(cursor: Cursor, arguments: Mapping[str, object]) -> int:
    """Schedules one email whose arguments are parameters already: a JSON object is a text."""
    named = ", ".join(f"{name} => %({name})s::{ARGUMENTS[name].sql_type}" for name in arguments)
    _execute(cursor, f"SELECT duepost.schedule_email({named})", arguments)
    return int(str(_single(cursor)))


def schedule_emails(cursor: Cursor, emails: Iterable[Mapping[str, object]]) -> list[int]:
    """Schedules many emails in the cursor's transaction, or none: one round trip, many times as fast as one by one.

    Args:
        cursor: a DB-API cursor of the application's own.
        emails: the arguments of `schedule_email()` of each, by name (`NewEmail`). All must fit into 256 MB of
            JSON; a few thousand at a time are a good measure.

    Returns:
        the emails' ids, in their order.

    Raises:
        ValueError: a time without a time zone.
        TypeError: one text as `users`, or a value that is not JSON serializable; the key is named.
        the driver's error: SQLSTATE 22023 for a bad argument, 23505 for a key used for another content; the message
            begins with the email's place, from 0, as in `emails[2]: address: …`.
    """
    return schedule_lines(cursor, [_in_json(place, email) for place, email in enumerate(emails)])


def schedule_lines(cursor: Cursor, emails: Iterable[str]) -> list[int]:
    """Schedules many emails, each of which is a JSON object in text: its numbers stay as they are written."""
    content = f"[{','.join(emails)}]"
    _execute(cursor, "SELECT duepost.schedule_emails(%(emails)s::jsonb)", {"emails": content})
    return [int(str(_values(row)[0])) for row in cursor.fetchall()]


def clear_scheduled_emails(cursor: Cursor, users: Sequence[str], kind: str | None = None) -> list[tuple[int, str]]:
    """Takes users off their scheduled emails, of one kind or all.

    Returns:
        an id and a receipt for each email: `cleared` (never sent), `user_removed` or `too_late`; two for one that
        some of these users have already and others are taken off: `user_removed`, then `too_late`.
    """
    _execute(
        cursor,
        "SELECT email_id, receipt FROM duepost.clear_scheduled_emails(%(users)s::text[], %(kind)s::text)",
        {"users": ARGUMENTS["users"].parameter("users", users), "kind": kind},
    )
    return _receipts(cursor)


def clear_scheduled_emails_to(cursor: Cursor, address: str, kind: str | None = None) -> list[tuple[int, str]]:
    """Clears the emails scheduled to an address, of one kind or all; an id and a receipt for each."""
    _execute(
        cursor,
        "SELECT email_id, receipt FROM duepost.clear_scheduled_emails_to(%(address)s::text, %(kind)s::text)",
        {"address": address, "kind": kind},
    )
    return _receipts(cursor)


def clear_scheduled_email(cursor: Cursor, email_id: int) -> str:
    """Clears one email: `cleared` (never sent), `user_removed` (some have it, others never get it) or `too_late`."""
    _execute(cursor, "SELECT duepost.clear_scheduled_email(%(email_id)s::bigint)", {"email_id": email_id})
    return str(_single(cursor))


def reschedule_email(cursor: Cursor, email_id: int, scheduled_at: datetime | str) -> str:
    """Moves one email to another time: `rescheduled` or `too_late`."""
    _execute(
        cursor,
        "SELECT duepost.reschedule_email(%(email_id)s::bigint, %(scheduled_at)s::timestamptz)",
        {"email_id": email_id, "scheduled_at": checked_moment("scheduled_at", scheduled_at)},
    )
    return str(_single(cursor))


def _execute(cursor: Cursor, statement: str, parameters: Mapping[str, object]) -> None:
    """Runs a statement.

    Raises:
        TypeError: the cursor is none of the DB-API's, or an asynchronous one.
    """
    if not hasattr(cursor, "fetchone"):
        raise TypeError(
            f"cursor: must be a DB-API cursor, not {type(cursor).__name__}; without one, run "
            "SELECT duepost.schedule_email(…) by the driver's own means"
        )
    found: object = cursor.execute(statement, parameters)
    if hasattr(found, "__await__"):
        if hasattr(found, "close"):
            # Never awaited, and not to be warned of.
            found.close()
        raise TypeError(
            "cursor: is asynchronous; give a synchronous one, or await "
            "cursor.execute('SELECT duepost.schedule_email(…)') yourself"
        )


def _in_json(place: int, email: Mapping[str, object]) -> str:
    """Returns one email of many as a JSON object. A key that is unknown is left to the database, which says so."""
    members = {
        name: ARGUMENTS[name].member(f"emails[{place}]: {name}", value) if name in ARGUMENTS else value
        for name, value in email.items()
        if value is not None
    }
    return encoded(f"emails[{place}]", members)


def _single(cursor: Cursor) -> object:
    row = cursor.fetchone()
    if row is None:
        raise LookupError("the database gave no row")
    return _values(row)[0]


def _receipts(cursor: Cursor) -> list[tuple[int, str]]:
    return [(int(str(email_id)), str(receipt)) for email_id, receipt in map(_values, cursor.fetchall())]


def _values(row: Row) -> Sequence[object]:
    return list(row.values()) if isinstance(row, Mapping) else row
