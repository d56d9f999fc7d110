"""What is scheduled messages' own of an item's life. All else is in models/emails.py, whose verbs are all items'."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

from models.database.connections import Cursor, Database, Row
from models.database.statements import statements
from models.emails import ON_TIME, WINDOW, Result, results_json
from models.items import Kept, Recipient, read_kept
from models.words import Priority

SQL = statements(__file__)

#: The broker's queue of messages that are to be sent, through whatever endpoint.
QUEUE = "duepost_send_message"

#: Seconds for which an endpoint may fail: then it is disabled. Five days.
FAILS_FOR = 5 * 86_400.0


class ClaimedMessage(NamedTuple):
    """One message that this worker, and nobody else, is to deliver.

    Attributes:
        claim: the number that its conclusion must name.
        wire_id: the webhook-id, or the transaction id: the same on every attempt.
        payload: JSON, as text.
        format: the endpoint's format; None where the endpoint is gone.
        secret: as it was registered: itself, or where it is to be read.
        former_secret: while another one takes its place.
        function: the SQL function that takes it, for the format `function`.
        options: JSON, as text: what the format needs beside it.
        is_failing: the endpoint has failed at the last attempt.
        users: who it is about.
        late_seconds: how long after its time it was claimed, or after it was scheduled, if that was later; None where
            it is no item.
        priority: whom it goes ahead of.
    """

    id: int
    claim: int
    kind: str
    attempts: int
    unknowns: int
    last_error: str | None
    probe: bool
    endpoint: str
    wire_id: str
    payload: str
    format: str | None
    url: str | None
    secret: str | None
    former_secret: str | None
    function: str | None
    options: str | None
    allow_private: bool
    is_failing: bool
    users: tuple[str, ...] = ()
    late_seconds: float | None = None
    priority: int = Priority.NORMAL

    @property
    def recipients(self) -> tuple[Recipient, ...]:
        """The endpoint: it is one delivery, however many users it is about."""
        return (Recipient(None, None),)

    @property
    def mailbox_full_seconds(self) -> float:
        """There is no mailbox."""
        return 0.0


class DueMessage(NamedTuple):
    """A message that is due; on time if it has been so for no longer than `ON_TIME`. `due_at` is UTC."""

    id: int
    due_at: datetime
    kind: str
    is_on_time: bool
    priority: int = Priority.NORMAL


class EndpointState(NamedTuple):
    """An endpoint that somebody is to look at. Each is None where it is not so.

    Attributes:
        name: its name.
        disabled_because: why nothing is sent to it.
        circuit_reason: what its circuit is open for.
        probe_seconds: seconds until the next probe.
        pause_seconds: seconds for which it has asked to be left alone.
        late_seconds: seconds for which its oldest due message has been waiting.
    """

    name: str
    disabled_because: str | None
    circuit_reason: str | None
    probe_seconds: float | None
    pause_seconds: float | None
    late_seconds: float | None


def endpoint_states(database: Database, late: float) -> list[EndpointState]:
    """Endpoints that are disabled, have an open circuit, or messages that are late by more than these seconds."""
    # The statement's columns are the class's fields.
    return [EndpointState(*row) for row in database.execute(SQL["endpoint_states"], {"late": late})]  # type: ignore[arg-type]


def claim(
    database: Database, item_ids: Sequence[int], worker_id: int, keep: Callable[[Kept], None] = lambda _: None
) -> list[ClaimedMessage]:
    """Queued → sending: locks the rows by ascending id, and looks whether each is still to be sent.

    One statement in a transaction of its own; a row that another transaction holds is passed over. `keep` is given
    those whose conditions are to be asked first.
    """
    rows = database.execute(SQL["claim"], {"ids": list(item_ids), "worker_id": worker_id})
    for row in rows:
        if row[1] is None:
            keep(read_kept(row[0], row[2], row[21]))
    return [_claimed(row[:21]) for row in rows if row[1] is not None]


def claim_apart(cursor: Cursor, item_id: int, worker_id: int) -> ClaimedMessage | None:
    """Scheduled → sending for one whose conditions were asked in this transaction; None where it may not be sent."""
    cursor.execute(SQL["claim_apart"], {"id": item_id, "worker_id": worker_id})
    return next((_claimed(row) for row in cursor.fetchall()), None)


def unclaimed(kept: Kept) -> ClaimedMessage:
    """A message of which no more is known than that it was kept: its claim is 0."""
    nothing = (None, None, None, None, None, None, False, False)
    return ClaimedMessage(kept.id, 0, kept.kind, 0, 0, None, False, "", "", "", *nothing)


def claimed_unread(
    database: Database, item_ids: Sequence[int], worker_id: int, held: Sequence[int]
) -> list[ClaimedMessage]:
    """What a worker has claimed of these in an answer that it could not read; `held` are the claims it knows of."""
    parameters = {"ids": list(item_ids), "worker_id": worker_id, "held": list(held)}
    return [_claimed(row) for row in database.execute(SQL["claimed_unread"], parameters)]


def _claimed(row: Row) -> ClaimedMessage:
    *columns, users, late_seconds, priority = row
    return ClaimedMessage(*columns, tuple(users or ()), late_seconds, priority)  # type: ignore[arg-type, call-arg]  # the statement's columns


def trial(database: Database, endpoint: str, wire_id: str, payload: str | None) -> ClaimedMessage | None:
    """A message that is no item, to an endpoint; None where there is none of this name.

    Args:
        database: read by whoever may read secrets.
        endpoint: its name.
        wire_id: what its receiver knows the message by.
        payload: JSON; `{}` without it.
    """
    rows = database.execute(SQL["trial"], {"endpoint": endpoint, "wire_id": wire_id, "payload": payload})
    return next((_claimed(row) for row in rows), None)


def routes_of(database: Database, item_ids: Sequence[int]) -> dict[int, str]:
    """The route of each of these items that is not finished."""
    rows = database.execute(SQL["routes_of"], {"ids": list(item_ids)})
    return {int(str(item_id)): str(route) for item_id, route in rows}


def due_page(database: Database, size: int) -> list[DueMessage]:
    """What is due of each endpoint's oldest (`WINDOW`) and not queued yet, the oldest first: at most `size`."""
    rows = database.execute(SQL["due_page"], {"size": size, "window": WINDOW, "on_time": ON_TIME})
    return [DueMessage(*row) for row in rows]  # type: ignore[arg-type]  # the statement's columns are the fields


