"""What was sent, of kinds whose content is kept for a while (`duepost.kind.keep_content`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from psycopg2 import Binary

from models.database.connections import Cursor, Database
from models.database.statements import statements
from models.items import Claimed

SQL = statements(__file__)

#: Copies of one email that are listed.
MOST_LISTED = 100


class Copy(NamedTuple):
    """What one recipient was sent.

    Attributes:
        user_id: the user; None where the email goes to an address.
        address: as the relay was told.
        content: the message, headers and body.
    """

    user_id: str | None
    address: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Kept:
    """That a copy is kept, and until when. Times are UTC."""

    user_id: str | None
    address: str
    sent_at: datetime
    kept_until: datetime


def kinds(database: Database) -> frozenset[str]:
    """The kinds whose content is kept."""
    return frozenset(str(kind) for (kind,) in database.execute(SQL["kinds"]))


def keep(cursor: Cursor, email: Claimed, copies: Sequence[Copy]) -> None:
    """Keeps what was sent, for as long as the email's kind says; before its row goes.

    Args:
        cursor: of the transaction that concludes it, or notes the result of one recipient.
        email: the claimed email; the caller holds its row's lock.
        copies: what was sent; where there is none, nothing is asked.
    """
    if copies:
        parameters = {
            "id": email.id,
            "claim": email.claim,
            "users": [each.user_id for each in copies],
            "addresses": [each.address for each in copies],
            "contents": [Binary(each.content) for each in copies],
        }
        cursor.execute(SQL["keep"], parameters)


def forget(database: Database) -> int:
    """Removes what has been kept for its time, at most 1,000 copies; gives how many."""
    [(gone,)] = database.execute(SQL["forget"])
    return int(str(gone))


def copies(database: Database, email_id: int, limit: int = MOST_LISTED) -> tuple[Kept, ...]:
    """To whom an email was sent of which that is kept, without what it said."""
    rows = database.execute(SQL["copies"], {"id": email_id, "limit": limit})
    return tuple(Kept(*row) for row in rows)  # type: ignore[arg-type]  # the statement's columns are the fields


def content(database: Database, email_id: int, user_id: str | None) -> bytes | None:
    """What was sent to one of them, None where it is not kept. Not for members of duepost_viewer."""
    for (found,) in database.execute(SQL["content"], {"id": email_id, "user": user_id or ""}):
        if isinstance(found, bytes | memoryview):
            return bytes(found)
    return None


def of_person(database: Database, *, address: str | None, user: str | None) -> list[dict[str, object]]:
    """What is kept of what was sent to a mailbox or to a user, content included, in PostgreSQL's form `escape`."""
    rows = database.execute(SQL["of_person"], {"address": address, "user": user})
    return [
        {"id": email_id, "sent_at": sent_at, "kept_until": kept_until, "content": content}
        for email_id, sent_at, kept_until, content in rows
    ]
