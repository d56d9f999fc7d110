"""How fast items leave for a destination: which wait here for a place, and which wait as scheduled for their turn.

A destination is a relay, a domain of recipients by it, or an endpoint. All workers together have as many places of one
as items may leave in a second. An item holds its place from before it is begun until a second after its last answer, by
this process's own monotonic clock; only then the database hears that it is free. So in no second more items reach it
than there are places, however long a process, the network or the other side stalls, and whatever is done to a clock.
"""

import heapq
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

import psycopg2

from actors.ruling import Limit as Said
from actors.ruling import Ruling, Stage
from models import rates
from models.database.connections import Database
from models.errors import DatabaseUnreachable
from models.items import Claimed, is_endpoint
from models.rates import LONGEST_TURN, WAITS, WHOLE, Held, Limit, Limits, Want

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds after which limits are read before something is claimed; while the route is used they are read beside its
#: state, more often.
FRESH: Final = 1.0

#: Seconds between two questions for places, while somebody waits for one; and while the database is away.
ASK_INTERVAL: Final = 0.05
AWAY_INTERVAL: Final = 0.5

#: Seconds for which a claimed email waits for its place; then it waits as scheduled.
PATIENCE: Final = 1.5

#: Emails that wait for the places of a destination beyond its share of a second.
SPARE: Final = 2

#: Urgent ones that wait for the same.
MOST_URGENT: Final = 64

#: The most that wait in this process.
MOST_WAITING: Final = 512

#: Seconds that turns may be ahead so that an email with none does not wait behind them.
SHORT: Final = 1.0


#: Seconds in which it is counted how many emails go to a domain.
SEEN_FOR: Final = 5.0

#: Domains that a relay has had too much of in a minute: then it is about all that leaves by it.
SEVERAL_DOMAINS: Final = 3

#: Enhanced codes by which providers say that a sender, or a mailbox, gets or sends too much: Google's, and Microsoft's.
TOO_MUCH: Final = frozenset({"4.7.28", "4.7.32", "4.7.650", "4.7.651", "4.7.652"})


def is_too_much_for_domain(ruling: Ruling) -> bool:
    """Whether a reply about a recipient says that we, or all together, send too much there."""
    if ruling.phase.stage is not Stage.ITEM or ruling.code is None or ruling.code // 100 != 4:
        return False
    enhanced = ruling.enhanced_code or ""
    return (
        Said.RATE in ruling.limits
        or (enhanced == "4.2.1" and "rate" in ruling.reply.lower())
        or enhanced in TOO_MUCH
        or (ruling.code == 421 and enhanced.startswith("4.7."))
    )


class Place:
    """A place of each of some domains, for one email. Held until it is ended, or nobody refers to it any more."""

    __slots__ = ("_domains", "_ended", "_is_ended")

    def __init__(self, domains: tuple[str, ...], ended: deque[tuple[float, tuple[str, ...]]]) -> None:
        self._domains = domains
        self._ended = ended
        self._is_ended = False

    def end(self) -> None:
        """The email's dialogue is over, or was not begun. Any thread may say so, again and again."""
        if not self._is_ended:
            self._is_ended = True
            self._ended.append((time.monotonic(), self._domains))

    def __del__(self) -> None:
        self.end()


class Facts(NamedTuple):
    """An item, as far as it is known before its payload is made.

    Attributes:
        destinations: the domains of those whom its next payload is for, as far as that is known; or its endpoint.
        has_turn: whether it has waited as scheduled for its turn, which this is.
        goes_first: whether it is urgent, or is to find out if the relay takes mail again.
    """

    destinations: Collection[str]
    has_turn: bool
    goes_first: bool


class _Waiter(NamedTuple, Generic[T]):
    """Who waits for a place, and since when, by the monotonic clock."""

    who: T
    since: float


class Grant(NamedTuple):
    """Places of these domains that are ours now."""

    domains: tuple[str, ...]
    places: Sequence[Place]


