"""Attachments: read when an email is composed, and dropped after the last email that needs them."""

from collections.abc import Collection

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


def _lines(text: str) -> bytes:
    lines = text.encode("ascii").replace(b"\n", b"\r\n")
    return lines + b"\r\n" if lines else lines
