"""What the console serves for Prometheus: a few numbers, each from a bounded statement that an index serves."""

from dataclasses import dataclass

from models import rates
from models.database.connections import Database
from models.database.statements import statements
from models.rates import RateState

SQL = statements(__file__)

#: Rows that are counted at the most: a number that is this one means that, or more.
MOST_COUNTED = 1_000_000

#: Routes that are told at the most.
MOST_ROUTES = 100


@dataclass(frozen=True, slots=True)
class Gauges:
    """How it stands.

    Attributes:
        pending: how many items are not finished, by channel and state.
        oldest_due: seconds for which the oldest due item has waited for a worker, by channel; 0 where none does.
        circuits: whether a route's circuit is open, by name.
        workers: how many worker processes are alive.
        last_tick: seconds since the scheduler's last pass; None where there was none yet.
        dead_letters: how many of the broker's messages failed for good.
        is_paused: whether an operator has paused everything.
        came_back: bounces and complaints of the last day, by where they came in and what followed.
        rates: what is limited of routes and domains.
    """

    pending: tuple[tuple[str, str, int], ...]
    oldest_due: tuple[tuple[str, float], ...]
    circuits: tuple[tuple[str, bool], ...]
    workers: int
    last_tick: float | None
    dead_letters: int
    is_paused: bool
    came_back: tuple[tuple[str, str, int], ...] = ()
    rates: tuple[RateState, ...] = ()


def gauges(database: Database) -> Gauges:
    """How it stands now; a member of duepost_viewer may ask."""
    pending = database.execute(SQL["pending"], {"most": MOST_COUNTED})
    oldest = database.execute(SQL["oldest_due"], {})
    circuits = database.execute(SQL["circuits"], {"most": MOST_ROUTES})
    came_back = database.execute(SQL["came_back"], {"most": MOST_COUNTED})
    [(workers, last_tick, dead_letters, is_paused)] = database.execute(SQL["alive"], {"most": MOST_COUNTED})
    return Gauges(
        pending=tuple((str(channel), str(state), int(str(count))) for channel, state, count in pending),
        oldest_due=tuple((str(channel), float(str(seconds))) for channel, seconds in oldest),
        circuits=tuple((str(name), bool(is_open)) for name, is_open in circuits),
        workers=int(str(workers)),
        last_tick=None if last_tick is None else float(str(last_tick)),
        dead_letters=int(str(dead_letters)),
        is_paused=bool(is_paused),
        came_back=tuple((str(source), str(effect), int(str(count))) for source, effect, count in came_back),
        rates=tuple(rates.states(database)),
    )
