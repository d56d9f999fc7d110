"""The functions of the contract, each declared once: its arguments, its call in SQL, what it returns.

`duepost` runs them with a cursor, `duepost.aio` awaits them, and `duepost.statement()` gives their SQL.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from inspect import signature
from typing import NamedTuple, Unpack, cast

from duepost.arguments import (
    ARGUMENTS,
    MESSAGE_ARGUMENTS,
    Argument,
    Attachment,
    AttachmentAt,
    NewEmail,
    NewMessage,
    checked_moment,
    encoded,
    takes_email,
    takes_message,
)
from duepost.call import Call, Row, id_of, ids_of, receipts_by_channel, receipts_of, text_of, value

#: What `add_to_batch()` has besides arguments of an email, and their types in SQL.
_BATCH_TYPES = {"batch": "text", "item": "jsonb", "item_key": "text", "wait": "interval", "longest_wait": "interval",
                "endpoint": "text"}  # fmt: skip


class Status(NamedTuple):
    """Where an email or a message stands.

    Attributes:
        id: its id.
        channel: `email` or `message`.
        kind: what sort of email or message it is.
        state: `scheduled`, `queued`, `sending`, `unknown` or `finished`.
        outcome: how it ended: `sent`, `undeliverable`, `expired`, `obsolete` or `cleared`; of several recipients' the
            first of these. None while it is not finished.
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
def schedule_email(**email: Unpack[NewEmail]) -> Call[int]:
    """Schedules one email in the caller's transaction; it leaves only if that transaction commits.

    Args:
        **email: see `NewEmail`.

    Returns:
        the email's id.

    Raises:
        ValueError: a time without a time zone.
        TypeError: one text as `users`, or a context or headers that are not JSON serializable; the key is named.
        the driver's error: SQLSTATE 22023 for a bad argument, 23505 for a key used for another content.
    """
    signature(schedule_email).bind(**email)
    return schedule_encoded(_parameters(ARGUMENTS, email))


def attachment(
    filename: str | None,
    content: bytes | bytearray | memoryview,
    content_type: str | None = None,
    cid: str | None = None,
) -> Call[Attachment]:
    """Stores a file in the caller's transaction, once however many emails it goes with.

    Args:
        filename: what its readers see, in any script; one that is empty or None gets one.
        content: its bytes, at most 25 MiB.
        content_type: such as `application/pdf`; found by content and name if it is left out.
        cid: what the HTML calls a picture that it shows: `<img src="cid:logo">` for `logo`.

    Returns:
        an element of `attachments` of `schedule_email()`, in this transaction or in one of the next 24 hours.

    Raises:
        TypeError: the content is not bytes.
        the driver's error: SQLSTATE 22023 for a bad argument.
    """
    if not isinstance(content, bytes | bytearray | memoryview):
        raise TypeError(f"content: must be bytes, is a {type(content).__name__}")
    given = {"filename": filename, "content": bytes(content), "content_type": content_type, "cid": cid}
    types = {"filename": "text", "content": "bytea", "content_type": "text", "cid": "text"}
    return Call("attachment", given, types, _attachment_of)


def attachment_at(
    filename: str | None, url: str, content_type: str | None = None, cid: str | None = None
) -> Call[AttachmentAt]:
    """Names a file that a worker reads when it sends; nothing is stored.

    Args:
        filename: what its readers see, in any script; one that is empty or None gets one.
        url: `file:///…`, a path on the workers' machines, or `s3://bucket/…`: below one of DUEPOST_ATTACHMENT_ROOTS.
        content_type: such as `application/pdf`; found by the names if it is left out.
        cid: what the HTML calls a picture that it shows: `<img src="cid:logo">` for `logo`.

    Returns:
        an element of `attachments` of `schedule_email()`.

    Raises:
        the driver's error: SQLSTATE 22023 for a bad argument.
    """
    given = {"filename": filename, "url": url, "content_type": content_type, "cid": cid}
    return Call("attachment_at", given, dict.fromkeys(given, "text"), _attachment_at_of)


def _attachment_at_of(rows: Sequence[Row]) -> AttachmentAt:
    found = value(rows)
    return cast("AttachmentAt", json.loads(found) if isinstance(found, str | bytes) else found)


def _attachment_of(rows: Sequence[Row]) -> Attachment:
    found = value(rows)
    return cast("Attachment", json.loads(found) if isinstance(found, str | bytes) else found)


def schedule_encoded(arguments: Mapping[str, object]) -> Call[int]:
    """Schedules one email whose arguments are parameters already: a JSON object is a text."""
    return Call("schedule_email", dict(arguments), _types(ARGUMENTS), id_of)


