"""The client: the SQL functions from Python, in the caller's own transaction. Imports no worker code."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from inspect import signature
from typing import NamedTuple, Protocol, Unpack

from duepost.arguments import (
    ARGUMENTS,
    MESSAGE_ARGUMENTS,
    Argument,
    NewEmail,
    NewMessage,
    checked_moment,
    encoded,
    takes_email,
    takes_message,
)


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


class Status(NamedTuple):
    """Where an email or a message stands.

    Attributes:
        id: its id.
        channel: `email` or `message`.
        kind: what sort of email or message it is.
        state: `scheduled`, `queued`, `sending`, `unknown` or `finished`.
        outcome: how it ended: `sent`, `undeliverable`, `expired` or `cleared`; of several recipients' the first of
            these. None while it is not finished.
        scheduled_at: when it was to be sent.
        due_at: when it is tried next; None once it is finished.
        finished_at: when it ended; None while it is not finished.
        attempts: how many there were.
    """

    id: int
    channel: str
    kind: str
    state: str
    outcome: str | None
    scheduled_at: datetime
    due_at: datetime | None
    finished_at: datetime | None
    attempts: int


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
    return schedule_encoded(cursor, _parameters(ARGUMENTS, email))


def schedule_encoded(cursor: Cursor, arguments: Mapping[str, object]) -> int:
    """Schedules one email whose arguments are parameters already: a JSON object is a text."""
    return _schedule(cursor, "schedule_email", ARGUMENTS, arguments)


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
    return schedule_lines(cursor, _in_json("emails", ARGUMENTS, emails))


def schedule_lines(cursor: Cursor, emails: Iterable[str]) -> list[int]:
    """Schedules many emails, each of which is a JSON object in text: its numbers stay as they are written."""
    return _schedule_many(cursor, "schedule_emails", emails)


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


def add_to_batch(
    cursor: Cursor,
    batch: str,
    item: object,
    *,
    kind: str,
    template: str | None = None,
    address: str | None = None,
    users: Sequence[str] | None = None,
    endpoint: str | None = None,
    context: Mapping[str, object] | None = None,
    item_key: str | None = None,
    wait: timedelta | str | None = None,
    longest_wait: timedelta | str | None = None,
    sender: str | None = None,
    reply_to: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> int:
    """Gathers an event into one email, or one message, with others, in the cursor's transaction.

    While that of this batch is not claimed by a worker the item joins it, and moves it by `wait` from now; else a new
    one is scheduled after `wait`. The template sees the items, in the order of joining, as `items`; the payload of a
    message is the list of them.

    Args:
        cursor: a DB-API cursor of the application's own.
        batch: the batch's name, one for each recipient, such as `comments-of-42`.
        item: what the template shows of the event: any JSON value but null.
        kind: what sort of email or message it is.
        template: the template's name; for an email.
        address: to whom an email goes: give either this, or users, or an endpoint.
        users: ids of users, whose addresses are read when the email is sent; with an endpoint, whom it concerns.
        endpoint: where a message goes: to a webhook or a function.
        context: what the template is rendered with besides; its keys replace those of earlier calls.
        item_key: an item that has it already is replaced by this one, in its place.
        wait: how long it waits for further items; 2 minutes if it is left out. A text is PostgreSQL's interval.
        longest_wait: how long after the first item it leaves at the latest.
        sender: who sends an email, instead of the default; of the call that opens it, as the next two.
        reply_to: where replies go.
        headers: further header fields.

    Returns:
        the id of the email or the message.

    Raises:
        TypeError: one text as `users`, or a value that is not JSON serializable; the key is named.
        the driver's error: SQLSTATE 22023 for a bad argument, also where kind, recipient, endpoint or template are not
            those of what the batch has open.
    """
    given = {"kind": kind, "template": template, "address": address, "users": users, "context": context,
             "sender": sender, "reply_to": reply_to, "headers": headers}  # fmt: skip
    named = {"batch": "text", "item": "jsonb", "item_key": "text", "wait": "interval", "longest_wait": "interval",
             "endpoint": "text"}  # fmt: skip
    parameters = _parameters(ARGUMENTS, given)
    parameters |= {"batch": batch, "item": encoded("item", item)}
    own = {"item_key": item_key, "wait": wait, "longest_wait": longest_wait, "endpoint": endpoint}
    parameters |= {name: value for name, value in own.items() if value is not None}
    types = {**{name: ARGUMENTS[name].sql_type for name in given}, **named}
    arguments = ", ".join(f"{name} => %({name})s::{types[name]}" for name in parameters)
    _execute(cursor, f"SELECT duepost.add_to_batch({arguments})", parameters)
    return int(str(_single(cursor)))


def remove_from_batch(cursor: Cursor, batch: str, item_key: str) -> str:
    """Takes an item out of its batch.

    Returns:
        `removed`, `cleared` (it was the last one: nothing is sent) or `too_late` (what has it was claimed, or is
        finished, or there was no such item).
    """
    _execute(
        cursor,
        "SELECT duepost.remove_from_batch(%(batch)s::text, %(item_key)s::text)",
        {"batch": batch, "item_key": item_key},
    )
    return str(_single(cursor))


@takes_message
def schedule_message(cursor: Cursor, **message: Unpack[NewMessage]) -> int:
    """Schedules one message to an endpoint, in the cursor's transaction; it leaves only if that transaction commits.

    Args:
        cursor: a DB-API cursor of the application's own.
        **message: see `NewMessage`.

    Returns:
        the message's id; emails and messages have ids of one sequence.

    Raises:
        ValueError: a time without a time zone.
        TypeError: one text as `users`, or a payload that is not JSON serializable; the key is named.
        the driver's error: SQLSTATE 22023 for a bad argument, 23505 for a key used for another content.
    """
    signature(schedule_message).bind(cursor, **message)
    return schedule_encoded_message(cursor, _parameters(MESSAGE_ARGUMENTS, message))


def schedule_encoded_message(cursor: Cursor, arguments: Mapping[str, object]) -> int:
    """Schedules one message whose arguments are parameters already: its payload is a text."""
    return _schedule(cursor, "schedule_message", MESSAGE_ARGUMENTS, arguments)


def schedule_messages(cursor: Cursor, messages: Iterable[Mapping[str, object]]) -> list[int]:
    """Schedules many messages in the cursor's transaction, or none, in one round trip.

    Args:
        cursor: a DB-API cursor of the application's own.
        messages: the arguments of `schedule_message()` of each, by name (`NewMessage`).

    Returns:
        the messages' ids, in their order.

    Raises:
        ValueError: a time without a time zone.
        TypeError: one text as `users`, or a value that is not JSON serializable; the key is named.
        the driver's error: SQLSTATE 22023 for a bad argument, 23505 for a key used for another content; the message
            begins with the place, from 0, as in `messages[2]: payload: …`.
    """
    return schedule_message_lines(cursor, _in_json("messages", MESSAGE_ARGUMENTS, messages))


def schedule_message_lines(cursor: Cursor, messages: Iterable[str]) -> list[int]:
    """Schedules many messages, each of which is a JSON object in text: its numbers stay as they are written."""
    return _schedule_many(cursor, "schedule_messages", messages)


def edit_message(cursor: Cursor, message_id: int, payload: object) -> str:
    """Gives one message another payload: `edited`, or `too_late` once a request of it may have arrived.

    Raises:
        TypeError: the payload is not JSON serializable.
        the driver's error: SQLSTATE 22023 for a payload that its endpoint does not take.
    """
    return edit_encoded_message(cursor, message_id, encoded("payload", payload))


def edit_encoded_message(cursor: Cursor, message_id: int, payload: str) -> str:
    """Does the same with a payload that is JSON in text already."""
    parameters = {"id": message_id, "payload": payload}
    _execute(cursor, "SELECT duepost.edit_message(%(id)s::bigint, %(payload)s::jsonb)", parameters)
    return str(_single(cursor))


def clear_scheduled_messages(cursor: Cursor, users: Sequence[str], kind: str | None = None) -> list[tuple[int, str]]:
    """Takes users off their scheduled messages, of one kind or all; ids and receipts as `clear_scheduled_emails()`."""
    _execute(
        cursor,
        "SELECT id, receipt FROM duepost.clear_scheduled_messages(%(users)s::text[], %(kind)s::text)",
        {"users": ARGUMENTS["users"].parameter("users", users), "kind": kind},
    )
    return _receipts(cursor)


def clear_scheduled_message(cursor: Cursor, message_id: int) -> str:
    """Clears one message: `cleared` (never sent) or `too_late`."""
    _execute(cursor, "SELECT duepost.clear_scheduled_message(%(id)s::bigint)", {"id": message_id})
    return str(_single(cursor))


def reschedule_message(cursor: Cursor, message_id: int, scheduled_at: datetime | str) -> str:
    """Moves one message to another time: `rescheduled` or `too_late`."""
    _execute(
        cursor,
        "SELECT duepost.reschedule_message(%(id)s::bigint, %(scheduled_at)s::timestamptz)",
        {"id": message_id, "scheduled_at": checked_moment("scheduled_at", scheduled_at)},
    )
    return str(_single(cursor))


def clear_scheduled(cursor: Cursor, users: Sequence[str], kind: str | None = None) -> list[tuple[int, str, str]]:
    """Takes users off their scheduled emails and messages at once, of one kind or all, as when an account is closed.

    Returns:
        an id, a channel (`email` or `message`) and a receipt for each, as `clear_scheduled_emails()` gives them.
    """
    _execute(
        cursor,
        "SELECT id, channel, receipt FROM duepost.clear_scheduled(%(users)s::text[], %(kind)s::text)",
        {"users": ARGUMENTS["users"].parameter("users", users), "kind": kind},
    )
    rows = map(_values, cursor.fetchall())
    return [(int(str(item_id)), str(channel), str(receipt)) for item_id, channel, receipt in rows]


def status(cursor: Cursor, item_id: int | None = None, *, key: str | None = None) -> Status | None:
    """Says where an email or a message stands, by its id or its key; None where nothing is known of it.

    Raises:
        the driver's error: SQLSTATE 22023 where neither is given, or both.
    """
    _execute(
        cursor,
        "SELECT id, channel, kind, state, outcome, scheduled_at, due_at, finished_at, attempts"
        " FROM duepost.status(%(id)s::bigint, %(key)s::text)",
        {"id": item_id, "key": key},
    )
    row = cursor.fetchone()
    return None if row is None else Status(*_values(row))  # type: ignore[arg-type]  # as the driver gives them


def _parameters(arguments: Mapping[str, Argument], given: Mapping[str, object]) -> dict[str, object]:
    return {name: arguments[name].parameter(name, value) for name, value in given.items() if value is not None}


def _schedule(
    cursor: Cursor, function: str, arguments: Mapping[str, Argument], parameters: Mapping[str, object]
) -> int:
    named = ", ".join(f"{name} => %({name})s::{arguments[name].sql_type}" for name in parameters)
    _execute(cursor, f"SELECT duepost.{function}({named})", parameters)
    return int(str(_single(cursor)))


def _schedule_many(cursor: Cursor, function: str, items: Iterable[str]) -> list[int]:
    _execute(cursor, f"SELECT duepost.{function}(%(items)s::jsonb)", {"items": f"[{','.join(items)}]"})
    return [int(str(_values(row)[0])) for row in cursor.fetchall()]


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


def _in_json(name: str, arguments: Mapping[str, Argument], items: Iterable[Mapping[str, object]]) -> Iterator[str]:
    """Gives each of many items as a JSON object. A key that is unknown is left to the database, which says so."""
    for place, item in enumerate(items):
        members = {
            key: arguments[key].member(f"{name}[{place}]: {key}", value) if key in arguments else value
            for key, value in item.items()
            if value is not None
        }
        yield encoded(f"{name}[{place}]", members)


def _single(cursor: Cursor) -> object:
    row = cursor.fetchone()
    if row is None:
        raise LookupError("the database gave no row")
    return _values(row)[0]


def _receipts(cursor: Cursor) -> list[tuple[int, str]]:
    return [(int(str(email_id)), str(receipt)) for email_id, receipt in map(_values, cursor.fetchall())]


def _values(row: Row) -> Sequence[object]:
    return list(row.values()) if isinstance(row, Mapping) else row
