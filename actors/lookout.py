"""Looks for what has fallen due, and hands it to this process's own sender: no tick, pass or stored message in between.

For an email that is due now while there is little to do. Where there is a line, it asks for a pass of the scheduler,
which knows who goes first; and whatever it leaves is found by a pass. That one it does itself where each thread of the
worker waits for a relay. Where something carries messages beside the table, it hands nothing over: what it finds is
enqueued at once, for that to carry.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, Protocol

from actors.delivery.dispatcher import failure_of
from actors.delivery.due_line import DueLine
from actors.delivery.fairness import TokenBuckets
from actors.queue.broker import BrokerUnreachable, PostgresBroker
from actors.sender import actor_of, message_for, queue_of
from actors.tick import QUEUE as SCHEDULERS_QUEUE
from actors.tick import SCHEDULER, tick
from models import emails, routes, workers
from models.database.connections import Database
from models.database.full_scan_throttle import FullScanThrottle
from models.errors import DatabaseUnreachable
from models.items import is_endpoint
from models.words import Priority

logger = logging.getLogger(__name__)

#: Seconds between two looks of all workers together: while there is something to be found, and while there is not.
SHORTEST_PAUSE: Final = 0.01
LONGEST_PAUSE: Final = 0.05

#: Seconds for which the pause stays short after something was found; each is one of several workers, and finds a share.
STAYS_SHORT_FOR: Final = 0.25

#: The most that one worker's looks are apart, however many others look, in seconds.
FARTHEST_APART: Final = 1.0

#: The share by which a pause is shortened or lengthened, so that workers do not look in step.
JITTER: Final = 0.25

#: Seconds between two counts of the workers, and between two looks for a long line that nobody goes on with.
COUNT_INTERVAL: Final = 5.0

#: Seconds between two looks of all workers together at the beginnings of the lines.
LINES_INTERVAL: Final = 0.5

#: Seconds between two looks for the newest beside a long line, and for what is urgent where messages wait already.
NEWEST_INTERVAL: Final = 0.1

#: How many that have fallen due at once are a flood: of what is more, each kind's token bucket says what goes ahead.
FLOOD: Final = 32

#: How many of the newest are looked at in a flood.
NEWEST: Final = 100
#: How many of the newest are looked at for kinds that a flood of another one hides, and how often, in seconds: it takes
#: some milliseconds.
DEPTH: Final = 10_000
DEPTH_INTERVAL: Final = 1.0

#: Seconds for which an email is not handed over once more: longer than `duepost.due_now` gives it.
REMEMBERED: Final = 2.0

#: Seconds until the next look where the database is away, or refuses it.
AWAY_PAUSE: Final = 0.5
REFUSED_PAUSE: Final = 5.0


class Served(NamedTuple):
    """A route that this process serves; all endpoints together count as one.

    Attributes:
        name: its name.
        connections: how many this process may have at the most: no more is handed over at once.
        has_line: whether messages wait beside those in a worker's memory. Never waits.
        due_line: what its sender claims without messages; None where it claims nothing so.
    """

    name: str
    connections: int
    has_line: Callable[[], bool]
    due_line: DueLine | None = None

    @property
    def is_claimed_directly(self) -> bool:
        """Whether its sender goes through a long line just now."""
        return self.due_line is not None and self.due_line.is_long


@dataclass
class Pace:
    """How long to wait between two looks, in seconds; knows no clock of its own.

    Attributes:
        workers: how many look. The more, the rarer each: together they look as often as one would alone.
    """

    workers: int = 1
    _pause: float = LONGEST_PAUSE
    _short_until: float = -float("inf")

    def after(self, now: float, *, found: bool) -> float:
        """Seconds until the next look, after one at `now` that has found something, or nothing."""
        if found:
            self._pause, self._short_until = SHORTEST_PAUSE, now + STAYS_SHORT_FOR * self.workers
        elif now >= self._short_until:
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return min(self._pause * self.workers, FARTHEST_APART)


class Enqueuing(Protocol):
    """What the scheduler does for it."""

    def enqueue_due_emails(self) -> None:
        """One pass."""

    def enqueue_ahead(self, due: Sequence[tuple[int, Priority]], route: str) -> None:
        """Enqueues emails that have just fallen due, ahead of what is late. One that cannot be is left to a pass."""


class Lookout:
    """A thread that looks for what has fallen due.

    Args:
        database: where the emails are.
        broker: whose worker this is.
        routes: those that this process serves.
        scheduler: does passes, and enqueues what is to be carried.
        tidy: closes what has been idle for too long; called every few seconds.
        return_places: tells the database which places of endpoints are free; called at each look.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        database: Database,
        broker: PostgresBroker,
        routes: Sequence[Served],
        scheduler: Enqueuing,
        tidy: Callable[[], None],
        return_places: Callable[[], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._broker = broker
        self._routes = {each.name: each for each in routes}
        self._scheduler = scheduler
        self._tidy = tidy
        self._return_places = return_places
        self._clock = clock
        self._pace = Pace()
        #: By email, when it was handed over.
        self._handed_over: dict[int, float] = {}
        #: By route, when the newest are taken next beside a long line.
        self._takes_newest_at: dict[str, float] = {}
        self._looks_deep_at: dict[str, float] = {}
        #: When what is urgent is looked for next beside lines.
        self._takes_urgent_at = -float("inf")
        self._token_buckets = TokenBuckets()
        #: When the beginnings of the lines are looked at next, and whether that is cheap.
        self._begins_lines_at = -float("inf")
        self._full_scan_throttle = FullScanThrottle()
        self._counts_at = -float("inf")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="duepost-lookout", daemon=True)

    def start(self) -> None:
        """Starts looking."""
        self._thread.start()

    def stop(self) -> None:
        """Ends; waits for a look that is under way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=15)

    def look(self) -> float:
        """One look, at those routes of which no more than this process can begin with waits in its memory already.

        Returns:
            seconds until the next.

        Raises:
            DatabaseUnreachable, BrokerUnreachable: the database is away.
        """
        self._look_around()
        read = [name for name in self._routes if self._broker.is_reading(queue_of(name))]
        if not read:
            return AWAY_PAUSE
        self._do_a_pass_that_no_thread_is_free_for()
        carried = [name for name in read if self._broker.is_carried(queue_of(name))]
        is_enqueued = bool(carried) and self._enqueue_due(carried)
        uncarried = [name for name in read if name not in carried]
        free = [name for name in uncarried if not self._has_line(name)]
        if len(free) < len(uncarried):
            # There is a line: a pass that somebody asks for is not to wait.
            self._broker.look_soon(SCHEDULERS_QUEUE)
        long_lines = [name for name in free if self._routes[name].is_claimed_directly]
        for name in long_lines:
            self._take_newest(name)
        others = [name for name in free if name not in long_lines]
        busy = self._busy_ones([name for name in uncarried if name not in others])
        is_found = bool(others or busy) and self._take_due(others, busy)
        is_found = is_found or (bool(others) and self._begin_lines(others))
        return self._pace.after(self._clock(), found=(is_found and not long_lines) or is_enqueued)

    def _has_line(self, name: str) -> bool:
        return self._broker.has_more(actor_of(name)) or self._routes[name].has_line()

    def _do_a_pass_that_no_thread_is_free_for(self) -> None:
        """Does a pass that waits in this worker's memory: a free thread would have begun it.

        Threads wait for the emails that they were given, and a relay may hang for as long as it likes.
        """
        asked = self._broker.next_batched(SCHEDULER)
        if asked is not None:
            asked.end(failure_of(partial(asked.run, self._scheduler.enqueue_due_emails)))

    def _look_around(self) -> None:
        now = self._clock()
        self._return_places()
        self._handed_over = {each: at for each, at in self._handed_over.items() if now - at < REMEMBERED}
        if now >= self._counts_at:
            self._counts_at = now + COUNT_INTERVAL
            self._tidy()
            self._pace.workers = max(1, workers.count(self._database))
            # A pass that came while its senders claimed it has left it alone.
            if routes.take_left_lines(self._database, list(self._routes)):
                tick(self._broker)

    def _enqueue_due(self, names: Sequence[str]) -> bool:
        """Has what is due on these routes enqueued, to be carried; gives whether anything was.

        In a flood of a route's, and of messages to endpoints, a pass says who goes first. What has been due for long is
        a pass's too, which is asked for.
        """
        now = self._clock()
        found = emails.due_now(self._database, names)
        due = {name: [each for each in ids if each[0] not in self._handed_over] for name, ids in found.items()}
        for name, ids in due.items():
            self._enqueue_found(name, ids, now)
        if now >= self._begins_lines_at and self._full_scan_throttle.is_due:
            self._begins_lines_at = now + LINES_INTERVAL * self._pace.workers
            if any(self._is_line_due(name) for name in names if not is_endpoint(name)):
                tick(self._broker)
        return any(due.values())

    def _enqueue_found(self, name: str, due: Sequence[tuple[int, Priority]], now: float) -> None:
        ahead = list(due)
        if is_endpoint(name):
            ahead = []
        elif len(due) >= FLOOD:
            newest = self._newest(name, NEWEST, now)
            ahead = [*(each for each in due if each[1] is Priority.URGENT), *newest]
        self._handed_over.update(dict.fromkeys([item_id for item_id, _ in (*due, *ahead)], now))
        if ahead:
            self._scheduler.enqueue_ahead(ahead, name)
        if len(due) > len(ahead) or len(due) >= FLOOD:
            tick(self._broker)

    def _is_line_due(self, name: str) -> bool:
        with self._full_scan_throttle.measured():
            return emails.oldest_due(self._database, name) is not None

    def _busy_ones(self, names: Sequence[str]) -> Sequence[str]:
        """Of these, which have lines, all or none: what is urgent is looked for there, but not as often."""
        now = self._clock()
        if not names or now < self._takes_urgent_at:
            return ()
        self._takes_urgent_at = now + NEWEST_INTERVAL
        return names

    def _take_due(self, names: Sequence[str], busy: Sequence[str]) -> bool:
        """Hands over what is due, of each route no more than it has connections; gives whether anything was.

        Args:
            names: routes.
            busy: others, of which only what is urgent is taken.
        """
        now = self._clock()
        found = emails.due_now(self._database, names, busy)
        due = {name: [each for each in ids if each[0] not in self._handed_over] for name, ids in found.items()}
        for name, ids in due.items():
            self._hand_over(name, ids, now)
        return any(due.values())

    def _begin_lines(self, names: Sequence[str]) -> bool:
        """Hands over a route's oldest email where that has been due for longer, however long; gives whether any was.

        Its sender goes on with the rest: what a long transaction has committed, or workers have left, needs no tick.
        """
        now = self._clock()
        if now < self._begins_lines_at or not self._full_scan_throttle.is_due:
            return False
        self._begins_lines_at = now + LINES_INTERVAL * self._pace.workers
        begun = [name for name in names if self._routes[name].due_line is not None and self._begin_line(name, now)]
        return bool(begun)

    def _begin_line(self, name: str, now: float) -> bool:
        with self._full_scan_throttle.measured():
            oldest = emails.oldest_due(self._database, name)
        if oldest is None or oldest in self._handed_over:
            return False
        self._hand_over(name, [(oldest, Priority.NORMAL)], now)
        return True

    def _take_newest(self, name: str) -> None:
        """Beside a long line, which its sender goes through: hands over what has only just fallen due, ahead of it.

        Of each kind no more than its token bucket holds.
        """
        now = self._clock()
        if now < self._takes_newest_at.get(name, now):
            return
        self._takes_newest_at[name] = now + NEWEST_INTERVAL
        self._hand_over(name, self._newest(name, self._routes[name].connections, now), now)

    def _newest(self, name: str, size: int, now: float) -> list[tuple[int, Priority]]:
        """What has only just fallen due, some of each kind, of each no more than its token bucket holds."""
        depth = 0
        if now >= self._looks_deep_at.get(name, now):
            self._looks_deep_at[name] = now + DEPTH_INTERVAL
            depth = DEPTH
        newest = emails.newest_due(self._database, size, depth, route=name)
        ahead = [due for due in newest if due.id not in self._handed_over and self._token_buckets.take(due.kind)]
        return [(due.id, Priority.NORMAL) for due in ahead]

    def _hand_over(self, name: str, due: Sequence[tuple[int, Priority]], now: float) -> None:
        route = self._routes[name]
        for email_id, priority in due[: route.connections]:
            if self._broker.hand_over(message_for(email_id, name), emails.ON_TIME_PRIORITIES[priority]):
                self._handed_over[email_id] = now
        if len(due) > route.connections:
            if route.due_line is not None:
                route.due_line.look_soon()
            else:
                tick(self._broker)
            self._broker.look_soon(queue_of(name))

    def _run(self) -> None:
        while not self._stop.wait(self._pause() * random.uniform(1 - JITTER, 1 + JITTER)):  # noqa: S311 - no secret
            pass

    def _pause(self) -> float:
        try:
            return self.look()
        except (DatabaseUnreachable, BrokerUnreachable) as error:
            logger.debug("The lookout waits for the database: %s", type(error).__name__)
            return AWAY_PAUSE
        except Exception as error:  # noqa: BLE001 - without this thread what is due waits for the tick
            logger.warning(
                "What is due could not be looked for: %s. A pass of the scheduler will.", type(error).__name__
            )
            return REFUSED_PAUSE
