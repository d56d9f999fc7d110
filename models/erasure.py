"""Erasing a person, and what follows a restored backup."""

from collections import Counter
from datetime import datetime

from models.database.connections import UNLIMITED, Database
from models.database.statements import statements

SQL = statements(__file__)


def forget(
    database: Database, action_id: int, *, address: str | None = None, user: str | None = None
) -> dict[str, int]:
    """Erases what is kept of a mailbox or of a user, in batches of 1,000 rows, each a transaction.

    Returns:
        how many of each: `cleared`, `ledger`, `kept`, `content`, `suppression`, `recipient`, `orders`; and `left`, what
        is being sent or waits for a person.
    """
    total: Counter[str] = Counter()
    parameters = {"action_id": action_id, "address": address, "user": user}
    while True:
        batch = {str(what): int(str(number)) for what, number in database.execute(SQL["forget_some"], parameters)}
        left = batch.pop("left")
        total.update(batch)
        if not any(batch.values()):
            return {**total, "left": left}


def hold_after_restore(
    database: Database, *, due_by: datetime | None, by: str, reason: str | None
) -> tuple[int, int, int]:
    """Holds what may have been sent after a backup was made: what was due by then, or now; for the schema's owner.

    Returns:
        the action's id, how many are held, and how many are due later and stay.
    """
    [(action_id, held, kept)] = database.execute(
        SQL["hold_after_restore"], {"due_by": due_by, "by": by, "reason": reason}, limits=UNLIMITED
    )
    return int(str(action_id)), int(str(held)), int(str(kept))


def kept_for_reopening(database: Database, *, address: str | None, user: str | None) -> list[dict[str, object]]:
    """What is kept of undeliverable items of a person, content included."""
    rows = database.execute(SQL["kept_for_reopening"], {"address": address, "user": user})
    return [
        {"id": item_id, "finished_at": finished_at, "kept_until": until, "content": content}
        for item_id, finished_at, until, content in rows
    ]
