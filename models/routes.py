"""What workers share about a relay, known by `host:port`: connections, pace, and what may go out behind a dot."""

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
    """What a worker needs to know of a relay.

    Attributes:
        share: how many connections this worker may have; None while the relay has shown no limit.
        is_crowded: there are fewer places than workers that want some.
        goes_ahead: whether an envelope may go out behind a dot.
        is_slow: the relay had too much of us a moment ago.
        pause: seconds until it takes more; 0 while it does.
        circuit_open: it is to be left alone, but for probes.
    """

    share: int | None
    is_crowded: bool
    goes_ahead: bool
    is_slow: bool
    pause: float
    circuit_open: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """What a relay has shown of itself. Times are UTC; None where it has not; reasons are phases and codes."""

    route: str
    connections: int | None
    connections_at: datetime | None
    connections_because: str | None
    paused_until: datetime | None
    paused_because: str | None
    ahead_off_at: datetime | None
    ahead_off_because: str | None


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
        route: the relay.
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
    """What is known of a relay; None where no worker has spoken to it yet."""
    rows = database.execute(
        SQL["look"], {"route": route, "worker_id": worker_id, "days": AHEAD_OFF_DAYS, "slow_for": SLOW_FOR}
    )
    return Known(*rows[0]) if rows else None  # type: ignore[arg-type]  # the statement's columns are the fields


def stop_going_ahead(database: Database, route: str, because: str) -> bool:
    """Nothing goes out behind a dot to this relay any more; says whether it did until now."""
    return bool(database.execute(SQL["stop_going_ahead"], {"route": route, "because": because, "days": AHEAD_OFF_DAYS}))


def slow_down(cursor: Cursor, route: str, *, because: str, jitter: float) -> float | None:
    """The relay has had too much of us: nothing is claimed for a while, twice as long as last time.

    Args:
        cursor: of the caller's transaction, which holds the relay's row until it ends.
        route: the relay.
        because: phase and codes.
        jitter: a factor around 1.

    Returns:
        seconds until it goes on; None where it pauses already.
    """
    cursor.execute(SQL["slow_down"], {"route": route, "because": because, "jitter": jitter})
    [seconds] = cursor.fetchone() or (None,)
    return None if seconds is None else float(seconds)


def known(database: Database) -> list[Shown]:
    """What relays have shown of themselves, for people."""
    return [Shown(*row) for row in database.execute(SQL["known"], {"days": AHEAD_OFF_DAYS})]  # type: ignore[arg-type]
