"""What recipients decide by a link in an email, and the secret that links and return paths are made with."""

from models.database.connections import Database
from models.database.statements import statements

SQL = statements(__file__)


def change(
    database: Database, *, kind: str, address: str, user_id: str | None, email_id: int, is_on: bool
) -> tuple[str, int]:
    """Unsubscribes an address from a kind, or takes that back; in one transaction with what follows.

    Unsubscribing clears what is scheduled of the kind, to the address and to the user; what is being sent goes on.

    Args:
        database: where.
        kind: the kind.
        address: the recipient's.
        user_id: whose it is, where a user was named.
        email_id: the email that the link stands in: for the journal.
        is_on: whether to unsubscribe; else to subscribe again.

    Returns:
        `unsubscribed`, `subscribed` or `already`, and how many emails are cleared.
    """
    parameters = {"kind": kind, "address": address, "user_id": user_id, "email_id": email_id, "is_on": is_on}
    [(receipt, cleared)] = database.execute(SQL["change"], parameters)
    return str(receipt), int(str(cleared))


def secret(database: Database) -> bytes:
    """The installation's secret for tokens: 32 bytes, made once with the schema."""
    [(value,)] = database.execute(SQL["secret"])
    return bytes(value)  # type: ignore[call-overload,no-any-return]  # bytea is a memoryview


def unsubscribable(database: Database) -> list[str]:
    """The kinds whose emails carry a link to unsubscribe."""
    return [str(kind) for (kind,) in database.execute(SQL["unsubscribable"])]
