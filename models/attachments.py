"""Attachments: read when an email is composed, and dropped after the last email that needs them."""

from collections.abc import Collection, Sequence

from models.database.connections import Database
from models.database.statements import statements

SQL = statements(__file__)


def contents(database: Database, hashes: Collection[str]) -> dict[str, bytes]:
    """Reads contents.

    Args:
        database: where.
        hashes: SHA-256 of each, in hexadecimal.

    Returns:
        each that is stored, by its hash: in base64, in lines of 76 characters that are ended by CRLF.
    """
    rows = database.execute(SQL["contents"], {"hashes": list(hashes)})
    return {str(digest): _lines(str(text)) for digest, text in rows}


def drop(database: Database) -> int:
    """Deletes contents that no email needs, and has not since an earlier call; gives how much there was to do."""
    [(number,)] = database.execute(SQL["drop"])
    return int(str(number))


def pin(database: Database, email_id: int, hashes: Sequence[str]) -> list[str]:
    """Remembers what the files held that an email names by URL.

    Args:
        database: where.
        email_id: an email that this worker has claimed.
        hashes: SHA-256 of each, in hexadecimal, in the order of the attachments.

    Returns:
        what has to go out: the same, or the hashes of what those got who may have the email already.
    """
    [(pinned,)] = database.execute(SQL["pin"], {"id": email_id, "hashes": list(hashes)})
    return [str(each) for each in pinned]  # type: ignore[attr-defined]


def _lines(text: str) -> bytes:
    lines = text.encode("ascii").replace(b"\n", b"\r\n")
    return lines + b"\r\n" if lines else lines
