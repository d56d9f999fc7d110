"""What was undeliverable: kept for some days, so that no drop is final at once."""

import json
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

from models.database.connections import Cursor, Database
from models.database.statements import statements
from models.emails import Result
from models.items import Claimed
from models.words import Outcome, Reopening

SQL = statements(__file__)


class Refused(NamedTuple):
    """A recipient who was refused; `refusal` is the relay's code and words without addresses and numbers."""

    email_id: int
    address: str
    refusal: str


def keep(cursor: Cursor, email: Claimed, results: Sequence[Result], *, days: int) -> None:
    """Keeps an email for its recipients who could not be reached, if there are any; before its row goes.

    Args:
        cursor: of the transaction that concludes it, or notes the results of one recipient.
        email: the claimed email; the caller holds its row's lock.
        results: what the attempt came to.
        days: for how long; 0 keeps no content, only what was refused.
    """
    undeliverable = [result for result in results if result.outcome is Outcome.UNDELIVERABLE]
    if undeliverable:
        cursor.execute(
            SQL["keep"],
            {
                "id": email.id,
                "claim": email.claim,
                "results": json.dumps([result._asdict() for result in undeliverable]),
                "days": days,
            },
        )


def refused_alike(cursor: Cursor, email_id: int, most: int) -> list[Refused]:
    """Who was refused last by the same route, with the same words as a recipient of this email; nobody accepted since.

    Args:
        cursor: of the transaction that has kept the email.
        email_id: it.
        most: how many recipients at most, the last first.
    """
    cursor.execute(SQL["refused_alike"], {"id": email_id, "most": most})
    return [Refused(*row) for row in cursor.fetchall()]


def is_refused_as_the_circuit_says(cursor: Cursor, email_id: int) -> bool:
    """Whether a recipient of this email was refused with the very words that the route's circuit is open for."""
    cursor.execute(SQL["is_refused_as_the_circuit_says"], {"id": email_id})
    return cursor.fetchone() == (True,)


def lock(cursor: Cursor, email_ids: Collection[int]) -> None:
    """Locks what reopening these emails touches, by ascending id, until the transaction ends.

    Whoever reopens an email while holding the lock of one with a higher id has to hold both from the beginning.
    """
    cursor.execute(SQL["lock"], {"ids": sorted(email_ids)})


def reopen(cursor: Cursor, email_id: int) -> Reopening:
    """Ledger → scheduled, due now, for the recipients who could not be reached; their suppression is lifted.

    Message-ID, Date and key stay the same. The ledger keeps what it says of the first time.
    """
    cursor.execute(SQL["reopen"], {"id": email_id})
    [(answer,)] = cursor.fetchall()
    return Reopening(answer)


def kept_until(database: Database, email_id: int) -> datetime | None:
    """Until when (UTC) an undeliverable email can be reopened; None where it cannot."""
    for (until,) in database.execute(SQL["kept_until"], {"id": email_id}):
        return until if isinstance(until, datetime) else None
    return None


def forget(database: Database) -> int:
    """Removes what has been kept for its time, at most 1,000 emails; gives how many."""
    [(gone,)] = database.execute(SQL["forget"])
    return int(str(gone))
