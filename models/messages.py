"""The store of the broker's messages: what happens to a message, in order. Knows nothing of email."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import psycopg2
import psycopg2.errors

from models.database.connections import Cursor, Database, Row
from models.database.statements import statements

SQL = statements(__file__)

#: What the database says of a value that it cannot hold.
UNSTORABLE = (psycopg2.DataError, psycopg2.errors.ProgramLimitExceeded, psycopg2.errors.StatementTooComplex)

#: What it says where the broker's tables are missing, or older than this code.
NOT_MIGRATED = (
    psycopg2.errors.UndefinedTable,
    psycopg2.errors.UndefinedColumn,
    psycopg2.errors.UndefinedFunction,
    psycopg2.errors.InvalidSchemaName,
)

#: The priorities that can be stored.
PRIORITIES = range(-(2**31), 2**31)

#: The longest delay, in seconds: 200,000 years, which PostgreSQL's timestamps still hold.
LONGEST_DELAY = 200_000 * 365.25 * 86_400

#: Seconds after which a message that something else carries is read from the table: if it was lost, it is late by that.
CARRIED_FOR = 10.0

#: How long dead letters are kept.
DEAD_LETTERS_KEPT = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message to be stored.

    Attributes:
        message_id: a UUID.
        queue_name: the queue it is for.
        content: it, as JSON.
        delay: seconds until it may be read.
        priority: the lower, the more urgent.
    """

    message_id: str
    queue_name: str
    content: str
    delay: float = 0.0
    priority: int = 0

    @property
    def parameters(self) -> dict[str, object]:
        """What the statements take."""
        return {
            "message_id": str(UUID(self.message_id)),
            "queue_name": self.queue_name,
            "content": self.content,
            "delay": self.delay,
            "priority": self.priority,
        }


class Claim(NamedTuple):
    """A worker's right to a message: good until somebody else has the message in hand."""

    message_id: str
    number: int


class ClaimedContent(NamedTuple):
    """What a claim gives: the right to a message, its place in line, and its content as JSON."""

    claim: Claim
    priority: int
    eta: datetime
    content: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that failed for good. `failure` is a type of exception, never its text; `failed_at` is UTC."""

    message_id: str
    queue_name: str
    actor_name: str | None
    failed_at: datetime
    failure: str | None
    retries: int


#: By priority, the eta (UTC) from which on there may be something to claim.
Places = Mapping[int, datetime]

#: Before any eta.
BEGINNING = datetime(1, 1, 1, tzinfo=UTC)


def insert(cursor: Cursor, message: StoredMessage) -> None:
    """Inserts a message, or puts one back that was inserted before. No NOTIFY: it would serialise all commits."""
    cursor.execute(SQL["insert"], message.parameters)


def insert_alone(database: Database, message: StoredMessage, *, again: bool = False) -> None:
    """Inserts a message in a transaction of its own: one round trip.

    Args:
        database: where.
        message: it.
        again: it was tried before, and nobody knows whether it is there: then what is there stays as it is.
    """
    database.execute(SQL["insert_again"] if again else SQL["insert"], message.parameters)


def store_retry(cursor: Cursor, message: StoredMessage, claim: Claim) -> None:
    """Consumed → queued for a message in hand that is to be run again; nothing if the claim is another's by now."""
    cursor.execute(SQL["store_retry"], {**message.parameters, "claim": claim.number})


def store_retry_alone(database: Database, message: StoredMessage, claim: Claim) -> None:
    """The same in a transaction of its own: one round trip."""
    database.execute(SQL["store_retry"], {**message.parameters, "claim": claim.number})


def store_retry_as_it_was(database: Database, claim: Claim, *, delay: float, retries: int) -> None:
    """Consumed → queued for a message in hand whose new content cannot be stored: only its retries are counted.

    Args:
        database: where.
        claim: the right to it; nothing is done if it is another's by now.
        delay: seconds until it may be read.
        retries: how often it was requeued.
    """
    parameters = {"message_id": claim.message_id, "claim": claim.number, "delay": delay, "retries": retries}
    database.execute(SQL["store_retry_as_it_was"], parameters)


def claim(
    database: Database,
    queue_name: str,
    size: int,
    worker_id: int,
    places: Places | None = None,
    *,
    least_urgent_first: bool = False,
) -> tuple[list[ClaimedContent], datetime, list[int]]:
    """Queued → consumed for at most `size` due messages: the most urgent first, then the oldest.

    Args:
        database: where.
        queue_name: the queue.
        size: the most messages to claim.
        worker_id: for whom.
        places: where to go on, the eta (UTC) of each priority; from the beginning without.
        least_urgent_first: take what would be left to the last.

    Returns:
        what is claimed; the time (UTC); and the priorities that were looked at, which are all in use without `places`.
    """
    ordered = sorted((places or {}).items())
    rows = database.execute(
        SQL["claim"],
        {
            "queue_name": queue_name,
            "size": size,
            "worker_id": worker_id,
            "from_the_beginning": places is None,
            "least_urgent_first": least_urgent_first,
            "priorities": [priority for priority, _ in ordered],
            "etas": [eta for _, eta in ordered],
        },
    )
    now, looked_at = rows[0][:2]
    assert isinstance(now, datetime)  # noqa: S101 - as the statement has it
    claimed = [_claimed(row[2:]) for row in rows if row[2] is not None]
    # UPDATE returns them in any order.
    claimed.sort(key=lambda each: (each.priority, each.eta))
    return claimed, now, [int(each) for each in str(looked_at).strip("{}").split(",") if each]


