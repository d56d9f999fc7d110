"""What happens to a scheduled email: the verbs of its life, in order.

Each function takes the cursor of the caller's transaction and never commits. Each is guarded on the state it
expects: called late or twice it changes nothing and says so. Rows are locked one at a time, by id.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

import psycopg2

from models.database.connections import Cursor, Database, Limits, Row, refusal_behind
from models.database.statements import statements
from models.errors import DatabaseUnreachable
from models.extras import NONE, Extras, read_extras
from models.items import Checked, Claimed, Flaw, Kept, Recipient, read_checked, read_kept
from models.messages import CARRIED_FOR, StoredMessage
from models.messages import Claim as MessageClaim
from models.numbers import Number
from models.words import Outcome, Priority, State, Verdict

SQL = statements(__file__)

T = TypeVar("T")

#: Seconds after it has fallen due for which an email is on time.
ON_TIME = 2.0

#: Characters of what duepost.recipient may say of a user: its functions cut off what follows.
LONGEST_TEXT = 2_000

#: The route of DUEPOST_SMTP_URL, which each email has whose kind names no other.
DEFAULT = "default"

#: The broker's queue of emails that are to be sent by the default route, and the priorities in it: urgent emails go
#: before those that are on time, these before late ones, and those before bulk.
QUEUE = "duepost_send"
URGENT_PRIORITY, PRIORITY, LATE_PRIORITY, BULK_PRIORITY = 5, 10, 20, 30

#: With which of them emails wait that are on time.
ON_TIME_PRIORITIES = {
    Priority.URGENT: URGENT_PRIORITY,
    Priority.NORMAL: PRIORITY,
    Priority.BULK: BULK_PRIORITY,
}

#: How many of an endpoint's due messages are queued at once: what waits there keeps the messages of no other waiting.
WINDOW = 256

#: How many messages may wait for the senders before the scheduler adds more: each pass steps over what they are about,
#: and a worker is never short of work before the next pass.
ENOUGH_WAITING = 1_000

_ENOUGH = {
    "enough": ENOUGH_WAITING,
    "priorities": [URGENT_PRIORITY, PRIORITY, LATE_PRIORITY, BULK_PRIORITY],
    "carried_for": CARRIED_FOR,
}

#: Before any row in due order.
BEGINNING = (datetime(1, 1, 1, tzinfo=UTC), 0)


class Place(NamedTuple):
    """A place in due order: a moment as PostgreSQL writes it, and an id."""

    due_at: str
    id: int


#: Before any row in due order.
FIRST_PLACE = Place("-infinity", 0)


class Places(NamedTuple):
    """A place in the line of each priority of a route."""

    urgent: Place = FIRST_PLACE
    normal: Place = FIRST_PLACE
    bulk: Place = FIRST_PLACE


#: Before any row of a route.
FIRST_PLACES = Places()

#: The phase that the journal gives to an attempt whose worker died: nobody knows how far it came.
LOST = "lost"

#: Why nobody knows what came of an attempt.
WORKER_ENDED = "the worker ended before it could say"
WORKER_FORGOT = "the worker could not store"


def queue_of(route: str) -> str:
    """The broker's queue of emails that are to be sent by a route."""
    return QUEUE if route == DEFAULT else f"{QUEUE}_{route}"


class ClaimedEmail(NamedTuple):
    """One email that this worker, and nobody else, is to deliver.

    `claim` is the number that its conclusion must name. `mailbox_full_seconds` is for how long a
    mailbox has been full. `users` are still to be read as recipients, and `flaw` is what of it cannot be read. `extras`
    is what few emails have. `priority` says whom it goes ahead of.
    """

    id: int
    claim: int
    kind: str
    attempts: int
    unknowns: int
    last_error: str | None
    probe: bool
    message_id_header: str
    date_header: datetime
    sender: str | None
    reply_to: str | None
    headers: Mapping[str, str] | None
    template: str | None
    context: Mapping[str, object] | None
    subject: str | None
    body_text: str | None
    body_html: str | None
    mailbox_full_seconds: float
    recipients: tuple[Recipient, ...]
    users: tuple[str, ...] = ()
    flaw: Flaw | None = None
    extras: Extras = NONE
    priority: Priority = Priority.NORMAL


