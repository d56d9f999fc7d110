"""What this process and others know of a route: kept in the database, looked at twice a second while it is used."""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import psycopg2

from actors.ruling import Limit, Ruling, Scope, Stage, Topic
from models import routes
from models.database.connections import Cursor, Database
from models.errors import DatabaseUnreachable
from models.items import is_endpoint
from models.rates import Limits, read_limits
from models.routes import Known
from models.words import Verdict

logger = logging.getLogger(__name__)

#: Seconds between two looks, while the relay is used.
INTERVAL: Final = 0.5

#: Seconds between two looks whether it is still known that we serve it, while it is not used: a worker may have got
#: another number meanwhile.
IDLE_INTERVAL: Final = 5.0

#: Seconds without a sign of use after which it is looked at no more.
IN_USE_FOR: Final = 5.0

#: Seconds until a place is asked for again that was not to be had.
RETRY: Final = 0.25

#: Seconds for which a worker keeps a place that others wait for, where there are fewer places than workers; and for
#: which it then asks for none.
TURN: Final = 3.0
AWAY: Final = 1.0

#: Seconds after a connection of ours was closed in which the relay may still count it, and how often it is then asked
#: again before its refusal is believed.
LINGERING: Final = 2.0
TRIES: Final = 3

#: Seconds for which a relay may refuse connections without a reason, and answer nothing over others, before it counts
#: as failed.
UNCLEAR_FOR: Final = 10.0

#: How many emails in a row may be deferred at MAIL, without a word of a rate, before that slows all down.
DEFERRED_IN_A_ROW: Final = 3

#: Seconds for which nothing more is begun here after a word of a rate, until the database has it.
HOLD: Final = 0.5

#: Seconds after which a connection without an email is closed: places are scarce where the relay allows few.
IDLE: Final = 10.0
IDLE_WITH_LIMIT: Final = 1.0

#: The share by which a pause is shortened or lengthened.
JITTER: Final = 0.2


@dataclass(slots=True)
class _Times:
    """Moments by the monotonic clock; long ago where there was none."""

    used: float = -float("inf")
    worked: float = -float("inf")
    left: float = -float("inf")
    refused_since: float | None = None
    retry: float = -float("inf")
    turn: float = -float("inf")
    hold: float = -float("inf")
    slow: float = -float("inf")

    @property
    def answered_ago(self) -> float | None:
        """Seconds since a connection was answered; None where none has been."""
        return time.monotonic() - self.worked if self.worked > -float("inf") else None


@dataclass(frozen=True, slots=True)
class Registration:
    """What a worker says of a route as it begins to serve it.

    Attributes:
        target: `host:port` of the relay.
        fallback: the route by which its emails leave while its circuit is open; None: they wait.
    """

    target: str
    fallback: str | None = None