def schedule_emails(emails: Iterable[Mapping[str, object]]) -> Call[list[int]]:
    """Schedules many emails in the caller's transaction, or none: one round trip, many times as fast as one by one.

    Args:
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
    return schedule_lines(_in_json("emails", ARGUMENTS, emails))


def schedule_lines(emails: Iterable[str]) -> Call[list[int]]:
    """Schedules many emails, each of which is a JSON object in text: its numbers stay as they are written."""
    return _schedule_many("emails", emails)


def clear_scheduled_emails(users: Sequence[str], kind: str | None = None) -> Call[list[tuple[int, str]]]:
    """Takes users off their scheduled emails, of one kind or all.

    Returns:
        an id and a receipt for each email: `cleared` (never sent), `user_removed` or `too_late`; two for one that
        some of these users have already and others are taken off: `user_removed`, then `too_late`.
    """
    parameters = {"users": ARGUMENTS["users"].parameter("users", users), "kind": kind}
    return Call("clear_scheduled_emails", parameters, _types(ARGUMENTS), receipts_of, ("email_id", "receipt"))


def clear_scheduled_emails_to(address: str, kind: str | None = None) -> Call[list[tuple[int, str]]]:
    """Clears the emails scheduled to an address, of one kind or all; an id and a receipt for each."""
    parameters = {"address": address, "kind": kind}
    return Call("clear_scheduled_emails_to", parameters, _types(ARGUMENTS), receipts_of, ("email_id", "receipt"))


def clear_scheduled_email(email_id: int) -> Call[str]:
    """Clears one email: `cleared` (never sent), `user_removed` (some have it, others never get it) or `too_late`."""
    return Call("clear_scheduled_email", {"email_id": email_id}, {"email_id": "bigint"}, text_of)


def reschedule_email(email_id: int, scheduled_at: datetime | str) -> Call[str]:
    """Moves one email to another time: `rescheduled` or `too_late`.

    Raises:
        ValueError: a time without a time zone.
    """
    parameters = {"email_id": email_id, "scheduled_at": checked_moment("scheduled_at", scheduled_at)}
    return Call("reschedule_email", parameters, {"email_id": "bigint", "scheduled_at": "timestamptz"}, text_of)


def add_to_batch(
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
) -> Call[int]:
    """Gathers an event into one email, or one message, with others, in the caller's transaction.

    While that of this batch is not claimed by a worker the item joins it, and moves it by `wait` from now; else a new
    one is scheduled after `wait`. The template sees the items, in the order of joining, as `items`; the payload of a
    message is the list of them.

    Args:
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
    own = {"batch": batch, "item": encoded("item", item), "item_key": item_key, "wait": wait,
           "longest_wait": longest_wait, "endpoint": endpoint}  # fmt: skip
    parameters = _parameters(ARGUMENTS, given) | {name: each for name, each in own.items() if each is not None}
    return Call("add_to_batch", parameters, _types(ARGUMENTS) | _BATCH_TYPES, id_of)


def remove_from_batch(batch: str, item_key: str) -> Call[str]:
    """Takes an item out of its batch.

    Returns:
        `removed`, `cleared` (it was the last one: nothing is sent) or `too_late` (what has it was claimed, or is
        finished, or there was no such item).
    """
    return Call("remove_from_batch", {"batch": batch, "item_key": item_key}, _BATCH_TYPES, text_of)


@takes_message
def schedule_message(**message: Unpack[NewMessage]) -> Call[int]:
    """Schedules one message to an endpoint, in the caller's transaction; it leaves only if that transaction commits.

    Args:
        **message: see `NewMessage`.

    Returns:
        the message's id; emails and messages have ids of one sequence.

    Raises:
        ValueError: a time without a time zone.
        TypeError: one text as `users`, or a payload that is not JSON serializable; the key is named.
        the driver's error: SQLSTATE 22023 for a bad argument, 23505 for a key used for another content.
    """
    signature(schedule_message).bind(**message)
    return schedule_encoded_message(_parameters(MESSAGE_ARGUMENTS, message))


def schedule_encoded_message(arguments: Mapping[str, object]) -> Call[int]:
    """Schedules one message whose arguments are parameters already: its payload is a text."""
    return Call("schedule_message", dict(arguments), _types(MESSAGE_ARGUMENTS), id_of)