class Result(NamedTuple):
    """What an attempt came to for one recipient; `outcome` where that finishes the email for this recipient.

    `verdict` is None where nothing was attempted, as for a user who is inactive. `place` is the recipient's among
    several who see each other.
    """

    user_id: str | None
    address: str | None
    verdict: Verdict | None
    outcome: Outcome | None
    phase: str
    code: int | None = None
    enhanced_code: str | None = None
    reply: str | None = None
    place: int | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """A claim whose worker is gone, or has forgotten it; `route` is what it was being sent by."""

    id: int
    claim: int
    kind: str
    worker_id: int
    route: str


class DueEmail(NamedTuple):
    """An email that is due; on time if it has been so for no longer than `ON_TIME`. `due_at` is UTC."""

    id: int
    due_at: datetime
    kind: str
    is_on_time: bool
    priority: int = Priority.NORMAL


class Finished(NamedTuple):
    """An email whose every recipient has an outcome, and the claim of the broker message that it came by, if any."""

    email: Claimed
    results: Sequence[Result]
    message: MessageClaim | None = None


def due_page(
    database: Database,
    size: int,
    after: tuple[datetime, int] = BEGINNING,
    *,
    route: str = DEFAULT,
    priority: Priority = Priority.NORMAL,
) -> list[DueEmail]:
    """The oldest due emails of a route's line after a place in due order (due_at in UTC, and id): at most `size`."""
    place: object = "-infinity" if after == BEGINNING else after[0]
    rows = database.execute(
        SQL["due_page"],
        {
            "route": route,
            "priority": int(priority),
            "size": size,
            "after_due_at": place,
            "after_id": after[1],
            "on_time": ON_TIME,
        },
        limits=database.limits.by_index,
    )
    return [DueEmail(*row) for row in rows]  # type: ignore[arg-type]  # the statement's columns are the class's fields


def newest_due(database: Database, size: int, depth: int, *, route: str = DEFAULT) -> list[DueEmail]:
    """What has only just fallen due on a route in its normal line, the newest first, some of each kind: at most `size`.

    Args:
        database: where.
        size: how many.
        depth: how many of the newest are looked at for kinds that others hide.
        route: whose line it is.
    """
    parameters = {"route": route, "size": size, "depth": max(size, depth), "on_time": ON_TIME}
    rows = database.execute(SQL["newest_due"], parameters, limits=database.limits.by_index)
    return [DueEmail(*row) for row in rows]  # type: ignore[arg-type]  # as above


def due_now(
    database: Database, routes: Sequence[str], busy: Sequence[str] = ()
) -> dict[str, list[tuple[int, Priority]]]:
    """What has fallen due within the last second and is not enqueued, urgent ones first; a few, one cheap round trip.

    None of a route by which nothing may be sent. What became visible later than that is left to the scheduler.

    Args:
        database: where.
        routes: the names of those that are looked at.
        busy: of these only urgent ones.

    Returns:
        the emails' ids with their priorities, by route; without those routes on which there is nothing.
    """
    found: dict[str, list[tuple[int, Priority]]] = {}
    for email_id, route, priority in database.call(SQL["due_now"], {"routes": list(routes), "busy": list(busy)}):
        found.setdefault(str(route), []).append((int(str(email_id)), Priority(int(str(priority)))))
    return found


def oldest_due(database: Database, route: str) -> int | None:
    """The id of a route's oldest due email that nobody has, an urgent one first, however long it has been due.

    None where there is none, or nothing may be sent. Its row is locked for the statement alone; one that is locked is
    passed over.
    """
    rows = database.execute(SQL["oldest_due"], {"route": route}, limits=database.limits.by_index)
    return int(str(rows[0][0])) if rows else None


def seconds_until_due(database: Database, *, full_scan: bool = True) -> float | None:
    """Seconds until the scheduler has something to do; None while there is nothing, while paused, or in a long pass.

    Below 0 it is late by that many. None, too, while enough messages wait for the senders (`ENOUGH_WAITING`).
    Unless it is a `full_scan`, it does not see what has been due for more than 5 s.
    """
    [(seconds,)] = database.execute(
        SQL["next_due_at"],
        {"full_scan": full_scan, "queue_name": QUEUE, "window": WINDOW, **_ENOUGH},
        limits=database.limits.by_index,
    )
    return None if seconds is None else float(str(seconds))