class SharedRoute:
    """What the connections of all workers by one route share.

    Args:
        database: where it is kept.
        name: the route's name.
        worker_id: this worker's number.
        registration: its target and fallback, for registering it; None where this process does not serve it.
        label: what it is called in alerts and log lines; None where there is only one.
    """

    def __init__(
        self,
        database: Database,
        name: str,
        worker_id: Callable[[], int],
        registration: Callable[[], Registration] | None = None,
        *,
        label: str | None = None,
    ) -> None:
        self._database = database
        self.name = name
        self.label = label
        self._worker_id = worker_id
        self._registration = registration
        #: As which worker this process has registered it; None before it has.
        self._registered: int | None = None
        #: Of the numbers and times; held for no longer than it takes to change them.
        self._lock = threading.Lock()
        #: One question to the database at a time.
        self._asking = threading.Lock()
        #: Connections that hold a place, and how many the database counts as ours.
        self._opened = 0
        self._granted = 0
        self._refusals = 0
        self._deferred = 0
        self._times = _Times()
        self._known: Known | None = None
        #: Why nothing goes out behind a dot, until the database has it.
        self._stopped: str | None = None
        self._wake = threading.Event()

    # For connections.

    def take_place(self) -> bool:
        """Whether one more connection may be opened; asks the database unless a place of ours is free."""
        with self._asking:
            with self._lock:
                opened, share = self._opened, self.share
                self._times.used = time.monotonic()
                is_at_hand = opened < self._granted and (share is None or opened < share)
            granted = is_at_hand or self._ask_for_place(opened, share)
            with self._lock:
                if granted:
                    self._opened += 1
                    self._granted = max(self._granted, opened + 1)
                else:
                    self._times.retry = time.monotonic() + RETRY
        self._wake.set()
        return granted

    def _ask_for_place(self, opened: int, share: int | None) -> bool:
        try:
            return routes.take_connection(self._database, self.name, self._worker_id(), opened)
        except (DatabaseUnreachable, psycopg2.Error) as failure:
            logger.debug("No place could be asked for: %s.", type(failure).__name__)
            return share is None or opened < share

    def leave_place(self, *, was_open: bool) -> None:
        """A connection is closed; the database hears of it with the next look."""
        with self._lock:
            self._opened -= 1
            if was_open:
                self._times.left = time.monotonic()

    def opened(self) -> None:
        """A connection has come about."""
        with self._lock:
            self._times.refused_since, self._refusals = None, 0
            if self._opened == 1:
                self._times.turn = time.monotonic()

    def is_full(self, refusal: Ruling) -> bool:
        """Whether a connection was refused for there being others, which work. Others wait a moment then."""
        if Limit.PERHAPS_SESSIONS not in refusal.limits:
            return False
        now = time.monotonic()
        is_named = Limit.SESSIONS in refusal.limits
        with self._lock:
            times = self._times
            times.refused_since = since = now if times.refused_since is None else times.refused_since
            times.retry = now + RETRY
            self._refusals += 1
            # One that was closed a moment ago, here or by another worker that made way, may still count.
            may_linger = now - times.left < LINGERING or self.share is not None
            if is_named and may_linger and self._refusals < TRIES:
                return True
        with self._asking:
            with self._lock:
                opened, answered_ago = self._opened, self._times.answered_ago
            what = self._refused(opened, now - since, answered_ago, is_named, refusal)
            with self._lock:
                self._granted = opened
                is_over = what == "down" or (what == "wait" and now - since > UNCLEAR_FOR)
                if is_over or what == "limit":
                    self._times.refused_since, self._refusals = None, 0
        if is_over:
            return False
        self._wake.set()
        return True

    def _refused(self, opened: int, seconds: float, answered_ago: float | None, is_named: bool, refusal: Ruling) -> str:
        try:
            what = routes.refuse_connection(
                self._database,
                self.name,
                self._worker_id(),
                opened=opened,
                seconds=seconds,
                is_named=is_named,
                answered_ago=answered_ago,
                because=described(refusal),
            )
        except (DatabaseUnreachable, psycopg2.Error) as failure:
            logger.debug("A refused connection could not be reported: %s.", type(failure).__name__)
            return "wait" if opened else "down"
        if what == "limit":
            logger.info("%s takes no further connection (%s); we go on with fewer.", self.called, described(refusal))
        return what

    def heard(self, ruling: Ruling) -> None:
        """What an answer says of the relay as such."""
        now = time.monotonic()
        with self._lock:
            self._times.used = now
            if ruling.is_answer:
                self._times.worked = now
            if ruling.verdict is Verdict.SENT:
                self._deferred = 0
            elif Limit.PERHAPS_RATE in ruling.limits:
                self._deferred += 1
        # A word about a recipient slows that one's domain, and no other.
        if self.is_too_much(ruling) and ruling.phase.stage is not Stage.ITEM:
            with self._lock:
                self._times.hold, self._times.slow = now + HOLD, now + routes.SLOW_FOR

    @property
    def goes_ahead(self) -> bool:
        """Whether an envelope may go out behind a dot; not before the database has been looked at."""
        return self._stopped is None and self._known is not None and self._known.goes_ahead

    def stop_going_ahead(self, why: str) -> None:
        """Nothing goes out behind a dot any more; others hear of it through the database, at once."""
        with self._lock:
            if self._stopped is not None:
                return
            self._stopped = why
        logger.warning("%s %s: no email's envelope goes out there any more.", self.called, why)
        self._wake.set()

    # For who delivers.

    @property
    def share(self) -> int | None:
        """How many connections this process may have; None where no limit is known."""
        return self._known.share if self._known is not None else None

    def most(self, size: int) -> int:
        """Of `size` connections, how many are to be used just now."""
        now = time.monotonic()
        known = self._known
        if now < self._times.slow or (known is not None and known.is_slow):
            return 1
        return size if known is None or known.share is None else min(size, known.share)

    def should_yield(self) -> bool:
        """Whether a connection is to be closed, as others wait for its place and have no other."""
        now = time.monotonic()
        with self._lock:
            is_due = self._known is not None and self._known.is_crowded and now - self._times.turn > TURN
            if is_due:
                self._times.turn, self._times.retry = now, now + AWAY
        if is_due:
            self._wake.set()
        return is_due

    @property
    def hold(self) -> float:
        """Seconds, as far as this process knows, for which no email is to be begun; 0 where one may."""
        return max(0.0, self._times.hold - time.monotonic())

    @property
    def retry(self) -> float:
        """Seconds for which no connection is to be opened; 0 where one may."""
        return max(0.0, self._times.retry - time.monotonic())

    def is_too_much(self, ruling: Ruling) -> bool:
        """Whether an answer says that the relay has had too much of us."""
        if ruling.scope is Scope.RELAY:
            # The circuit opens.
            return False
        is_said_to_many = Limit.PERHAPS_RATE in ruling.limits and self._deferred >= DEFERRED_IN_A_ROW
        return is_said_to_many or Limit.RATE in ruling.limits

    @property
    def known(self) -> Known | None:
        """What the database has said last; None before it has."""
        return self._known

    @property
    def idle_limit(self) -> float:
        """Seconds after which a connection without an email is to be closed."""
        if self._known is None:
            return IDLE
        return 0.0 if self._known.circuit_open else IDLE if self._known.share is None else IDLE_WITH_LIMIT

    # For who concludes.

    def slow_down(self, cursor: Cursor, ruling: Ruling) -> float | None:
        """Nothing is claimed for a while, by nobody; seconds of that, or None where it is so already."""
        if ruling.retry_after is not None:
            return routes.pause(cursor, self.name, because=described(ruling), seconds=ruling.retry_after)
        return routes.slow_down(cursor, self.name, because=described(ruling), jitter=jitter())

    @property
    def called(self) -> str:
        """What begins a sentence about it."""
        if is_endpoint(self.name):
            return f"The endpoint {self.label}"
        return "The relay" if self.label is None else f"The relay {self.label}"

    # For the thread that looks.

    def register(self) -> None:
        """Says that this worker serves it, and where it is; once for each number that this worker has had.

        Raises:
            DatabaseUnreachable: it is done with the next look.
            psycopg2.Error: the same.
        """
        worker_id = self._worker_id()
        if self._registration is None or worker_id == self._registered:
            return
        said = self._registration()
        routes.register(self._database, self.name, worker_id, target=said.target, fallback=said.fallback)
        self._registered = worker_id

    @property
    def is_registered(self) -> bool:
        """Whether the database knows that this worker serves it, as far as it is to."""
        return self._registration is None or self._worker_id() == self._registered

    def look(self) -> None:
        """Tells the database what there is to tell, and looks what others have found out.

        Raises:
            DatabaseUnreachable: it is done again with the next look.
            psycopg2.Error: the same.
        """
        self.register()
        worker_id = self._worker_id()
        if (why := self._stopped) is not None:
            routes.stop_going_ahead(self._database, self.name, why)
        with self._asking:
            now = time.monotonic()
            with self._lock:
                opened = self._opened
                is_wanted, answered_ago = now - self._times.used < 2 * INTERVAL, self._times.answered_ago
            if opened != self._granted or is_wanted:
                routes.report_connections(
                    self._database, self.name, worker_id, opened, is_wanted=is_wanted, answered_ago=answered_ago
                )
                self._granted = opened
            was_paused = self._known is not None and self._known.pause > 0
            self._known = routes.look(self._database, self.name, worker_id)
        if why is not None:
            # From now on the database says so, until somebody takes it back there.
            self._stopped = None
        if self._known is not None and self._known.pause and not was_paused:
            # What was claimed before the pause goes back; from then on nothing is claimed.
            self._times.hold = max(self._times.hold, time.monotonic() + min(self._known.pause, HOLD))

    def wake(self) -> None:
        """Ends `wait_for_use`."""
        self._wake.set()

    def wait_for_use(self, seconds: float | None) -> bool:
        """Waits until the relay is used in a way that is to be looked at; for no longer than that."""
        woken = self._wake.wait(seconds)
        self._wake.clear()
        return woken

    @property
    def is_in_use(self) -> bool:
        """Whether it is worth a look."""
        return self._opened > 0 or self._granted > 0 or time.monotonic() - self._times.used < IN_USE_FOR


