"""What operators see and do: the one module behind the command and the web console.

Reading: lists, one item, one person, causes, what comes. What is read is frozen values; times are UTC. A member of
duepost_viewer may read all of it, and nothing that is secret: no endpoint's URL or key.
"""

from datetime import datetime

from models import finding
from models.database.connections import Database
from models.finding import (
    Action,
    Cause,
    Content,
    Count,
    Ending,
    Filter,
    Forecast,
    Found,
    Item,
    Kind,
    Page,
    Person,
    Place,
    Section,
    Stop,
    Try,
    User,
)
from models.words import Outcome, State

__all__ = [
    "Action", "Cause", "Content", "Count", "Ending", "Filter", "Forecast", "Found", "Item", "Kind", "Outcome", "Page",
    "Person", "Place", "Section", "State", "Stop", "Try", "User",
    "count_finished", "count_pending", "failures", "find_items", "forecast", "item", "journal", "kinds", "paused_kinds",
    "person", "stopped_routes",
]  # fmt: skip


def find_items(database: Database, wanted: Filter, after: Place | None = None, limit: int = 50) -> Page:
    """A page of what fits, emails and messages, pending ones and the ledger in one list.

    What waits for a person comes first, then what is pending by due time, then what is finished, the newest first. A
    page may be short, even empty, and still have a next one: the ledger was looked through up to `searched_back_to`.

    Args:
        database: where; a member of duepost_viewer may.
        wanted: what has to fit.
        after: where the last page ended (`Page.next`); None: from the beginning.
        limit: the number of rows that a page has at most.
    """
    return finding.find(database, wanted, after, limit)


def count_pending(database: Database, wanted: Filter = Filter()) -> Count:  # noqa: B008 - frozen
    """How many items that are not finished fit: exact up to 10,000, an estimate beyond."""
    return finding.count_pending(database, wanted)


def count_finished(database: Database) -> Count:
    """How many rows the ledger has, one for each recipient: an estimate, as the planner has it."""
    return finding.count_finished(database)


def item(database: Database, item_id: int) -> Item | None:
    """All that is known of one email or message: its content while it is not concluded, each attempt, how it ended."""
    return finding.item(database, item_id)


def person(
    database: Database, *, address: str | None = None, user: str | None = None, key: str | None = None, limit: int = 50
) -> Person:
    """Everything planned and past for an address, a user, or whom the item of a key goes to: one of the three."""
    return finding.person(database, address=address, user=user, key=key, limit=limit)


def failures(database: Database, since: datetime | None = None, limit: int = 50) -> tuple[Cause, ...]:
    """What keeps items now, and what did not arrive since then (a day ago by default), grouped by cause."""
    return finding.failures(database, since=since, limit=limit)


def forecast(database: Database, hours: int = 24) -> tuple[Forecast, ...]:
    """What falls due in each of the next hours, by kind."""
    return finding.forecast(database, hours)


def journal(
    database: Database, *, before: int | None = None, action: str | None = None, by: str | None = None, limit: int = 50
) -> tuple[Action, ...]:
    """What operators have done, the newest first; `before` is the id of the last one of the page before."""
    return finding.journal(database, before=before or 2**63 - 1, action=action, by=by, limit=limit)


def kinds(database: Database) -> tuple[Kind, ...]:
    """Kinds with a policy, and those of which something is pending or was concluded lately."""
    return finding.kinds(database)


def paused_kinds(database: Database) -> tuple[Stop, ...]:
    """Kinds that an operator has paused."""
    return finding.paused_kinds(database)


def stopped_routes(database: Database) -> tuple[Stop, ...]:
    """Routes that an operator has paused."""
    return finding.stopped_routes(database)