def are_enough_waiting(database: Database, way: str = DEFAULT) -> bool:
    """Whether enough messages wait for a route's senders, so that no more are to be enqueued (`ENOUGH_WAITING`)."""
    return database.execute(SQL["are_enough_waiting"], {"queue_name": queue_of(way), **_ENOUGH}) == [(True,)]


def enqueue(
    database: Database,
    email_ids: Sequence[int],
    messages: Sequence[StoredMessage],
    priorities: Sequence[int],
    *,
    way: str | None = DEFAULT,
    probe: bool = False,
) -> set[str]:
    """Scheduled → queued with its message, or → ledger as `expired`: in one statement and one transaction of its own.

    Args:
        database: where; no transaction may be open.
        email_ids: due emails, in order.
        messages: the message of each, all for one queue and with one delay.
        priorities: in place of the messages' own; the lower, the more urgent.
        way: the route that they are to leave by, whose queue it is: their own, or its fallback; None: each by its own.
        probe: enqueue although the circuit is open, to see whether the relay is back.

    Returns:
        the ids of the messages that were inserted; not those of emails that are queued or in hand already, or that may
        not be sent any more.
    """
    [first, *_] = messages
    rows = database.execute(
        SQL["enqueue"],
        {
            "email_ids": list(email_ids),
            "message_ids": [each.message_id for each in messages],
            "contents": [each.content for each in messages],
            "queue_name": first.queue_name,
            "priorities": list(priorities),
            "way": way,
            "probe": probe,
            "delay": first.delay,
        },
    )
    return {str(message_id) for (message_id,) in rows}


def expire(cursor: Cursor, email_id: int) -> bool:
    """Scheduled or queued → ledger as `expired`, if its time is over and nobody holds it."""
    cursor.execute(SQL["lock_expired"], {"id": email_id})
    if cursor.fetchone() is None:
        return False
    cursor.execute(SQL["finish"], {"id": email_id, "outcome": Outcome.EXPIRED, "reply": None})
    return True


def claim_unread(
    database: Database,
    email_ids: Sequence[int],
    worker_id: int,
    way: str = DEFAULT,
    keep: Callable[[Kept], None] = lambda _: None,
) -> list[ClaimedEmail]:
    """Queued → sending: locks the rows by ascending id, and looks whether each is still to be sent by this way.

    One statement in a transaction of its own; a row that another transaction holds is passed over. The recipients of
    those that name users are still to be read. `keep` is given those whose conditions are to be asked first.
    """
    rows = database.execute(SQL["claim"], {"ids": list(email_ids), "worker_id": worker_id, "way": way})
    for row in rows:
        if row[1] is None:
            keep(read_kept(row[0], row[2], row[21]))
    return [_claimed(row[:8], row[8:20], *row[20:23]) for row in rows if row[1] is not None]


def check_conditions(cursor: Cursor, kept: Kept, failure: str | None = None) -> Checked:
    """Asks what an item's kind wants to be asked, in the transaction that is to claim it. Items of either channel.

    Args:
        cursor: of a transaction of its own, with limits.
        kept: the item.
        failure: what an earlier try has failed of: then nothing is asked.

    Raises:
        psycopg2.Error: it takes too long, or the transaction is over.
    """
    cursor.execute(SQL["check_conditions"], {**kept._asdict(), "failure": failure})
    [row] = cursor.fetchall()
    return read_checked(*row)


def claim_apart(cursor: Cursor, email_id: int, worker_id: int, way: str) -> ClaimedEmail | None:
    """Scheduled → sending for one whose conditions were asked in this transaction; None where it may not be sent."""
    cursor.execute(SQL["claim_apart"], {"id": email_id, "worker_id": worker_id, "way": way})
    return next((_claimed(row[:8], row[8:20], *row[20:23]) for row in cursor.fetchall()), None)


def put_off(database: Database, kept: Sequence[tuple[Kept, float]]) -> None:
    """Makes items that were kept due in as many seconds each, as nobody can ask about them now."""
    database.execute(
        SQL["put_off"],
        {
            "ids": [each.id for each, _ in kept],
            "kept_until": [each.kept_until for each, _ in kept],
            "seconds": [seconds for _, seconds in kept],
        },
    )


