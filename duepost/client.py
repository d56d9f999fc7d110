"""The client: the SQL functions from Python, in the caller's own transaction. Imports no worker code."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol


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


#: The arguments of `duepost.schedule_email()` in SQL, and their types.
ARGUMENTS: Mapping[str, str] = {
    "kind": "text",
    "address": "text",
    "users": "text[]",
    "scheduled_at": "timestamptz",
    "template": "text",
    "context": "jsonb",
    "subject": "text",
    "body_text": "text",
    "body_html": "text",
    "key": "text",
    "expires_at": "timestamptz",
    "sender": "text",
    "reply_to": "text",
    "headers": "jsonb",
}


def schedule_email(
    cursor: Cursor,
    *,
    kind: str,
    address: str | None = None,
    users: Sequence[str] | None = None,
    scheduled_at: datetime | str | None = None,
    template: str | None = None,
    context: Mapping[str, object] | None = None,
    subject: str | None = None,
    body_text: str | None = None,
    body_html: str | None = None,
    key: str | None = None,
    expires_at: datetime | str | None = None,
    sender: str | None = None,
    reply_to: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> int:
    """Schedules one email in the cursor's transaction; it leaves only if that transaction commits.

    Args:
        cursor: a DB-API cursor of the application's own.
        kind: what sort of email it is, such as `welcome`.
        address: to whom; give either this or `users`.
        users: ids of users, whose addresses are read when the email is sent.
        scheduled_at: when, with a time zone; None is now.
        template: the template's name; give either this (with `context`) or `subject` and a body.
        context: what the template is rendered with; must be JSON.
        subject: the subject, in one line.
        body_text: the plain-text body.
        body_html: the HTML body.
        key: makes the call idempotent for good.
        expires_at: after this moment the email is not sent any more.
        sender: who sends it, instead of the default.
        reply_to: where replies go.
        headers: further header fields.

    Returns:
        the email's id.

    Raises:
        ValueError: a time without a time zone.
        TypeError: one text as `users`, or a context that is no JSON.
        the driver's error: SQLSTATE 22023 for a bad argument, 23505 for a key used for another content.
    """
    arguments: dict[str, object] = {
        "kind": kind,
        "address": address,
        "users": _user_ids(users) if users is not None else None,
        "scheduled_at": _moment("scheduled_at", scheduled_at),
        "template": template,
        "context": json.dumps(context) if context is not None else None,
        "subject": subject,
        "body_text": body_text,
        "body_html": body_html,
        "key": key,
        "expires_at": _moment("expires_at", expires_at),
        "sender": sender,
        "reply_to": reply_to,
        "headers": json.dumps(headers) if headers is not None else None,
    }
    given = {name: value for name, value in arguments.items() if value is not None}
    named = ", ".join(f"{name} => %({name})s::{ARGUMENTS[name]}" for name in given)
    cursor.execute(f"SELECT duepost.schedule_email({named})", given)
    return int(str(_single(cursor)))


def schedule_emails(cursor: Cursor, emails: Iterable[Mapping[str, object]]) -> list[int]:
    """Schedules many emails in the cursor's transaction, or none: one round trip, many times as fast as one by one.

    Args:
        cursor: a DB-API cursor of the application's own.
        emails: the arguments of `schedule_email()` of each, by name. All must fit into 256 MB of JSON; a few thousand
            at a time are a good measure.

    Returns:
        the emails' ids, in their order.

    Raises:
        ValueError: a time without a time zone.
        TypeError: one text as `users`, or a value that is no JSON.
        the driver's error: SQLSTATE 22023 for a bad argument, 23505 for a key used for another content; the message
            begins with the email's place, from 0, as in `emails[2]: address: …`.
    """
    content = json.dumps([_in_json(place, email) for place, email in enumerate(emails)])
    cursor.execute("SELECT duepost.schedule_emails(%(emails)s::jsonb)", {"emails": content})
    return [int(str(_values(row)[0])) for row in cursor.fetchall()]


def clear_scheduled_emails(cursor: Cursor, users: Sequence[str], kind: str | None = None) -> list[tuple[int, str]]:
    """Takes users off their scheduled emails, of one kind or all.

    Returns:
        an id and a receipt for each email: `cleared` (never sent), `user_removed` or `too_late`; two for one that
        some of these users have already and others are taken off: `user_removed`, then `too_late`.
    """
    cursor.execute(
        "SELECT email_id, receipt FROM duepost.clear_scheduled_emails(%(users)s::text[], %(kind)s::text)",
        {"users": _user_ids(users), "kind": kind},
    )
    return _receipts(cursor)


def clear_scheduled_emails_to(cursor: Cursor, address: str, kind: str | None = None) -> list[tuple[int, str]]:
    """Clears the emails scheduled to an address, of one kind or all; an id and a receipt for each."""
    cursor.execute(
        "SELECT email_id, receipt FROM duepost.clear_scheduled_emails_to(%(address)s::text, %(kind)s::text)",
        {"address": address, "kind": kind},
    )
    return _receipts(cursor)


def clear_scheduled_email(cursor: Cursor, email_id: int) -> str:
    """Clears one email: `cleared` (never sent), `user_removed` (some have it, others never get it) or `too_late`."""
    cursor.execute("SELECT duepost.clear_scheduled_email(%(email_id)s::bigint)", {"email_id": email_id})
    return str(_single(cursor))


def reschedule_email(cursor: Cursor, email_id: int, scheduled_at: datetime | str) -> str:
    """Moves one email to another time: `rescheduled` or `too_late`."""
    cursor.execute(
        "SELECT duepost.reschedule_email(%(email_id)s::bigint, %(scheduled_at)s::timestamptz)",
        {"email_id": email_id, "scheduled_at": _moment("scheduled_at", scheduled_at)},
    )
    return str(_single(cursor))


def _in_json(place: int, email: Mapping[str, object]) -> dict[str, object]:
    arguments = {name: value for name, value in email.items() if value is not None}
    for name, value in arguments.items():
        if isinstance(value, datetime):
            arguments[name] = str(_moment(f"emails[{place}]: {name}", value))
        elif name == "users":
            if isinstance(value, str) or not isinstance(value, Iterable):
                raise TypeError(f"emails[{place}]: users: must be a list of user ids")
            arguments[name] = list(value)
    return arguments


def _single(cursor: Cursor) -> object:
    row = cursor.fetchone()
    if row is None:
        raise LookupError("the database gave no row")
    return _values(row)[0]


def _receipts(cursor: Cursor) -> list[tuple[int, str]]:
    return [(int(str(email_id)), str(receipt)) for email_id, receipt in map(_values, cursor.fetchall())]


def _values(row: Row) -> Sequence[object]:
    return list(row.values()) if isinstance(row, Mapping) else row


def _user_ids(users: Sequence[str]) -> list[str]:
    # A text is a sequence of its letters, each of which may be somebody's id.
    if isinstance(users, str):
        raise TypeError("users: must be a list of user ids, not one text")
    return list(users)


def _moment(argument: str, value: datetime | str | None) -> datetime | str | None:
    if isinstance(value, datetime) and value.utcoffset() is None:
        raise ValueError(f"{argument}: needs a time zone, such as datetime.now(timezone.utc)")
    return value
