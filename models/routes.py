"""What workers share about a route, known by its name: connections, pace, and what may go out behind a dot."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from models.database.connections import Cursor, Database
from models.database.statements import statements

SQL = statements(__file__)

#: Days for which nothing goes out behind a dot, once a relay has lost it there.
AHEAD_OFF_DAYS = 30

#: Seconds after a pause in which each worker goes on over one connection.
SLOW_FOR = 60.0


class Known(NamedTuple):
    """What a worker needs to know of a route.

    Attributes:
        share: how many connections this worker may have; None while the relay has shown no limit.
        is_crowded: there are fewer places than workers that want some.
        goes_ahead: whether an envelope may go out behind a dot.
        is_slow: the relay had too much of us a moment ago.
        pause: seconds until it takes more; 0 while it does.
        circuit_open: it is to be left alone, but for probes.
        workers: how many workers want connections, this one included.
        limits: what of it is limited, as `models.rates` reads it; None where nothing is.
    """

    share: int | None
    is_crowded: bool
    goes_ahead: bool
    is_slow: bool
    pause: float
    circuit_open: bool
    workers: int
    limits: str | None


class Way(NamedTuple):
    """How emails of a route leave now.

    Attributes:
        route: the route's name.
        way: the route that they leave by: itself or its fallback; None where neither takes any.
        is_probe_due: the circuit is open, and it is time to look whether the relay takes mail again.
        is_claimed_directly: the route's own senders claim what is due by themselves: messages would be in their way.
    """

    route: str
    way: str | None
    is_probe_due: bool
    is_claimed_directly: bool = False


@dataclass(frozen=True, slots=True)
class RouteState:
    """What is known of a route. Times are UTC; reasons are phases and codes; None where there is none.

    Attributes:
        name: its name.
        target: `host:port`, as a worker has registered it last.
        fallback: by which route its emails leave while its circuit is open.
        circuit_open: nothing is sent through it but probes.
        workers: how many living workers serve it.
        in_use: how many connections those have.
        allowed: how many the relay has shown to allow.
    """

    name: str
    target: str | None
    fallback: str | None
    circuit_open: bool
    circuit_opened_at: datetime | None
    circuit_reason: str | None
    probe_at: datetime | None
    workers: int
    in_use: int
    allowed: int | None
    allowed_at: datetime | None
    allowed_because: str | None
    paused_until: datetime | None
    paused_because: str | None
    ahead_off_at: datetime | None
    ahead_off_because: str | None


def register(database: Database, route: str, worker_id: int, *, target: str, fallback: str | None) -> None:
    """A worker says that it serves a route. With another target it is another relay: what was learnt is forgotten.

    Args:
        database: where.
        route: its name.
        worker_id: the worker.
        target: `host:port`.
        fallback: the route by which its emails leave while its circuit is open.
    """
    parameters = {"route": route, "worker_id": worker_id, "target": target, "fallback": fallback}
    database.execute(SQL["register"], parameters)


def ways(database: Database) -> list[Way]:
    """For each route the way by which its emails leave now; none while Duepost is paused."""
    return [
        Way(str(route), None if way is None else str(way), probe_is_due is True, is_claimed_directly is True)
        for route, way, probe_is_due, is_claimed_directly in database.execute(SQL["ways"])
    ]


def end_direct_claims(database: Database, route: str) -> None:
    """A route's senders no longer claim what is due by themselves: its line is the scheduler's again."""
    database.execute(SQL["end_direct_claims"], {"route": route})


def take_left_lines(database: Database, routes: Sequence[str]) -> list[str]:
    """Of these routes those whose long line no sender goes on with, whatever has become of it; each is given once."""
    return [str(name) for (name,) in database.execute(SQL["take_left_lines"], {"routes": list(routes)})]


def states(database: Database) -> list[RouteState]:
    """What is known of each relay's route, for people: the default one first."""
    # The statement's columns are the class's fields.
    return [RouteState(*row) for row in database.execute(SQL["states"], {"days": AHEAD_OFF_DAYS})]  # type: ignore[arg-type]


def take_connection(database: Database, route: str, worker_id: int, opened: int) -> bool:
    """Whether a worker that has `opened` connections may open one more; that one counts from now on."""
    return database.execute(SQL["take_connection"], {"route": route, "worker_id": worker_id, "opened": opened}) == [
        (True,)
    ]


def refuse_connection(
    database: Database,
    route: str,
    worker_id: int,
    *,
    opened: int,
    seconds: float,
    is_named: bool,
    answered_ago: float | None,
    because: str,
) -> str:
    """One more connection was refused to a worker that has `opened`.

    Args:
        database: where.
        route: its name.
        worker_id: whose it was.
        opened: how many others it has.
        seconds: for how long it has been refused further ones.
        is_named: the relay says that there are too many.
        answered_ago: seconds since one of the worker's others was answered; None where none was.
        because: phase and codes.

    Returns:
        `limit`: they are as many as it allows, which is known from now on; `wait`: that is not clear yet; `down`:
        there are no others, it takes none at all.
    """
    [(what,)] = database.execute(
        SQL["refuse_connection"],
        {
            "route": route,
            "worker_id": worker_id,
            "opened": opened,
            "seconds": seconds,
            "is_named": is_named,
            "answered_ago": answered_ago,
            "because": because,
        },
    )
    return str(what)


def report_connections(
    database: Database, route: str, worker_id: int, connections: int, *, is_wanted: bool, answered_ago: float | None
) -> None:
    """A worker says how many connections it has, whether it wants some, and how many seconds ago one was answered."""
    database.execute(
        SQL["report_connections"],
        {
            "route": route,
            "worker_id": worker_id,
            "connections": connections,
            "is_wanted": is_wanted,
            "answered_ago": answered_ago,
        },
    )


def look(database: Database, route: str, worker_id: int) -> Known | None:
    """What is known of a route; None where no worker has registered it yet."""
    rows = database.execute(
        SQL["look"], {"route": route, "worker_id": worker_id, "days": AHEAD_OFF_DAYS, "slow_for": SLOW_FOR}
    )
    return Known(*rows[0]) if rows else None  # type: ignore[arg-type]  # the statement's columns are the fields


def stop_going_ahead(database: Database, route: str, because: str) -> bool:
    """Nothing goes out behind a dot to this relay any more; says whether it did until now."""
    return bool(database.execute(SQL["stop_going_ahead"], {"route": route, "because": because, "days": AHEAD_OFF_DAYS}))


def pause(cursor: Cursor, route: str, *, because: str, seconds: float) -> float | None:
    """It has asked to be left alone: nothing is claimed for these seconds.

    Returns:
        the seconds; None where it pauses for longer already.
    """
    cursor.execute(SQL["pause"], {"route": route, "because": because, "seconds": seconds})
    row = cursor.fetchone()
    return None if row is None or row[0] is None else float(row[0])


def slow_down(cursor: Cursor, route: str, *, because: str, jitter: float) -> float | None:
    """The relay has had too much of us: nothing is claimed for a while, twice as long as last time.

    Args:
        cursor: of the caller's transaction, which holds the relay's row until it ends.
        route: its name.
        because: phase and codes.
        jitter: a factor around 1.

    Returns:
        seconds until it goes on; None where it pauses already.
    """
    cursor.execute(SQL["slow_down"], {"route": route, "because": because, "jitter": jitter})
    [seconds] = cursor.fetchone() or (None,)
    return None if seconds is None else float(seconds)