def unclaimed(kept: Kept) -> ClaimedEmail:
    """An email of which no more is known than that it was kept: its claim is 0."""
    head = (kept.id, 0, kept.kind, 0, 0, None, False, "")
    return _claimed(head, (0.0, None, None, None, None, None, None, None, None, 0.0, None, False), None, None)


class DueClaim(NamedTuple):
    """What was claimed of a route's due emails.

    Attributes:
        emails: those that this worker has now; the recipients of those that name users are still to be read.
        found: how many were due, as far as was asked for; what was past its time is in the ledger.
        places: where the next claim goes on in each line; None where nothing was found there.
        kept: those whose conditions are to be asked first.
    """

    emails: list[ClaimedEmail]
    found: int
    places: tuple[Place | None, ...]
    kept: tuple[Kept, ...] = ()


#: Nothing was due, or nothing may be sent.
NOTHING_DUE = DueClaim([], 0, (None, None, None))


def claim_due(
    database: Database, size: int, worker_id: int, way: str, places: Places = FIRST_PLACES, *, overlap: float = 0.0
) -> DueClaim:
    """Scheduled → sending for a route's next due emails, without a message: at most `size`.

    Urgent ones go first; the rest by `duepost.lock_lines`. One statement in a transaction of its own, which locks
    the rows in due order; those that another transaction holds are passed over. Nothing where nothing may be sent.

    Args:
        database: where.
        size: how many at the most.
        worker_id: the worker that has them then.
        way: the route.
        places: where in due order it goes on.
        overlap: seconds by which it goes back from there, for what became visible late.
    """
    rows = database.execute(
        SQL["claim_due"],
        {
            "way": way,
            "size": size,
            "worker_id": worker_id,
            "after_due_at": [place.due_at for place in places],
            "after_id": [place.id if not overlap else 0 for place in places],
            "overlap": overlap,
        },
    )
    claimed = [_claimed(row[:8], row[8:20], *row[20:23]) for row in rows if row[1] is not None]
    kept = tuple(read_kept(row[0], row[2], row[21]) for row in rows if row[0] is not None and row[1] is None)
    if not rows:
        return NOTHING_DUE
    *_, found, moments, ids = rows[0]
    return DueClaim(claimed, int(str(found)), tuple(map(_place, moments, ids)), kept)  # type: ignore[call-overload]


def _place(due_at: str | None, item_id: int | None) -> Place | None:
    return None if due_at is None or item_id is None else Place(due_at, item_id)


class HeldItem(NamedTuple):
    """An item that a worker holds, and the number of its claim."""

    id: int
    claim: int


def claimed_since(database: Database, worker_id: int, after_claim: int, known: Sequence[int]) -> list[HeldItem]:
    """What a worker has claimed without knowing it.

    Args:
        database: where.
        worker_id: the worker.
        after_claim: the latest claim that it knew of then.
        known: claims that it has learnt of since, or is at work on.
    """
    rows = database.execute(
        SQL["claimed_since"], {"worker_id": worker_id, "after_claim": after_claim, "known": list(known)}
    )
    return [HeldItem(int(str(item_id)), int(str(claim))) for item_id, claim in rows]


def claimed_unread(
    database: Database, email_ids: Sequence[int], worker_id: int, held: Sequence[int]
) -> list[ClaimedEmail]:
    """What a worker has claimed of these in an answer that it could not read, each read alone.

    Args:
        database: where.
        email_ids: what was to be claimed.
        worker_id: the worker.
        held: claims that it knows of.
    """
    found = database.execute(
        SQL["claimed_unread"], {"ids": list(email_ids), "worker_id": worker_id, "held": list(held)}
    )
    return [_read_alone(database, row) for row in found]


def _read_alone(database: Database, row: Row) -> ClaimedEmail:
    *head, address, users, extras, priority = row
    try:
        [content] = database.execute(SQL["read_claimed"], {"id": row[0], "claim": row[1]})
        return _claimed(head, content, users, extras, priority)
    except DatabaseUnreachable:
        raise
    except Exception as error:  # noqa: BLE001 - whatever one row's content does, others flow on
        flaw = Flaw("row", f"{type(error).__name__}: it cannot be read")
    blank = (0.0, None, None, None, None, None, None, None, None, 0.0, address, False)
    return _claimed(head, blank, users, None)._replace(flaw=flaw)