def schedule_messages(messages: Iterable[Mapping[str, object]]) -> Call[list[int]]:
    """Schedules many messages in the caller's transaction, or none, in one round trip.

    Args:
        messages: the arguments of `schedule_message()` of each, by name (`NewMessage`).

    Returns:
        the messages' ids, in their order.

    Raises:
        ValueError: a time without a time zone.
        TypeError: one text as `users`, or a value that is not JSON serializable; the key is named.
        the driver's error: SQLSTATE 22023 for a bad argument, 23505 for a key used for another content; the message
            begins with the place, from 0, as in `messages[2]: payload: …`.
    """
    return schedule_message_lines(_in_json("messages", MESSAGE_ARGUMENTS, messages))


def schedule_message_lines(messages: Iterable[str]) -> Call[list[int]]:
    """Schedules many messages, each of which is a JSON object in text: its numbers stay as they are written."""
    return _schedule_many("messages", messages)


def edit_message(message_id: int, payload: object) -> Call[str]:
    """Gives one message another payload: `edited`, or `too_late` once a request of it may have arrived.

    Raises:
        TypeError: the payload is not JSON serializable.
        the driver's error: SQLSTATE 22023 for a payload that its endpoint does not take.
    """
    return edit_encoded_message(message_id, encoded("payload", payload))


def edit_encoded_message(message_id: int, payload: str) -> Call[str]:
    """Does the same with a payload that is JSON in text already."""
    return Call("edit_message", {"id": message_id, "payload": payload}, {"id": "bigint", "payload": "jsonb"}, text_of)


def clear_scheduled_messages(users: Sequence[str], kind: str | None = None) -> Call[list[tuple[int, str]]]:
    """Takes users off their scheduled messages, of one kind or all; ids and receipts as `clear_scheduled_emails()`."""
    parameters = {"users": ARGUMENTS["users"].parameter("users", users), "kind": kind}
    return Call("clear_scheduled_messages", parameters, _types(ARGUMENTS), receipts_of, ("id", "receipt"))


def clear_scheduled_message(message_id: int) -> Call[str]:
    """Clears one message: `cleared` (never sent) or `too_late`, also once some request of it may have arrived."""
    return Call("clear_scheduled_message", {"id": message_id}, {"id": "bigint"}, text_of)


def reschedule_message(message_id: int, scheduled_at: datetime | str) -> Call[str]:
    """Moves one message to another time: `rescheduled` or `too_late`.

    Raises:
        ValueError: a time without a time zone.
    """
    parameters = {"id": message_id, "scheduled_at": checked_moment("scheduled_at", scheduled_at)}
    return Call("reschedule_message", parameters, {"id": "bigint", "scheduled_at": "timestamptz"}, text_of)


def clear_scheduled(users: Sequence[str], kind: str | None = None) -> Call[list[tuple[int, str, str]]]:
    """Takes users off their scheduled emails and messages at once, of one kind or all, as when an account is closed.

    Returns:
        an id, a channel (`email` or `message`) and a receipt for each, as `clear_scheduled_emails()` gives them.
    """
    parameters = {"users": ARGUMENTS["users"].parameter("users", users), "kind": kind}
    columns = ("id", "channel", "receipt")
    return Call("clear_scheduled", parameters, _types(ARGUMENTS), receipts_by_channel, columns)


def status(item_id: int | None = None, *, key: str | None = None) -> Call[Status | None]:
    """Says where an email or a message stands, by its id or its key; None where nothing is known of it.

    Raises:
        the driver's error: SQLSTATE 22023 where neither is given, or both.
    """
    return Call("status", {"id": item_id, "key": key}, {"id": "bigint", "key": "text"}, _status_of, Status._fields)


def _status_of(rows: Sequence[Row]) -> Status | None:
    return Status(*rows[0]) if rows else None  # type: ignore[arg-type]  # as the driver gives them


def _types(arguments: Mapping[str, Argument]) -> dict[str, str]:
    return {name: argument.sql_type for name, argument in arguments.items()}


def _parameters(arguments: Mapping[str, Argument], given: Mapping[str, object]) -> dict[str, object]:
    return {name: arguments[name].parameter(name, each) for name, each in given.items() if each is not None}


def _schedule_many(name: str, items: Iterable[str]) -> Call[list[int]]:
    return Call(f"schedule_{name}", {name: f"[{','.join(items)}]"}, {name: "jsonb"}, ids_of)


def _in_json(name: str, arguments: Mapping[str, Argument], items: Iterable[Mapping[str, object]]) -> Iterator[str]:
    """Gives each of many items as a JSON object. A key that is unknown is left to the database, which says so."""
    for place, item in enumerate(items):
        members = {
            key: arguments[key].member(f"{name}[{place}]: {key}", each) if key in arguments else each
            for key, each in item.items()
            if each is not None
        }
        yield encoded(f"{name}[{place}]", members)
