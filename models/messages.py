"""The store of the broker's messages: what happens to a message, in order. Knows nothing of email."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from psycopg2.extras import Json

from models.database import Cursor, Database
from models.statements import statements

SQL = statements(__file__)

#: How long dead letters are kept.
DEAD_LETTERS_KEPT = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message to be inserted: its id, its queue, its content as JSON, and a delay in seconds."""

    message_id: str
    queue_name: str
    content: dict[str, object]
    delay: float = 0.0


def insert(cursor: Cursor, message: StoredMessage) -> None:
    """Inserts a message, or puts one back that was inserted before. No NOTIFY: it would serialise all commits."""
    cursor.execute(SQL["insert"], _row(message))


def insert_alone(database: Database, message: StoredMessage) -> None:
    """Inserts a message in a transaction of its own: one round trip."""
    database.execute(SQL["insert"], _row(message))


def claim(database: Database, queue_name: str, size: int, worker_id: int) -> list[dict[str, object]]:
    """Queued → consumed for at most `size` due messages, the oldest first; gives their contents."""
    rows = database.execute(SQL["claim"], {"queue_name": queue_name, "size": size, "worker_id": worker_id})
    rows.sort(key=lambda row: row[0])  # type: ignore[arg-type,return-value]  # UPDATE returns them in any order
    return [row[1] for row in rows if isinstance(row[1], dict)]


def acknowledge(cursor: Cursor, message_ids: Sequence[str], worker_id: int) -> None:
    """Consumed → gone, in the transaction that concluded the work."""
    cursor.execute(SQL["acknowledge"], {"message_ids": list(message_ids), "worker_id": worker_id})


def acknowledge_alone(database: Database, message_ids: Sequence[str], worker_id: int) -> None:
    """Consumed → gone, in a transaction of its own."""
    database.execute(SQL["acknowledge"], {"message_ids": list(message_ids), "worker_id": worker_id})


def reject(database: Database, message_id: str, worker_id: int) -> None:
    """Consumed → rejected: a dead letter, kept for a while."""
    database.execute(SQL["reject"], {"message_id": message_id, "worker_id": worker_id})


def give_back(database: Database, message_ids: Sequence[str], worker_id: int) -> None:
    """Consumed → queued for messages that were prefetched and never begun."""
    database.execute(SQL["give_back"], {"message_ids": list(message_ids), "worker_id": worker_id})


def give_back_of_the_gone(database: Database) -> None:
    """Consumed → queued for all that workers had in hand when they ended."""
    database.execute(SQL["give_back_of_the_gone"])


def insert_unless_one_waits(cursor: Cursor, message: StoredMessage, actor_name: str) -> bool:
    """Inserts a message unless one for the same actor is there to be read at once; racing callers insert one.

    Locks an advisory lock until the caller's transaction ends.

    Returns:
        whether it was inserted.
    """
    cursor.execute(SQL["lock_tick"])
    cursor.execute(SQL["waits"], {"queue_name": message.queue_name, "actor_name": actor_name})
    if cursor.fetchone() == (True,):
        return False
    insert(cursor, message)
    return True


def purge(database: Database, older_than: timedelta = DEAD_LETTERS_KEPT) -> None:
    """Deletes dead letters that are older than this."""
    database.execute(SQL["purge"], {"older_than": older_than})


def _row(message: StoredMessage) -> dict[str, object]:
    return {
        "message_id": str(UUID(message.message_id)),
        "queue_name": message.queue_name,
        "message": Json(message.content),
        "delay": message.delay,
    }