def _claimed(
    head: Sequence[object], content: Sequence[object], users: object, extras: object, priority: object = Priority.NORMAL
) -> ClaimedEmail:
    """An email from a claim's columns: what cannot be read of one is its own flaw."""
    seconds, sender, reply_to, headers, template, context, *bodies, full_seconds, address, suppressed = content
    flaws: list[Flaw] = []
    date = _read("date", lambda: datetime.fromtimestamp(float(str(seconds)), UTC), flaws) or datetime.now(UTC)
    more = NONE if extras is None else _read("recipients", lambda: read_extras(extras), flaws)
    recipients: tuple[Recipient, ...]
    if more is None:
        more, recipients = NONE, (Recipient(None, None, flaw=flaws[-1]),)
    elif address is None:
        recipients = more.to_go
    else:
        recipients = (Recipient(None, str(address), more.name, suppressed=bool(suppressed)),)
    headers_read = _read("headers", lambda: _json_object(headers), flaws)
    context_read = _read("context", lambda: _json_object(context), flaws)
    columns = (*head, date, sender, reply_to, headers_read, template, context_read, *bodies, full_seconds, recipients)
    flaw = flaws[0] if flaws else None
    # The statement's columns are the class's fields.
    return ClaimedEmail(*columns, tuple(users or ()), flaw, more, Priority(int(str(priority))))  # type: ignore[arg-type, call-arg]


def _read(field: str, read: Callable[[], T], flaws: list[Flaw]) -> T | None:
    try:
        return read()
    except Exception as error:  # noqa: BLE001 - whatever one email's content does, others flow on
        flaws.append(Flaw(field, f"{type(error).__name__}: it cannot be read"))
        return None


def _json_object(text: object) -> dict[str, object] | None:
    """A JSON object from its text; None for none.

    Raises:
        ValueError: it is no object, or a number in it is too large.
        RecursionError: it is nested too deeply.
    """
    if text is None:
        return None
    found = json.loads(str(text), parse_float=Number)
    if not isinstance(found, dict):
        raise TypeError("not an object")
    return found


def read_recipients(
    database: Database, claimed: Sequence[ClaimedEmail], limits: Limits | None = None
) -> list[ClaimedEmail]:
    """Gives claimed emails the recipients that their users are; a user who cannot be read has a flaw.

    Nothing is locked: whom an email goes to does not change any more once it is claimed.

    Raises:
        DatabaseUnreachable: the database is away, or it took too long; see `read_recipients_in_time`.
    """
    users = sorted({user for email in claimed for user in email.users})
    if not users:
        return list(claimed)
    [(found, failures)] = database.execute(SQL["read_recipients"], {"users": users}, limits=limits)
    rows: dict[str, list[list[object]]] = {}
    for row in json.loads(str(found)):
        rows.setdefault(row[0], []).append(row)
    flaws = {user: failed(sqlstate, message) for user, sqlstate, message in json.loads(str(failures))}
    known = {user: _recipient(user, rows.get(user, []), flaws.get(user)) for user in users}
    suppressed = {user: _suppressed_kinds(rows.get(user, [])) for user in users}
    return [
        email._replace(
            recipients=tuple(
                known[user]._replace(suppressed=True)
                if suppressed[user] and not suppressed[user].isdisjoint((None, email.kind))
                else known[user]
                for user in email.users
            ),
            users=(),
        )
        if email.users
        else email
        for email in claimed
    ]


def _suppressed_kinds(rows: list[list[object]]) -> frozenset[object]:
    """The kinds of which the address of a user's row gets nothing; None among them: all."""
    found = rows[0][6] if rows else None
    return frozenset(found) if isinstance(found, list) else frozenset()


def failed(sqlstate: str, message: str) -> Flaw:
    """That duepost.recipient could not be read for a user."""
    return Flaw("recipient", f"SQLSTATE {sqlstate}", message)


def with_flaw(email: ClaimedEmail, flaw: Flaw) -> ClaimedEmail:
    """The same where nothing is known of any of its users."""
    return email._replace(recipients=tuple(Recipient(user, None, flaw=flaw) for user in email.users), users=())


class TooSlow(Exception):
    """duepost.recipient has taken too long; `flaw` says so."""

    def __init__(self, flaw: Flaw) -> None:
        super().__init__(flaw)
        self.flaw = flaw