class Counted(Protocol):
    """What of a route is limited, and places that this process has of that."""

    def learn(self, limits: Limits, workers: int) -> None:
        """The limits as they are now, and how many workers use the route."""

    @property
    def owes(self) -> bool:
        """Whether the database takes us to hold something else than we do."""

    def ask(self) -> object:
        """Tells it what we hold; may wait for it."""


class Watch:
    """A thread that looks at the route while it is used, and has idle connections closed.

    Args:
        route: whose state it follows.
        tidy: closes connections that have been idle for too long.
        rates: what of it is limited, and the places that this process has of that; None where nobody asks.
    """

    def __init__(self, route: SharedRoute, tidy: Callable[[], None], rates: "Counted | None" = None) -> None:
        self._route = route
        self._tidy = tidy
        self._rates = rates
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="duepost-route", daemon=True)

    def start(self) -> None:
        """Starts looking: at once, so that the route is registered."""
        self._route.wake()
        self._thread.start()

    def stop(self) -> None:
        """Ends; waits for a look that is under way."""
        self._stop.set()
        self._route.wake()
        if self._thread.is_alive():
            self._thread.join(timeout=15)

    def _run(self) -> None:
        while not self._stop.is_set():
            is_in_use = self._route.is_in_use or (self._rates is not None and self._rates.owes)
            woken = self._route.wait_for_use(INTERVAL if is_in_use else IDLE_INTERVAL)
            if self._stop.is_set():
                return
            try:
                if not (is_in_use or woken) and self._route.is_registered:
                    continue
                self._route.look()
                self._look_at_rates()
            except (DatabaseUnreachable, psycopg2.Error, RuntimeError) as failure:
                logger.debug("The route could not be looked at: %s.", type(failure).__name__)
                self._stop.wait(INTERVAL)
            self._tidy()

    def _look_at_rates(self) -> None:
        """Hands on the limits; and tells the database of places that are free since the last email."""
        known = self._route.known
        if self._rates is None or known is None:
            return
        self._rates.learn(read_limits(known.limits), known.workers)
        if self._rates.owes:
            self._rates.ask()


def jitter() -> float:
    """A factor for a pause, so that what was stopped together does not go on together."""
    return random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - no secret


#: What of ours a relay may speak of, in words.
ABOUT = {
    Topic.SENDER: "the sender address",
    Topic.HELO: "the name for EHLO",
    Topic.REPUTATION: "this host",
    Topic.HEADER: "a header",
    Topic.QUOTA: "a quota",
    Topic.SOME_QUOTA: "a quota",
    Topic.RATE: "how fast we send",
    Topic.LOGIN: "relaying or login",
    Topic.ACCESS: "relaying or login",
}


def described(ruling: Ruling) -> str:
    """A refusal in phase, codes, and what of ours it is about: its text may hold an address."""
    codes = " ".join(str(part) for part in (ruling.phase, ruling.code, ruling.enhanced_code) if part)
    is_of_the_email = ruling.phase.stage in (Stage.NAME, Stage.ITEM)
    return f"{codes}, about {ABOUT[ruling.about]}" if ruling.about and is_of_the_email else codes