class Rates(Generic[T]):
    """The places in this process of the destinations of one relay, or of all endpoints, and who waits for them.

    `end` of a place, `refresh`, `learn` and `ask` may be called by any thread; only the one that drives the dialogues
    has anybody wait.

    Args:
        database: where all workers' places are counted.
        route: the relay's name, or what the routes of endpoints begin with.
        worker_id: this worker's number.
    """

    def __init__(self, database: Database, route: str, worker_id: Callable[[], int]) -> None:
        self._database = database
        self._route = route
        self._worker_id = worker_id
        self._limits: Mapping[str, Limit] = {}
        #: How many workers use the route, this one included.
        self._workers = 1
        self._read_at = -float("inf")
        #: Of the counts; one question to the database at a time.
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._held: Counter[str] = Counter()
        self._speaking: Counter[str] = Counter()
        #: Places whose email is over, and when each may be somebody else's.
        self._ended: deque[tuple[float, tuple[str, ...]]] = deque()
        self._cooling: list[tuple[float, str]] = []
        #: What the database knows that we hold, and as which worker.
        self._reported: dict[str, Held] = {}
        self._reported_as: int | None = None
        self._asks_at = -float("inf")
        #: Emails that began by their domains, in this while and in the one before.
        self._seen: Counter[str] = Counter()
        self._seen_before: Counter[str] = Counter()
        self._seen_since = -float("inf")
        #: Of the driving thread alone. By their domains, those that are urgent first.
        self._waiting: dict[tuple[str, ...], tuple[deque[_Waiter[T]], deque[_Waiter[T]]]] = {}
        #: Until when turns are given, by the monotonic clock.
        self._turns_until: dict[str, float] = {}

    # How fast emails leave.

    def note(self, destinations: Iterable[str]) -> None:
        """An item to these destinations begins; in the driving thread."""
        now = time.monotonic()
        if now - self._seen_since > SEEN_FOR:
            is_past = now - self._seen_since > 2 * SEEN_FOR
            self._seen_before, self._seen, self._seen_since = Counter() if is_past else self._seen, Counter(), now
        for destination in destinations:
            self._seen[destination] += 1

    def seen(self, domain: str) -> float:
        """How many emails a second go to a domain by all workers, about. Any thread may ask."""
        number = max(self._seen[domain], self._seen_before[domain])
        return number / SEEN_FOR * self._workers

    # Limits.

    def learn(self, limits: Limits, workers: int) -> None:
        """What of the route is limited now, and how many workers use it."""
        self._limits = limits
        self._workers, self._read_at = max(1, workers), time.monotonic()

    def refresh(self) -> None:
        """Reads the limits, unless that was done a moment ago; may wait for the database.

        Raises:
            DatabaseUnreachable: it is away.
        """
        if time.monotonic() - self._read_at > FRESH:
            self.learn(rates.limits(self._database, self._route), self._workers)

    @property
    def is_limited(self) -> bool:
        """Whether any destination is. Never waits."""
        return bool(self._limits)

    def limited(self, destinations: Iterable[str]) -> tuple[str, ...]:
        """Those of these destinations that are limited, after that of the whole route. Never waits."""
        limits = self._limits
        return tuple(sorted(each for each in {WHOLE, *destinations} if each in limits))

    def why(self, domains: Sequence[str]) -> str:
        """What an email waits for that has no place there, in a line."""
        domain = domains[-1] if domains else WHOLE
        limit = self._limits.get(domain)
        # An endpoint is a route: its name without what it begins with is a destination here.
        is_route = domain == WHOLE or is_endpoint(self._route)
        where = f"the route {self._route}{domain}" if is_route else domain
        if limit is None or limit.per_second is None:
            number = "" if limit is None else f": {limit.connections} at once"
            return f"{WAITS}waits for the connections to {where}{number}"
        learnt = f", learnt of {limit.because}" if limit.because else ""
        return f"{WAITS}waits for the rate of {where}: {pace(limit.per_second)}{learnt}"

    # Who waits; in the driving thread.

    def must_wait(self, facts: Facts) -> tuple[str, ...]:
        """The domains for which an email has to wait as scheduled; none where it can go on."""
        domains = self.limited(facts.destinations)
        if not any(domains) or facts.goes_first:
            return ()
        now = time.monotonic()
        is_behind = not facts.has_turn and any(self._turns_until.get(each, now) > now for each in domains if each)
        return domains if is_behind or self._is_full(domains) else ()

    def wait(self, who: T, domains: tuple[str, ...], facts: Facts) -> bool:
        """Has an email wait here for a place of each domain; False where enough do, and it is to wait as scheduled."""
        urgent, others = self._waiting.get(domains, (deque(), deque()))
        if len(urgent) >= MOST_URGENT if facts.goes_first else self._is_full(domains):
            return False
        self._waiting[domains] = urgent, others
        (urgent if facts.goes_first else others).append(_Waiter(who, time.monotonic()))
        return True

    def _is_full(self, domains: tuple[str, ...]) -> bool:
        return len(self) >= MOST_WAITING or any(
            self._number_waiting(each) >= self._most_waiting(each) for each in domains if each or len(domains) == 1
        )

    def _most_waiting(self, domain: str) -> int:
        """How many may wait here: this worker's share of a second."""
        limit = self._limits.get(domain)
        if limit is None:
            return MOST_WAITING
        bounds = [each for each in (limit.places, limit.connections) if each is not None]
        return math.ceil(min(bounds, default=1) / self._workers) + SPARE

    def _number_waiting(self, domain: str) -> int:
        # Who waits for a domain is none of those that only the route keeps waiting.
        return sum(
            len(urgent) + len(others)
            for domains, (urgent, others) in self._waiting.items()
            if (domain in domains if domain else domains == (WHOLE,))
        )

    @property
    def has_waiting(self) -> bool:
        """Whether anybody waits here."""
        return bool(self._waiting)

    def __len__(self) -> int:
        """How many wait here."""
        return sum(len(urgent) + len(others) for urgent, others in self._waiting.values())

    @property
    def is_idle(self) -> bool:
        """Whether nothing is limited, nobody waits, and there is nothing to tell: nothing is to be done."""
        return not (self._limits or self._waiting or self._ended or self._cooling or self._reported)

    @property
    def room(self) -> int | None:
        """How many more emails are worth a claim, where the whole route is limited; None where it is not."""
        if WHOLE not in self._limits:
            return None
        return max(0, self._most_waiting(WHOLE) - self._number_waiting(WHOLE))

    def late(self) -> list[tuple[T, tuple[str, ...]]]:
        """Takes those that have waited for too long; an urgent one waits until it has its place."""
        if not self._waiting:
            return []
        since = time.monotonic() - PATIENCE
        found = []
        for domains, (_, others) in self._waiting.items():
            while others and others[0].since < since:
                found.append((others.popleft().who, domains))
        self._forget_empty()
        return found

    def drop(self) -> list[T]:
        """Takes all that wait."""
        found = [waiter.who for waiters in self._waiting.values() for each in waiters for waiter in each]
        self._waiting.clear()
        return found

    def _forget_empty(self) -> None:
        for domains in [each for each, (urgent, others) in self._waiting.items() if not urgent and not others]:
            del self._waiting[domains]

    def take(self, granted: Sequence[Grant]) -> list[tuple[T, Place]]:
        """Takes those that get a place now; what nobody wants any more is free soon."""
        found = []
        for domains, places in granted:
            urgent, others = self._waiting.get(domains, (deque(), deque()))
            for place in places:
                if waiters := urgent or others:
                    found.append((waiters.popleft().who, place))
                else:
                    place.end()
        self._forget_empty()
        return found

    def wants(self) -> list[Want]:
        """How many places are wanted, by their domains."""
        return [
            Want(domains, len(urgent) + len(others), len(urgent)) for domains, (urgent, others) in self._waiting.items()
        ]

    def give_turns(self, claimed: Sequence[Claimed], domains: tuple[str, ...]) -> set[int]:
        """Has claims of which nothing was sent wait as scheduled until their turn, behind those that have one.

        Any thread may call this; it may wait for the database.

        Returns:
            the ids of those that do; none where the database is away.
        """
        try:
            ids, seconds = rates.give_turns(
                self._database, self._route, domains, claimed, longest=LONGEST_TURN, why=self.why(domains)
            )
        except (DatabaseUnreachable, psycopg2.Error) as failure:
            logger.warning("%d items could not be given their turns: %s.", len(claimed), type(failure).__name__)
            return set()
        for domain in domains:
            self._turns_until[domain] = time.monotonic() + seconds - SHORT
        return ids

    # What the database is told and asked.

    @property
    def asks_in(self) -> float | None:
        """Seconds until it is to be asked, or told; None where there is nothing to ask or tell."""
        now = time.monotonic()
        if not self._waiting and not self.owes:
            return max(0.0, self._cooling[0][0] - now) if self._cooling else None
        return max(0.0, self._asks_at - now)

    @property
    def owes(self) -> bool:
        """Whether the database takes us to hold something else than we do."""
        with self._lock:
            self._move_on()
            return self._told() != self._reported

    def ask(self, wanted: Sequence[Want] = ()) -> list[Grant]:
        """Tells of the places held, and asks for those that are wanted; may wait for the database."""
        with self._asking:
            worker_id = self._worker_id()
            with self._lock:
                self._move_on()
                if worker_id != self._reported_as:
                    # Under another number: what the former one held is free once that is gone.
                    self._reported, self._reported_as = {}, worker_id
                told = self._told()
            named = {*told, *self._reported, *(domain for want in wanted for domain in want.domains)}
            held = {domain: told.get(domain, Held(0, 0)) for domain in named}
            self._asks_at = time.monotonic() + ASK_INTERVAL
            if not held:
                return []
            try:
                numbers = rates.take_places(self._database, self._route, worker_id, held, wanted)
            except (DatabaseUnreachable, psycopg2.Error) as failure:
                logger.debug("Places could not be asked for: %s.", type(failure).__name__)
                self._asks_at = time.monotonic() + AWAY_INTERVAL
                with self._lock:
                    # Nobody knows what it has now: it is told of all that was asked about.
                    self._reported = dict.fromkeys(held, Held(-1, -1))
                return []
            with self._lock:
                for want, number in zip(wanted, numbers, strict=True):
                    for domain in want.domains:
                        held[domain] = Held(held[domain].held + number, held[domain].speaking + number)
                        self._held[domain] += number
                        self._speaking[domain] += number
                self._reported = {domain: each for domain, each in held.items() if each.held}
            return [
                Grant(want.domains, [Place(want.domains, self._ended) for _ in range(number)])
                for want, number in zip(wanted, numbers, strict=True)
                if number
            ]

    def _move_on(self) -> None:
        """Moves places on whose email is over, and forgets those that may be somebody else's; under the lock."""
        while self._ended:
            at, domains = self._ended.popleft()
            for domain in domains:
                self._speaking[domain] -= 1
                limit = self._limits.get(domain)
                heapq.heappush(self._cooling, (at + (limit.seconds if limit is not None else 1.0), domain))
        now = time.monotonic()
        while self._cooling and self._cooling[0][0] <= now:
            self._held[heapq.heappop(self._cooling)[1]] -= 1

    def _told(self) -> dict[str, Held]:
        return {domain: Held(number, self._speaking[domain]) for domain, number in self._held.items() if number}


def domains_of(addresses: Iterable[str]) -> set[str]:
    """The domains of addresses, in lower case."""
    return {address.rpartition("@")[2].lower() for address in addresses}


def pace(per_second: float) -> str:
    """A rate in words."""
    if per_second >= 1 or per_second <= 0:
        return f"{per_second:g} a second"
    return f"one in {1 / per_second:.3g} s"