def read_recipients_in_time(database: Database, claimed: Sequence[ClaimedEmail], limits: Limits) -> list[ClaimedEmail]:
    """The same within limits.

    Raises:
        TooSlow: it takes longer.
        DatabaseUnreachable: the database is away.
    """
    try:
        return read_recipients(database, claimed, limits)
    except DatabaseUnreachable as error:
        refusal = refusal_behind(error)
        if refusal is None:
            raise
        raise TooSlow(failed(str(refusal.pgcode), str(error))) from None
    except psycopg2.Error as error:
        raise TooSlow(failed(error.pgcode or "-", str(error).partition("\n")[0])) from None


def _recipient(user: str, rows: list[list[object]], flaw: Flaw | None) -> Recipient:
    if flaw is not None:
        return Recipient(user, None, flaw=flaw)
    if not rows:
        return Recipient(user, None, known=False)
    if any(row != rows[0] for row in rows):
        reason = f"duepost.recipient has {len(rows)} rows for one user"
        return Recipient(user, None, flaw=Flaw("recipient", reason))
    _, active, address, name, locale, timezone, _ = rows[0]
    texts = {"address": address, "name": name, "locale": locale, "timezone": timezone}
    for field, text in texts.items():
        if text is not None and len(str(text)) > LONGEST_TEXT:
            return Recipient(user, None, flaw=Flaw("recipient", f"{field} has more than {LONGEST_TEXT} characters"))
    if active not in {None, "true", "false", "t", "f", "1", "0"}:
        return Recipient(user, None, flaw=Flaw("recipient", "active is neither true nor false"))
    shown = [None if text is None else str(text) for text in texts.values()]
    return Recipient(user, *shown)._replace(  # type: ignore[arg-type]  # four of them
        active=active not in {"false", "f", "0"}
    )


def release(cursor: Cursor, email_id: int) -> None:
    """Queued → scheduled where nothing may be sent now, as its message goes; its place in line is kept."""
    cursor.execute(SQL["release"], {"id": email_id})


def is_claimable(cursor: Cursor, email_id: int, way: str | None = DEFAULT) -> bool:
    """Whether an item that could not be claimed by this way, or by its own, is only locked by another transaction."""
    cursor.execute(SQL["is_claimable"], {"id": email_id, "way": way})
    return cursor.fetchone() == (True,)


def return_unstarted(database: Database, claimed: Sequence[Claimed | HeldItem]) -> set[int]:
    """Sending → scheduled for claims of which nothing was sent: no attempt is counted, their place in line is kept.

    One statement in a transaction of its own. It waits for nobody who holds the row.

    Returns:
        the ids of those that are returned; not those whose claim is no longer the row's.
    """
    ids, claims = [each.id for each in claimed], [each.claim for each in claimed]
    return {
        int(str(email_id)) for (email_id,) in database.execute(SQL["return_unstarted"], {"ids": ids, "claims": claims})
    }


def lock_claimed(cursor: Cursor, email: Claimed | Lost) -> bool:
    """Locks the row of a claim; False where the claim is no longer the row's: then nothing may be concluded."""
    cursor.execute(SQL["lock_claimed"], {"id": email.id, "claim": email.claim})
    return cursor.fetchone() is not None


def was_concluded(cursor: Cursor, email: Claimed) -> bool:
    """Whether this claim was concluded by ourselves already, in a commit whose answer was lost."""
    cursor.execute(SQL["was_concluded"], {"id": email.id, "claim": email.claim})
    return cursor.fetchone() == (True,)


def record_outcomes(cursor: Cursor, email: Claimed, results: Sequence[Result]) -> None:
    """Notes what recipients came to while others are still to go; the caller holds the row's lock."""
    cursor.execute(SQL["record_outcomes"], _of(email, results))


def journal(cursor: Cursor, email: Claimed | Lost, results: Sequence[Result]) -> None:
    """Writes an attempt's results into its journal, a row for each recipient."""
    cursor.execute(SQL["journal"], _of(email, [result for result in results if result.verdict]))


def conclude_finished(cursor: Cursor, email: Claimed, results: Sequence[Result]) -> bool:
    """Sending → ledger, with the attempt's journal; False where the claim is no longer the row's."""
    cursor.execute(SQL["conclude_finished"], _finished([Finished(email, results)]))
    return cursor.fetchone() is not None


