"""The client: the SQL functions from Python, in the caller's own transaction. Imports no worker code."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
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


#: Levels of a context, at the most: its JSON is read by machines that end at about a thousand.
DEEPEST = 900

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


#: ISO 8601 with its zone: an offset, UTC, or a name such as Europe/Berlin. `duepost.has_zone()` has the same.
ISO_TIME = re.compile(
    r"[0-9]{4}(?:-[0-9]{2}-[0-9]{2}|[0-9]{4})[Tt ][0-9]{2}:?[0-9]{2}(?::?[0-9]{2}(?:[.][0-9]+)?)? ?"
    r"(?:[Zz]|UTC|GMT|[+-][0-9]{2}(?::?[0-9]{2}(?::?[0-9]{2})?)?|[A-Za-z_]+(?:/[A-Za-z0-9_+-]+)+)"
)


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
        scheduled_at: when, with a time zone: a datetime, or a text in ISO 8601; None is now.
        template: the template's name; give either this (with `context`) or `subject` and a body.
        context: what the template is rendered with: strings, numbers, booleans, None, lists and dicts of them.
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
        TypeError: one text as `users`, or a context or headers that are not JSON serializable; the key is named.
        the driver's error: SQLSTATE 22023 for a bad argument, 23505 for a key used for another content.
    """
    return schedule_encoded(
        cursor,
        {
            "kind": kind,
            "address": address,
            "users": _user_ids(users) if users is not None else None,
            "scheduled_at": _moment("scheduled_at", scheduled_at),
            "template": template,
            "context": encoded("context", context) if context is not None else None,
            "subject": subject,
            "body_text": body_text,
            "body_html": body_html,
            "key": key,
            "expires_at": _moment("expires_at", expires_at),
            "sender": sender,
            "reply_to": reply_to,
            "headers": encoded("headers", headers) if headers is not None else None,
        },
    )


def schedule_encoded(cursor: Cursor, arguments: Mapping[str, object]) -> int:
    """Schedules one email whose JSON is text already; None is not given."""
    given = {name: value for name, value in arguments.items() if value is not None}
    named = ", ".join(f"{name} => %({name})s::{ARGUMENTS[name]}" for name in given)
    _execute(cursor, f"SELECT duepost.schedule_email({named})", given)
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
        {"users": _user_ids(users), "kind": kind},
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
        {"email_id": email_id, "scheduled_at": _moment("scheduled_at", scheduled_at)},
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


def check_time(text: str) -> None:
    """Makes sure that a text is a moment in ISO 8601 with its zone, whatever the session's settings are.

    Raises:
        ValueError: it is none.
    """
    if not ISO_TIME.fullmatch(text):
        raise ValueError("must be a time with its zone, such as 2026-01-31T09:00:00+01:00")


def encoded(argument: str, value: object) -> str:
    """Returns a value as JSON.

    Raises:
        TypeError: something in it is not JSON serializable; it is named by argument and key.
    """
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        # The library does not say where.
        fault = _json_fault(argument, value)
    raise TypeError(fault)


def _json_fault(argument: str, value: object) -> str:
    """What keeps a value from being JSON, by argument and key."""
    waiting: list[tuple[str, object, int]] = [(argument, value, 0)]
    while waiting:
        place, each, depth = waiting.pop()
        if depth > DEEPEST:
            return f"{argument}: not JSON serializable: it is nested too deeply, or holds itself"
        if isinstance(each, Mapping):
            for key in each:
                if not isinstance(key, str | int | float | None):
                    return f"{place}: not JSON serializable: a key must be a string, is a {type(key).__name__}"
            if not isinstance(each, dict):
                return f"{place}: not JSON serializable: must be a dict, is a {type(each).__name__}"
            waiting += [(f"{place}: {key}", inner, depth + 1) for key, inner in reversed(each.items())]
        elif isinstance(each, list | tuple):
            inners = [(f"{place}[{index}]", inner, depth + 1) for index, inner in enumerate(each)]
            waiting += reversed(inners)
        elif isinstance(each, float) and not math.isfinite(each):
            return f"{place}: not JSON serializable: must be a finite number"
        elif not isinstance(each, str | int | float | None):
            return f"{place}: not JSON serializable: {type(each).__name__}; give a string or a number"
    return f"{argument}: not JSON serializable"


def _in_json(place: int, email: Mapping[str, object]) -> str:
    arguments = {name: value for name, value in email.items() if value is not None}
    for name, value in arguments.items():
        where = f"emails[{place}]: {name}"
        if ARGUMENTS.get(name) == "timestamptz":
            arguments[name] = _text_of(_moment(where, value))
        elif name == "users":
            if isinstance(value, str) or not isinstance(value, Iterable):
                raise TypeError(f"{where}: must be a list of user ids")
            arguments[name] = list(value)
    return encoded(f"emails[{place}]", arguments)


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


def _moment(argument: str, value: object) -> datetime | str | None:
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise ValueError(f"{argument}: needs a time zone, such as datetime.now(timezone.utc)")
    elif isinstance(value, date):
        # As for every time without a zone.
        raise ValueError(f"{argument}: needs a time zone and a time of day: a date is none")  # noqa: TRY004
    elif isinstance(value, str):
        try:
            check_time(value)
        except ValueError as error:
            raise ValueError(f"{argument}: {error}") from None
    elif value is not None:
        raise TypeError(f"{argument}: must be a datetime with a time zone, is a {type(value).__name__}")
    return value


def _text_of(moment: datetime | str | None) -> str | None:
    return moment.isoformat() if isinstance(moment, datetime) else moment
