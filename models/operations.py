"""What operators do: a row of duepost.operator_action for each action, then what it does to items, in batches."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from models import finding
from models.database.connections import Cursor, Database
from models.database.statements import statements
from models.finding import Action, Filter
from models.words import Priority

SQL = statements(__file__)

#: Items that are acted on in one transaction: their rows are locked until its end.
BATCH = 100

#: Items whose ids are read at once.
PAGE = 5_000


class Doing(StrEnum):
    """What can be done to items."""

    CLEAR = "clear"
    RESCHEDULE = "reschedule"
    RETRY = "retry"
    RESOLVE_SENT = "resolve_sent"
    RESOLVE_RESEND = "resolve_resend"
    RESOLVE_DROP = "resolve_drop"
    REOPEN = "reopen"


@dataclass(frozen=True, slots=True)
class Order:
    """Who acts, and why.

    Attributes:
        by: a person's name, as it is known where the order is given.
        via: `command` or `console`.
        reason: why; None where nothing was said.
        token: of whoever may send an order twice: the second one changes nothing, and is answered as the first one was.
    """

    by: str
    via: str
    reason: str | None = None
    token: str | None = None

    def parameters(self) -> dict[str, object]:
        """As the statements have it."""
        return {"by": self.by, "via": self.via, "reason": self.reason, "token": self.token}


def begin(database: Database, action: str, order: Order, asked: Mapping[str, object]) -> tuple[int, bool]:
    """Notes that an operator acts.

    Returns:
        the action's id, and whether it is new: not where its token is known.
    """
    parameters = {**order.parameters(), "action": action, "asked": json.dumps(asked)}
    [(action_id, is_new)] = database.execute(SQL["begin"], parameters)
    return int(str(action_id)), is_new is True


def note(cursor: Cursor, action: str, order: Order, asked: Mapping[str, object]) -> bool:
    """Notes, in the caller's transaction, what an operator has done at once; says whether the order's token is new."""
    cursor.execute(SQL["begin"], {**order.parameters(), "action": action, "asked": json.dumps(asked)})
    [(action_id, is_new)] = cursor.fetchall()
    if is_new:
        cursor.execute(SQL["end"], {"action_id": action_id, "gone": 0})
    return is_new is True


def act(database: Database, action_id: int, ids: Sequence[int]) -> dict[int, str]:
    """Does an action to items (`BATCH` at the most), locked one by one by ascending id, in a transaction of its own.

    Returns:
        for each `done`, or why nothing was done to it.
    """
    rows = database.execute(SQL["act"], {"action_id": action_id, "ids": list(ids)})
    return {int(str(item_id)): str(receipt) for item_id, receipt in rows}


def end(database: Database, action_id: int, gone: int = 0) -> None:
    """An action is over; `gone` items fitted when somebody looked, and fitted no more when it began."""
    database.execute(SQL["end"], {"action_id": action_id, "gone": gone})


def recorded(database: Database, action_id: int) -> Action:
    """An action as it stands."""
    [row] = database.execute(SQL["recorded"], {"action_id": action_id})
    return Action(*row)  # type: ignore[arg-type]  # the statement's columns are the fields


def set_pause(database: Database, scope: str, name: str | None, *, is_on: bool, order: Order) -> str:
    """Pauses everything (`all`), a `kind` or a `route`, or lets it go on.

    Returns:
        `paused`, `resumed`, `already` (it was so), or `repeated` (the token is known).
    """
    parameters = {**order.parameters(), "scope": scope, "name": name, "is_on": is_on}
    [(answer,)] = database.execute(SQL["set_pause"], parameters)
    if not is_on:
        unpark(database)
    return str(answer)


def unpark(database: Database) -> None:
    """Moves what fell due of kinds that are not paused any more back to its routes, in batches of 1,000."""
    while database.execute(SQL["unpark"]) != [(0,)]:
        pass


def set_priority(database: Database, kind: str, priority: Priority, order: Order) -> str:
    """Sets a kind's priority, for what is scheduled from now on.

    Returns:
        `set`, `already` (it was so), or `repeated` (the token is known).
    """
    parameters = {**order.parameters(), "kind": kind, "priority": priority.word}
    [(answer,)] = database.execute(SQL["set_priority"], parameters)
    return str(answer)


def follow_priority(database: Database, kind: str, tell: Callable[[int], None]) -> int:
    """Gives what is pending of a kind its priority, in pages, each in a transaction of its own; gives how many it was.

    Args:
        database: where.
        kind: the kind.
        tell: is told after each page how many it was until now.
    """
    moved, after_id = 0, 0
    while True:
        [(last_id, number)] = database.execute(SQL["follow_priority"], {"kind": kind, "after_id": after_id})
        if last_id is None:
            return moved
        moved, after_id = moved + int(str(number)), int(str(last_id))
        tell(moved)


def request_probe(database: Database, route: str | None, order: Order) -> int:
    """The next probe of an open circuit is due at once, of a route or of all; gives of how many."""
    [(number,)] = database.execute(SQL["request_probe"], {**order.parameters(), "route": route})
    return int(str(number))


def reopenable(database: Database, wanted: Filter) -> list[int]:
    """What is kept so that it can be reopened, by ascending id."""
    found: list[int] = []
    while True:
        parameters = {
            "after_id": found[-1] if found else 0, "ids": list(wanted.ids) or None, "kind": wanted.kind,
            "channel": wanted.channel, "since": wanted.since, "until": wanted.until, "reply": wanted.reply,
            "route": wanted.route, "user": wanted.user, "address": wanted.address, "limit": PAGE,
        }  # fmt: skip
        page = [int(str(item_id)) for (item_id,) in database.execute(SQL["reopenable"], parameters)]
        found += page
        if len(page) < PAGE:
            return found


def pending(database: Database, wanted: Filter, upto: int) -> list[int]:
    """What is not finished and fits, by ascending id; none with an id above `upto`."""
    return sorted(finding.all_pending(database, wanted, PAGE, upto))