def conclude_finished_each(database: Database, finished: Sequence[Finished]) -> set[int]:
    """Sending → ledger, with the attempts' journal, each locked by ascending id; their broker messages go with them.

    One statement in a transaction of its own.

    Returns:
        the ids of those whose claim was still the row's, and that no other transaction holds; the rest is left alone.
    """
    return {int(str(email_id)) for (email_id,) in database.execute(SQL["conclude_finished"], _finished(finished))}


def results_json(item_id: int, results: Sequence[Result]) -> str:
    """Results of an item, for `duepost.conclude_emails`."""
    return json.dumps([{"email_id": item_id, **_told(result)} for result in results])


def _told(result: Result) -> dict[str, object]:
    """A result by its fields; a place only where there is one: by that the database tells several recipients."""
    fields = result._asdict()
    if result.place is None:
        del fields["place"]
    return fields


def _finished(finished: Sequence[Finished]) -> dict[str, object]:
    return {
        "ids": [each.email.id for each in finished],
        "claims": [each.email.claim for each in finished],
        "results": json.dumps(
            [{"email_id": each.email.id, **_told(result)} for each in finished for result in each.results]
        ),
        "message_ids": [each.message.message_id if each.message else None for each in finished],
        "message_claims": [each.message.number if each.message else None for each in finished],
    }


def conclude_later(
    cursor: Cursor, email: Claimed, *, pause: float | None, counted: bool, mailbox_full: bool, error: str | None
) -> bool:
    """Sending → scheduled; False where the claim is no longer the row's.

    Args:
        pause: seconds until it is due again; None keeps its place in line.
        counted: whether this was an attempt of the email's own.
        mailbox_full: whether it is a full mailbox that it waits for.
        error: why, in a line; None where nothing has failed.
    """
    cursor.execute(
        SQL["conclude_later"],
        {
            "id": email.id,
            "claim": email.claim,
            "pause": pause,
            "counted": counted,
            "mailbox_full": mailbox_full,
            "error": error,
        },
    )
    return cursor.fetchone() is not None


def conclude_unknown(cursor: Cursor, email: Claimed | Lost, *, error: str) -> State | None:
    """Sending → scheduled (resend once) or unknown (hold), as the kind says.

    Returns:
        the new state; None where the claim is no longer the row's.
    """
    cursor.execute(SQL["conclude_unknown"], {"id": email.id, "claim": email.claim, "error": error})
    row = cursor.fetchone()
    return State(row[0]) if row else None


def suppress(cursor: Cursor, result: Result) -> None:
    """Later emails to this address are not attempted: the relay called it dead."""
    cursor.execute(
        SQL["suppress_dead"],
        {"address": result.address, "enhanced_code": result.enhanced_code, "reply": result.reply},
    )


def lost_claims(database: Database) -> list[Lost]:
    """The claims of workers that are gone, by ascending email id."""
    return [Lost(*row) for row in database.execute(SQL["held_by_dead_workers"])]  # type: ignore[arg-type]


def old_claims(database: Database, worker_id: int) -> list[Lost]:
    """What a worker has held for more than a minute, by ascending email id."""
    return [Lost(*row) for row in database.execute(SQL["held_by_worker"], {"worker_id": worker_id})]  # type: ignore[arg-type]


def conclude_lost(cursor: Cursor, lost: Lost, *, why: str = WORKER_ENDED) -> State | None:
    """Sending → scheduled or unknown for a claim that nobody will conclude, journalled as an unknown attempt.

    Args:
        cursor: of a transaction of its own.
        lost: the claim.
        why: why nobody knows what came of it.

    Returns:
        where the email stands now; None where the claim is no longer the row's.
    """
    if not lock_claimed(cursor, lost):
        return None
    journal(cursor, lost, [Result(None, None, Verdict.UNKNOWN, None, LOST, reply=why)])
    return conclude_unknown(cursor, lost, error=f"{why} what came of it")


def retry_now(cursor: Cursor, email_id: int) -> bool:
    """Makes a scheduled email due at once; False where it is not scheduled."""
    cursor.execute(SQL["retry_now"], {"id": email_id})
    return cursor.rowcount == 1


def _of(email: Claimed | Lost, results: Sequence[Result]) -> dict[str, object]:
    return {
        "id": email.id,
        "claim": email.claim,
        "results": json.dumps([result._asdict() for result in results]),
    }
