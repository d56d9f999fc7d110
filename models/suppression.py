"""Who gets nothing: of all emails or of a kind, why, and until when."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from models.database.connections import Database
from models.database.statements import statements

SQL = statements(__file__)

#: Suppressions that are stored in one transaction, and read at once.
BATCH = 1_000

#: What `take_in` answers for one that is stored, and for one that was there.
STORED, ALREADY = "suppressed", "already"


@dataclass(frozen=True, slots=True)
class Suppression:
    """An address that gets nothing; times are UTC.

    Attributes:
        id: its number.
        address: the mailbox, in its one spelling.
        kind: the kind that it is about; None: all emails.
        source: `relay` (it called the address dead), `bounce`, `complaint`, `unsubscribe`, `operator` or `import`.
        reason: what somebody said.
        until: when it ends; None: not by itself.
        suppressed_at: since when.
        enhanced_code: the relay's, if it was one (RFC 3463).
        reply: the relay's.
    """

    id: int
    address: str
    kind: str | None
    source: str
    reason: str | None
    until: datetime | None
    suppressed_at: datetime
    enhanced_code: str | None
    reply: str | None


@dataclass(frozen=True, slots=True)
class Scopes:
    """How many suppressions hold now: of all emails, and of one kind each."""

    of_all: int
    of_kinds: int

    @property
    def number(self) -> int:
        """All of them."""
        return self.of_all + self.of_kinds


def suppress(
    database: Database,
    order: Mapping[str, object],
    address: str,
    *,
    kind: str | None = None,
    until: datetime | None = None,
) -> str:
    """Nothing goes to an address any more, of all emails or of a kind; the order's reason is kept with it.

    Args:
        database: where.
        order: who orders it, and why: an order's `parameters()`.
        address: the address, however it is spelled.
        kind: the kind; None: all emails.
        until: when it ends; None: not by itself.

    Returns:
        `suppressed`, `changed` (its reason or end was another), `already`, or `repeated` (the order's token is known).
    """
    parameters = {**order, "address": address, "kind": kind, "until": until}
    [(answer,)] = database.execute(SQL["suppress"], parameters)
    return str(answer)


def unsuppress(database: Database, order: Mapping[str, object], address: str, *, kind: str | None = None) -> str:
    """Lifts the suppression of an address: that of all emails, or of a kind; arguments as above.

    Returns:
        `lifted`, `not_suppressed`, or `repeated` (the order's token is known).
    """
    [(answer,)] = database.execute(SQL["unsuppress"], {**order, "address": address, "kind": kind})
    return str(answer)


def take_in(database: Database, action_id: int, rows: Sequence[Mapping[str, str | None]]) -> dict[int, str]:
    """Stores suppressions (`BATCH` at the most) in a transaction of its own, for an action `suppress`.

    Args:
        database: where.
        action_id: the action's number.
        rows: each with `address`, and what else of `kind`, `reason`, `source`, `until` and `suppressed_at` there is.

    Returns:
        for each, by its place: `STORED`, `ALREADY`, or what is wrong with it.
    """
    found = database.execute(SQL["take_in"], {"action_id": action_id, "suppressions": json.dumps(list(rows))})
    return {int(str(place)): str(receipt) for place, receipt in found}


def of_addresses(database: Database, addresses: Sequence[str]) -> tuple[Suppression, ...]:
    """The suppressions of these addresses that hold now."""
    rows = database.execute(SQL["of_addresses"], {"addresses": list(addresses)}) if addresses else []
    return tuple(Suppression(*row) for row in rows)  # type: ignore[arg-type]  # the statement's columns are the fields


def newest(database: Database, after: tuple[datetime, int] | None, limit: int) -> list[Suppression]:
    """A page of those that hold now, the newest first; `after` is the moment and the id of the last one before."""
    at, last_id = after or (None, None)
    rows = database.execute(SQL["newest"], {"at": at, "id": last_id, "limit": limit})
    return [Suppression(*row) for row in rows]  # type: ignore[arg-type]  # as above


def all_in_order(database: Database) -> Iterator[Suppression]:
    """All that hold now, in the order in which they were stored; read a page at a time."""
    last_id = 0
    while rows := database.execute(SQL["in_order"], {"after_id": last_id, "limit": BATCH}):
        for row in rows:
            found = Suppression(*row)  # type: ignore[arg-type]  # as above
            yield found
            last_id = found.id


def one(database: Database, suppression_id: int) -> Suppression | None:
    """One by its number."""
    rows = database.execute(SQL["one"], {"id": suppression_id})
    return Suppression(*rows[0]) if rows else None  # type: ignore[arg-type]  # as above


def number(database: Database) -> Scopes:
    """How many hold now."""
    [(of_all, of_kinds)] = database.execute(SQL["number"])
    return Scopes(int(str(of_all)), int(str(of_kinds)))