def probes_due(database: Database) -> list[str]:
    """The routes of endpoints whose circuit is open, and whose probe is due."""
    return [str(route) for (route,) in database.execute(SQL["probes_due"])]


def note_arrival(cursor: Cursor, item_id: int) -> None:
    """Some request of it may have arrived: it is not edited any more. The caller holds the item's lock."""
    cursor.execute(SQL["note_arrival"], {"id": item_id})


def note_failing(cursor: Cursor, endpoint: str, because: str) -> bool:
    """An endpoint has failed.

    Returns:
        whether it is disabled now, as it has failed for five days.
    """
    cursor.execute(SQL["note_failing"], {"endpoint": endpoint, "because": because, "longest": FAILS_FOR})
    return cursor.fetchone() == (True,)


def note_working(cursor: Cursor, endpoint: str) -> None:
    """An endpoint takes messages."""
    cursor.execute(SQL["note_working"], {"endpoint": endpoint})


def disable(cursor: Cursor, endpoint: str, because: str) -> bool:
    """Nothing is sent to an endpoint any more; its messages stay. Says whether something was until now."""
    cursor.execute(SQL["disable"], {"endpoint": endpoint, "because": because})
    return cursor.fetchone() is not None


def call_function(cursor: Cursor, message: ClaimedMessage) -> None:
    """Has the application's function take a message, in the caller's transaction.

    Raises:
        psycopg2.Error: whatever it fails of.
    """
    cursor.execute(SQL["call_function"], {"function": message.function, "id": message.id, "payload": message.payload})


def check_constraints(cursor: Cursor) -> None:
    """Checks at once what would be checked at the commit.

    Raises:
        psycopg2.Error: it does not hold.
    """
    cursor.execute(SQL["check_constraints"])


def call_function_and_conclude(cursor: Cursor, message: ClaimedMessage, results: Sequence[Result]) -> bool:
    """Has the application's function take a message, and moves it to the ledger, in the caller's transaction.

    Returns:
        whether it moved; not where somebody else holds the item, or has its claim: then the caller is to roll back.

    Raises:
        psycopg2.Error: whatever the function fails of.
    """
    parameters = {
        "function": message.function,
        "id": message.id,
        "payload": message.payload,
        "claim": message.claim,
        "results": results_json(message.id, results),
    }
    cursor.execute(SQL["call_function_and_conclude"], parameters)
    return cursor.fetchone() == (True,)


def try_lock_claimed(cursor: Cursor, message: ClaimedMessage) -> bool | None:
    """Locks the item of a claim, unless somebody else holds it just now; waits for nobody.

    Returns:
        whether the claim is still the item's; None where somebody else holds the item.
    """
    cursor.execute(SQL["try_lock_claimed"], {"id": message.id, "claim": message.claim})
    row = cursor.fetchone()
    return None if row is None else row == (True,)