def acknowledge(cursor: Cursor, claim: Claim) -> bool:
    """Consumed → gone, in the transaction that concluded the work; gives whether the claim was still good."""
    cursor.execute(SQL["acknowledge"], _pairs([claim]))
    return cursor.rowcount == 1


def acknowledge_alone(database: Database, claims: Sequence[Claim]) -> None:
    """Consumed → gone, all in one transaction of their own: one round trip."""
    database.execute(SQL["acknowledge"], _pairs(claims))


def reject(database: Database, claim: Claim, failure: str | None) -> None:
    """Consumed → rejected: a dead letter, kept for a while; `failure` is the type of exception."""
    database.execute(SQL["reject"], {"message_id": claim.message_id, "claim": claim.number, "failure": failure})


def reject_as_it_is(database: Database, claim: Claim) -> None:
    """The same without a word of the reason, where that cannot be added to the message."""
    database.execute(SQL["reject_as_it_is"], {"message_id": claim.message_id, "claim": claim.number})


def return_unstarted(database: Database, claims: Sequence[Claim]) -> None:
    """Consumed → queued for messages that were prefetched and never begun."""
    database.execute(SQL["return_unstarted"], _pairs(claims))


def return_orphaned(database: Database, queue_name: str, worker_id: int, in_hand: Iterable[Claim]) -> None:
    """Consumed → queued for messages of a queue that a living worker has claimed, and knows nothing of."""
    claims = [each.number for each in in_hand]
    database.execute(SQL["return_orphaned"], {"queue_name": queue_name, "worker_id": worker_id, "claims": claims})


def return_from_dead(database: Database) -> None:
    """Consumed → queued for all that workers had in hand when they ended."""
    database.execute(SQL["return_from_dead"])


def clock(database: Database) -> float:
    """The database's clock, in seconds since 1970."""
    [(seconds,)] = database.execute(SQL["clock"])
    return float(str(seconds))


def follow_clock_back(database: Database) -> None:
    """After the clock was set back: delays count from now, and what could be read can be read. Scans the table."""
    database.execute(SQL["follow_clock_back"])


def insert_unless_one_waits(cursor: Cursor, message: StoredMessage, actor_name: str) -> bool:
    """Inserts a message unless one for the same actor is there to be read at once; racing callers insert one.

    Where there is none yet, it locks the row of `duepost.turn` until the caller's transaction ends, and looks again.

    Returns:
        whether it was inserted.
    """
    if _waits(cursor, message, actor_name):
        return False
    cursor.execute(SQL["lock_tick"])
    if _waits(cursor, message, actor_name):
        return False
    insert(cursor, message)
    return True


def _waits(cursor: Cursor, message: StoredMessage, actor_name: str) -> bool:
    cursor.execute(SQL["waits"], {**message.parameters, "actor_name": actor_name})
    return bool(cursor.fetchone() == (True,))


def overdue(database: Database, queue_names: Iterable[str], seconds: float) -> list[str]:
    """Returns the queues with a message that could have been read for this many seconds."""
    rows = database.execute(SQL["overdue"], {"queue_names": list(queue_names), "seconds": seconds})
    return [str(name) for (name,) in rows]


def has_unfinished(database: Database, queue_name: str) -> bool:
    """Whether anything of a queue is waiting, delayed or in hand."""
    return database.execute(SQL["unfinished"], {"queue_name": queue_name}) == [(True,)]


def flush(database: Database, queue_names: Iterable[str]) -> None:
    """Deletes all messages of these queues, dead letters and what is in hand included."""
    database.execute(SQL["flush"], {"queue_names": list(queue_names)})


def dead_letters(database: Database, limit: int) -> list[DeadLetter]:
    """Messages that failed for good, the newest first."""
    rows = database.execute(SQL["dead_letters"], {"limit": limit})
    return [DeadLetter(*row) for row in rows]  # type: ignore[arg-type]  # the statement's columns are the class's fields


def requeue(cursor: Cursor, message_id: str) -> bool:
    """Rejected → queued; gives whether there was such a dead letter."""
    cursor.execute(SQL["requeue"], {"message_id": message_id})
    return cursor.fetchone() is not None


def purge(database: Database, older_than: timedelta = DEAD_LETTERS_KEPT) -> None:
    """Deletes dead letters that are older than this, and results whose time is over."""
    database.execute(SQL["purge"], {"seconds": older_than.total_seconds()})
    database.execute(SQL["purge_results"])


def store_result(database: Database, message_key: str, result: bytes, seconds: float) -> None:
    """Stores what an actor has returned; it expires after this many seconds."""
    parameters = {"message_key": message_key, "result": result, "seconds": min(seconds, LONGEST_DELAY)}
    database.execute(SQL["store_result"], parameters)


def result(database: Database, message_key: str) -> bytes | None:
    """What an actor has returned, if it has and that has not expired."""
    rows = database.execute(SQL["result"], {"message_key": message_key})
    return bytes(rows[0][0]) if rows else None  # type: ignore[call-overload]  # bytea is a memoryview


def _claimed(row: Row) -> ClaimedContent:
    message_id, number, priority, eta, content = row
    return ClaimedContent(Claim(message_id, number), priority, eta, content)  # type: ignore[arg-type]  # as the statement has them


def _pairs(claims: Sequence[Claim]) -> dict[str, object]:
    return {"message_ids": [each.message_id for each in claims], "claims": [each.number for each in claims]}
