"""How many emails a second leave by a route, or by it to a domain, and over how many connections, for all workers."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

from models.database.connections import Cursor, Database
from models.database.statements import statements
from models.items import Claimed

if TYPE_CHECKING:
    # A host's broker loads this module, and has no operators.
    from models.operations import Order

SQL = statements(__file__)

#: What stands for the whole route where a domain would.
WHOLE: Final = ""

#: What the reason of an email begins with that waits for its turn.
WAITS: Final = "rate: "

#: Seconds; no turn is further ahead: the pace may be another one by then, and urgent emails are not to wait for turns.
LONGEST_TURN: Final = 300.0

#: Items whose turns are moved in one transaction.
PAGE: Final = 5_000

#: Items that are read to count who waits; of each line of a route as many.
MOST_WAITING: Final = 100_000

#: Items of each line of a route that are counted to forecast; and where each one's address is to be read.
MOST_FORECAST, MOST_ADDRESSES = 200_000, 20_000

HOUR: Final = timedelta(hours=1)


class Limit(NamedTuple):
    """How much of a destination may be in use, by all workers together; None where it is not limited.

    Attributes:
        per_second: emails a second.
        places: how many emails may hold a place for that.
        seconds: for how long a place is held once its email has ended.
        connections: how many emails may be under way.
        because: the reply that it was learnt of; None where an operator has set it.
    """

    per_second: float | None
    places: int | None
    seconds: float
    connections: int | None
    because: str | None = None


#: What of a route is limited, by domain.
Limits = Mapping[str, Limit]

#: Nothing is.
NO_LIMITS: Final[Limits] = {}


class Want(NamedTuple):
    """A number of emails want a place of each of these domains, and some of those are urgent."""

    domains: tuple[str, ...]
    number: int
    urgent: int = 0


class Held(NamedTuple):
    """Places of a domain that a worker holds, and how many of those are for emails under way."""

    held: int
    speaking: int


@dataclass(frozen=True, slots=True)
class RateState:
    """What is known of a destination whose rate is limited. Times are UTC; None where there is none.

    Attributes:
        domain: the recipients'; empty for the whole route.
        per_second: what an operator allows; `connections` the same.
        in_force: emails a second that are allowed now.
        learnt: the same as it was learnt of the relay's replies.
        held: places in use; `speaking` of those for emails under way.
        turns_until: up to when emails that wait have turns.
        waiting: how many wait; of a whole route what is due by it.
        late_seconds: for how long the first of them has waited since its time; None where none waits.
    """

    route: str
    domain: str
    per_second: float | None
    connections: int | None
    set_at: datetime | None
    set_by: str | None
    reason: str | None
    in_force: float | None
    learnt: float | None
    learnt_at: datetime | None
    learnt_because: str | None
    held: int
    speaking: int
    turns_until: datetime | None
    waiting: int = 0
    late_seconds: float | None = None

    @property
    def current(self) -> float:
        """How many a second leave now, about: each place is held for a second, or for as long as one email takes."""
        return self.held * min(1.0, self.in_force) if self.in_force is not None else float(self.held)

    @property
    def seconds(self) -> float | None:
        """How long those that wait take, at least; None where only connections are limited."""
        return None if self.in_force is None else self.waiting / kept(self.in_force)


def kept(per_second: float) -> float:
    """How many a second leave at the most where that is allowed: places are whole."""
    return per_second if per_second < 1 else float(int(per_second))


def limits(database: Database, route: str) -> Limits:
    """What of a route is limited."""
    [(found,)] = database.execute(SQL["limits"], {"route": route})
    return read_limits(None if found is None else str(found))


def read_limits(found: str | None) -> Limits:
    """Limits as the database gives them in JSON; None where there are none."""
    if found is None:
        return NO_LIMITS
    return {
        each["domain"]: Limit(each["per_second"], each["places"], each["seconds"], each["connections"], each["because"])
        for each in json.loads(found)
    }


def take_places(
    database: Database, route: str, worker_id: int, held: Mapping[str, Held], wants: Sequence[Want]
) -> list[int]:
    """A worker says what it holds of each domain, and gets more: how many of each want. One transaction.

    Args:
        database: where.
        route: by which the emails leave.
        worker_id: whose places they are.
        held: of each domain that it holds or wants something of.
        wants: what it asks for.
    """
    domains = sorted(held)
    parameters = {
        "route": route,
        "worker_id": worker_id,
        "domains": domains,
        "held": [held[domain].held for domain in domains],
        "speaking": [held[domain].speaking for domain in domains],
        "wants": json.dumps([want._asdict() for want in wants]),
    }
    [(granted,)] = database.execute(SQL["take_places"], parameters)
    return [int(str(number)) for number in granted] if isinstance(granted, list) else []


def give_turns(
    database: Database, route: str, domains: Sequence[str], claimed: Sequence[Claimed], *, longest: float, why: str
) -> tuple[set[int], float]:
    """Sending → scheduled for claims of which nothing was sent: each is due at its turn. No attempt is counted.

    Args:
        database: where.
        route: by which they leave.
        domains: whose pace they wait for.
        claimed: they, in the order of their turns.
        longest: seconds; no turn is further ahead.
        why: what they wait for, in a line.

    Returns:
        the ids of those that it did that to, and for how many seconds turns are given already.
    """
    parameters = {
        "route": route,
        "domains": list(domains),
        "ids": [each.id for each in claimed],
        "claims": [each.claim for each in claimed],
        "longest": longest,
        "why": why,
    }
    rows = database.execute(SQL["give_turns"], parameters)
    return {int(str(item_id)) for item_id, _ in rows}, max((float(str(seconds)) for _, seconds in rows), default=0.0)


def follow_clock_back(database: Database, back: float) -> None:
    """The database's clock was set back by that many seconds: turns from before come as soon as they would have.

    An item is not due before the time that it is scheduled for. One transaction a page; what another one holds is left
    out, and is late by no more than it was already.
    """
    parameters = {"back": back, "longest": LONGEST_TURN, "page": PAGE}
    while len(database.execute(SQL["follow_clock_back"], parameters)) == PAGE:
        pass


class Learnt(NamedTuple):
    """What was learnt of a relay that has had too much at a domain.

    Attributes:
        per_second: how many emails it gets now.
        is_new: whether that is new; not where it happened a moment ago.
        domains: to how many domains of the route that happened lately.
    """

    per_second: float
    is_new: bool
    domains: int


def learn(cursor: Cursor, route: str, domain: str, *, seen: float, because: str) -> Learnt:
    """The relay has had too much of us at a domain.

    Args:
        cursor: of the caller's transaction, which holds the destination's row until it ends.
        route: by which the emails leave.
        domain: the recipients'.
        seen: how many a second it was sent lately, about.
        because: the reply's phase and codes.
    """
    cursor.execute(SQL["learn"], {"route": route, "domain": domain, "seen": seen, "because": because})
    [row] = cursor.fetchall()
    return Learnt(*row)


def set_rate(
    database: Database,
    order: "Order",
    *,
    route: str,
    domain: str | None,
    per_second: float | None,
    connections: int | None,
) -> str:
    """At most a number of emails in any second, and at the same time: `set`, `already` or `repeated`.

    Raises:
        psycopg2.Error: 22023 for what is no rate.
    """
    parameters = {
        **order.parameters(),
        "route": route,
        "domain": domain,
        "per_second": per_second,
        "connections": connections,
    }
    [(answer,)] = database.execute(SQL["set_rate"], parameters)
    return str(answer)


def remove_rate(database: Database, order: "Order", *, route: str, domain: str | None) -> str:
    """Neither an operator nor what was learnt limits it any more: `removed`, `not_found` or `repeated`."""
    parameters = {**order.parameters(), "route": route, "domain": domain}
    [(answer,)] = database.execute(SQL["remove_rate"], parameters)
    return str(answer)


def states(database: Database) -> list[RateState]:
    """All that is limited, for people: the default route first, the whole route before its domains."""
    # The statement's columns are the class's fields.
    found = [RateState(*row) for row in database.execute(SQL["states"])]  # type: ignore[arg-type]
    if not found:
        return []
    routes = [each.route for each in found if each.domain == WHOLE]
    waiting = {
        (route, domain): (int(str(number)), float(str(late)))
        for route, domain, number, late in database.execute(SQL["waiting"], {"most": MOST_WAITING, "routes": routes})
    }
    nobody: tuple[int, float | None] = (0, None)
    return [
        replace(each, waiting=number, late_seconds=late)
        for each in found
        for number, late in [waiting.get((each.route, each.domain), nobody)]
    ]


@dataclass(frozen=True, slots=True)
class Jam:
    """Hours in which more falls due than a rate lets leave in them. Times are UTC.

    Attributes:
        route: whose rate it is; `domain` is empty for the whole route.
        per_second: what an operator allows.
        begins: when the first of them falls due.
        items: how many fall due; `is_least`: no more were counted, there may be more.
        ends: when the last of them leaves, at the earliest.
    """

    route: str
    domain: str
    per_second: float
    begins: datetime
    items: int
    is_least: bool
    ends: datetime


def jams(database: Database, hours: int) -> list[Jam]:
    """Where the rates that operators have set are too small for what falls due in the next hours, in order.

    What was learnt of replies is left out: it is over within minutes.
    """
    allowed = {
        (each.route, each.domain): each.per_second for each in states(database) if each.per_second is not None
    }  # fmt: skip
    if not allowed:
        return []
    parameters = {
        "routes": [route for route, _ in allowed],
        "domains": [domain for _, domain in allowed],
        "hours": hours,
        "most": MOST_FORECAST,
        "most_addresses": MOST_ADDRESSES,
    }
    rows = database.execute(SQL["due_by_hour"], parameters)
    found: list[Jam] = []
    for (route, domain), each in groupby(rows, key=lambda row: (str(row[0]), str(row[1]))):
        due = [(_hour(hour), int(str(number)), int(str(of))) for _, _, hour, number, of in each]
        is_least = sum(of for _, _, of in due) >= (MOST_ADDRESSES if domain else MOST_FORECAST)
        for begins, items, ends in _jammed(due, kept(allowed[route, domain]), datetime.now(UTC)):
            found.append(Jam(route, domain, allowed[route, domain], begins, items, is_least, ends))
    return found


def _hour(value: object) -> datetime:
    if not isinstance(value, datetime):
        raise TypeError(f"{value!r} is no time")
    return value.astimezone(UTC)


def _jammed(
    due: Sequence[tuple[datetime, int, int]], per_second: float, now: datetime
) -> Iterator[tuple[datetime, int, datetime]]:
    """From when on, how many items and until when it takes, for each run of hours that one of them outlasts."""
    begins = busy_until = now
    items, is_jammed = 0, False
    for hour, number, _ in due:
        if busy_until <= hour:
            if is_jammed:
                yield begins, items, busy_until
            begins = busy_until = max(hour, now)
            items, is_jammed = 0, False
        items += number
        busy_until += timedelta(seconds=number / per_second)
        is_jammed = is_jammed or busy_until > hour + HOUR
    if is_jammed:
        yield begins, items, busy_until
