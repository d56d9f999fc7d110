"""How scheduled messages are claimed, attempted and concluded."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeAlias

import dramatiq
import psycopg2

from actors.delivery.conclude import Conclusion, Conclusions
from actors.delivery.decision import Decision, Judged
from actors.delivery.dispatcher import Dispatcher, Ready
from actors.delivery.functions import FUNCTION_LIMITS, TAKEN, ruling_on
from actors.delivery.in_flight import LostClaim
from actors.delivery.item_work import ItemWork, Shared, Work, is_hint
from actors.delivery.job import Job
from actors.delivery.lanes import Blocking, Lane
from actors.delivery.payloads import MessagePayload, Payloads
from actors.delivery.rates import Facts, Rates
from actors.delivery.route import SharedRoute, described
from actors.queue.broker import BrokerUnreachable, PostgresBroker
from actors.queue.waiting import wait_for_database
from actors.ruling import Phase, Ruling, Scope, Stage
from actors.tick import tick
from models import items, scheduled_messages
from models.database.connections import Cursor, Database, refusal_behind
from models.errors import DatabaseUnreachable
from models.items import Kept
from models.kept_content import Copy
from models.rates import WAITS
from models.scheduled_messages import ClaimedMessage
from models.words import Priority, Verdict

#: Requests that one endpoint gets of this process at once: at the most, and to begin with, after it was slow or failed.
MOST_AT_ONCE: Final = 64
FIRST_AT_ONCE: Final = 4

#: An answer that takes more seconds than this is slow: then the endpoint gets fewer requests at once.
SLOW: Final = 1.0

#: Messages of one endpoint that wait in this process's memory for its room.
MOST_ASIDE: Final = 500

#: Milliseconds, about, until a message is looked at again whose endpoint has as many as it gets at once.
BUSY_DELAY: Final = 250

#: Seconds between two passes of the scheduler that are asked for while messages are concluded: of an endpoint's line
#: only a window is queued at once.
PASS_INTERVAL: Final = 0.25

#: How often a function is called whose item somebody else holds as it is to be concluded, and seconds, doubled each
#: time, until it is called again: those of ours who hold an item do so for some milliseconds.
TRIES: Final = 6
HELD_PAUSE: Final = 0.005

#: Delivers messages.
MessageDispatcher: TypeAlias = Dispatcher[Work[ClaimedMessage, MessagePayload], MessagePayload]

#: What of endpoints is limited, and which messages wait for that.
MessageRates: TypeAlias = Rates[Ready[Work[ClaimedMessage, MessagePayload], MessagePayload]]


@dataclass(slots=True)
class Load:
    """How many requests an endpoint gets of this process at once. It grows with each quick answer, by one.

    Attributes:
        most: how many it gets.
        claims: of those that it has.
        aside: what waits for room, the oldest first.
    """

    most: int = FIRST_AT_ONCE
    claims: set[int] = field(default_factory=set)
    aside: deque[tuple[int, Job]] = field(default_factory=deque)

    @property
    def room(self) -> int:
        """How many more it gets now."""
        return max(self.most - len(self.claims), 0)

    def ended(self, claim: int, ruling: Ruling | None, seconds: float) -> None:
        """One is over."""
        self.claims.discard(claim)
        if ruling is None:
            return
        if ruling.verdict is Verdict.SENT and seconds <= SLOW:
            self.most = min(self.most + 1, MOST_AT_ONCE)
        elif ruling.verdict is not Verdict.SENT:
            self.most = 1
        else:
            self.most = min(self.most, FIRST_AT_ONCE)


class MessageAttempt:
    """One attempt at a claimed message. One thread at a time has it.

    Attributes:
        item: it.
        judged: what has come of it so far.
        conclusion: what was committed, where that was done together with the attempt.
        begun_at: when it began, by the monotonic clock.
    """

    def __init__(self, item: ClaimedMessage, payloads: Payloads, call: "Callable[[MessageAttempt], None]") -> None:
        self.item = item
        self.judged: list[Judged] = []
        self.conclusion: Conclusion | None = None
        self.begun_at = time.monotonic()
        self._payloads = payloads
        self._call = call
        self._payload: MessagePayload | None = None

    @property
    def is_unread(self) -> bool:
        """No: a claim gives all of it."""
        return False

    @property
    def has_route_failed(self) -> bool:
        """No: an endpoint's failure stops no other endpoint's messages, and its own by its circuit."""
        return False

    @property
    def copies(self) -> Sequence[Copy]:
        """None: of a message its endpoint keeps what it wants."""
        return ()

    @property
    def is_concluded_alone(self) -> bool:
        """Whether more is to be written than that it is over."""
        return self.item.is_failing or self.item.function is not None

    def advance(self) -> MessagePayload | Blocking | None:
        """What comes next; nothing where it is over. Never waits."""
        if self.judged:
            return None
        if self.item.function is not None:
            return Blocking(Lane.FUNCTION, partial(self._call, self))
        if self._payload is None and self._payloads.are_quick(self.item):
            self._compose()
        elif self._payload is None:
            return Blocking(Lane.COMPOSE, self._compose)
        return None if self.judged else self._payload

    def take(self, rulings: Mapping[str, Ruling]) -> None:
        """What the channel has made of it."""
        [ruling] = rulings.values()
        self.judge(ruling)

    def judge(self, ruling: Ruling) -> None:
        """It is over."""
        [recipient] = self.item.recipients
        self.judged.append(Judged(recipient, ruling))

    def refuse(self, ruling: Ruling) -> None:
        """That came of it, before anything was made."""
        self.judge(ruling)

    def keep_waiting(self, rulings: Mapping[str, Ruling]) -> None:
        """It is one delivery, however many users it is about: it goes as long as one of them is to get it."""

    def report(self) -> None:
        """There is nothing to tell but its conclusion."""

    def _compose(self) -> None:
        made = self._payloads.make(self.item)
        if isinstance(made, Ruling):
            self.judge(made)
        else:
            self._payload = made


class MessageConclusions(Conclusions):
    """Writes down what attempts at an endpoint's messages came to, and what that says of the endpoint."""

    def __init__(
        self,
        database: Database,
        broker: PostgresBroker,
        route: SharedRoute,
        endpoint: str,
        *,
        keep_undeliverable_days: int,
    ) -> None:
        super().__init__(database, broker, route, keep_undeliverable_days=keep_undeliverable_days)
        self._endpoint = endpoint

    @property
    def writes_more(self) -> bool:
        """What came of it says something of the endpoint."""
        return True

    def write_more(self, cursor: Cursor, outcome: Decision) -> str | None:
        """Notes what the endpoint has shown: that it works, that it fails, that it is gone for good.

        Returns:
            the endpoint, where it is disabled now.
        """
        [ruling, *_] = outcome.rulings
        may_have_arrived = ruling.phase.stage is Stage.ITEM or ruling.verdict is Verdict.UNKNOWN
        if may_have_arrived and not outcome.is_finished:
            scheduled_messages.note_arrival(cursor, outcome.item.id)
        is_disabled = False
        if ruling.is_gone:
            is_disabled = scheduled_messages.disable(cursor, self._endpoint, described(ruling))
        elif ruling.verdict is Verdict.SENT:
            scheduled_messages.note_working(cursor, self._endpoint)
        elif ruling.scope is Scope.RELAY or ruling.verdict is Verdict.UNKNOWN:
            because = f"failed for five days: {described(ruling)}"
            is_disabled = scheduled_messages.note_failing(cursor, self._endpoint, because)
        return self._endpoint if is_disabled else None


class Unlimited:
    """Pacing of a dispatcher whose sessions belong to no one route: each endpoint has its own pace and circuit."""

    called: Final = "An endpoint"
    retry: Final = 0.0
    hold: Final = 0.0
    idle_limit: Final = 10.0

    def most(self, size: int) -> int:
        """All of them."""
        return size

    def should_yield(self) -> bool:
        """No: nobody else needs their places."""
        return False


@dataclass(slots=True)
class _Endpoint:
    """What this process knows of an endpoint."""

    conclusions: MessageConclusions
    load: Load = field(default_factory=Load)


class MessageWork(ItemWork[ClaimedMessage, MessagePayload]):
    """What the dispatcher does with messages.

    Args:
        shared: what it shares with others.
        payloads: makes requests.
        conclusions: returns what writes down what came of an endpoint's messages.
        rates: what of endpoints is limited.
    """

    def __init__(
        self,
        shared: Shared,
        payloads: Payloads,
        conclusions: Callable[[str], MessageConclusions],
        rates: MessageRates,
    ) -> None:
        super().__init__(shared, None)
        self._rates = rates
        self._payloads = payloads
        self._new_conclusions = conclusions
        #: Of the loads, which the claiming thread and those that conclude share; held for no longer than it takes to
        #: change one.
        self._lock = threading.Lock()
        self._endpoints: dict[str, _Endpoint] = {}
        #: By claim.
        self._attempts: dict[int, MessageAttempt] = {}
        #: Of what was set aside, by message; of the claiming thread alone.
        self._routes_aside: dict[int, str] = {}
        self._asked_for_pass_at = -float("inf")
        self._add: Callable[[int, Job], bool] = _nowhere

    def attempt(self, item: ClaimedMessage) -> MessageAttempt:
        """An attempt at a claimed message that is about to begin."""
        with self._lock:
            self._endpoint(item.endpoint).load.claims.add(item.claim)
        attempt = self._attempts[item.claim] = MessageAttempt(item, self._payloads, self._call_function)
        return attempt

    def claim(self, jobs: Sequence[tuple[int, Job]]) -> list[Work[ClaimedMessage, MessagePayload]]:
        """The same; what could not be claimed leaves its room to what was set aside."""
        works = super().claim(jobs)
        for each in tuple(self._endpoints.values()):
            self._resume(each.load)
        return works

    def _claim(
        self, item_ids: Sequence[int], worker_id: int, keep: Callable[[Kept], None] = lambda _: None
    ) -> Sequence[ClaimedMessage]:
        self._rates.refresh()
        return self._in_flight.claim(
            self._database,
            worker_id,
            partial(scheduled_messages.claim, self._database, item_ids, worker_id, keep),
            lambda claimed, known: scheduled_messages.claimed_unread(
                self._database, [each for each in claimed if each in item_ids], worker_id, known
            ),
        )

    def _claim_apart(self, cursor: Cursor, item_id: int, worker_id: int) -> ClaimedMessage | None:
        return scheduled_messages.claim_apart(cursor, item_id, worker_id)

    def _unclaimed(self, kept: Kept) -> ClaimedMessage:
        return scheduled_messages.unclaimed(kept)

    @property
    def rates(self) -> MessageRates:
        """What of endpoints is limited."""
        return self._rates

    def facts(self, work: Work[ClaimedMessage, MessagePayload]) -> Facts:
        """A message, as far as it is known before its request is made. A function has no rate."""
        item = work.attempt.item
        goes_first = item.probe or item.priority == Priority.URGENT
        destinations = () if item.function is not None else (item.endpoint,)
        return Facts(destinations, (item.last_error or "").startswith(WAITS), goes_first)

    def destinations(
        self,
        work: Work[ClaimedMessage, MessagePayload],
        payload: MessagePayload,  # noqa: ARG002
    ) -> Collection[str]:
        """Its endpoint."""
        return (work.attempt.item.endpoint,)

    def give_turns(self, works: Sequence[Work[ClaimedMessage, MessagePayload]], domains: tuple[str, ...]) -> None:
        """Sending → scheduled until their turn comes, where their endpoint's rate is limited; no attempt is counted."""
        self._wait_as_scheduled(works, lambda claimed: self._rates.give_turns(claimed, domains))

    def _conclusions_of(self, item: ClaimedMessage) -> MessageConclusions:
        return self._endpoint(item.endpoint).conclusions

    def _endpoint(self, name: str) -> _Endpoint:
        found = self._endpoints.get(name)
        if found is None:
            found = self._endpoints[name] = _Endpoint(self._new_conclusions(name))
        return found

    def go_on_with(self, add: Callable[[int, Job], bool]) -> None:
        """Says how a job is added that had to wait for its endpoint: the dispatcher's `add`."""
        self._add = add

    def _defer(self, jobs: Sequence[tuple[int, Job]]) -> Sequence[tuple[int, Job]]:
        """Sets aside what its endpoint has no room for, so that it takes nobody else's place."""
        if self._broker.stopping.is_set():
            for _, job in jobs:
                self._put_off(job)
            return []
        routes = self._routes_of([item_id for item_id, _ in jobs])
        begun: Counter[str] = Counter()
        kept, put_off = [], []
        with self._lock:
            for item_id, job in jobs:
                route = routes.get(item_id)
                name = items.endpoint_of(route) if route is not None else ""
                load = self._endpoint(name).load if route is not None else Load()
                begun[name] += 1
                if begun[name] <= load.room:
                    kept.append((item_id, job))
                elif len(load.aside) < MOST_ASIDE:
                    load.aside.append((item_id, job))
                    self._routes_aside[item_id] = routes[item_id]
                else:
                    put_off.append(job)
        for job in put_off:
            self._put_off(job)
        return kept

    def _routes_of(self, item_ids: Sequence[int]) -> dict[int, str]:
        """The routes of messages; of what was set aside they are known."""
        routes = {each: self._routes_aside.pop(each) for each in item_ids if each in self._routes_aside}
        unknown = [each for each in item_ids if each not in routes]
        return routes | scheduled_messages.routes_of(self._database, unknown) if unknown else routes

    def _put_off(self, job: Job) -> None:
        """Leaves a message to a later look; a hint goes: its message is still due."""
        message = job.run(self._current_message)
        if is_hint(message):
            job.end()
        else:
            job.end(dramatiq.errors.Retry("its endpoint has as many as it gets at once", delay=BUSY_DELAY))

    def _resume(self, load: Load) -> None:
        """Goes on with what was set aside, as far as the endpoint has room."""
        if not load.aside:
            return
        with self._lock:
            count = len(load.aside) if self._broker.stopping.is_set() else min(load.room, len(load.aside))
            resumed = [load.aside.popleft() for _ in range(count)]
        for item_id, job in resumed:
            if not self._add(item_id, job):
                self._put_off(job)

    def _let_go(self, item: ClaimedMessage) -> None:
        """This process works on a claim no more: the endpoint has room for another one."""
        super()._let_go(item)
        attempt = self._attempts.pop(item.claim, None)
        if attempt is None:
            return
        ruling = attempt.judged[-1].ruling if attempt.judged else None
        load = self._endpoint(item.endpoint).load
        with self._lock:
            load.ended(item.claim, ruling, time.monotonic() - attempt.begun_at)
        self._resume(load)
        now = time.monotonic()
        if now - self._asked_for_pass_at > PASS_INTERVAL:
            self._asked_for_pass_at = now
            with suppress(BrokerUnreachable):
                tick(self._broker)

    def _conclude(self, work: Work[ClaimedMessage, MessagePayload], outcome: Decision) -> Conclusion:
        attempt = self._attempts.get(work.attempt.item.claim)
        if attempt is not None and attempt.conclusion is not None:
            return attempt.conclusion
        return super()._conclude(work, outcome)

    def _call_function(self, attempt: MessageAttempt) -> None:
        """Has the application's function take a message in the transaction that concludes it: both happen, or neither.

        While the function runs nothing of ours is locked: it may wait for whatever an application holds that waits for
        the item meanwhile. Where somebody holds the item afterwards, all is rolled back, and tried again.
        """
        call = partial(self._try_function, attempt)
        for turn in range(TRIES):
            if wait_for_database(call, self._broker.stopping):
                return
            time.sleep(HELD_PAUSE * 2**turn)
        attempt.judge(Ruling(Verdict.RETRY, Scope.MESSAGE, Phase.REQUEST, reply="somebody else held the message"))

    def _try_function(self, attempt: MessageAttempt) -> bool:
        message = attempt.item
        decision = Decision.of(message, [(message.recipients[0], TAKEN)])
        conclusions = self._conclusions_of(message)
        try:
            with self._database.transaction(FUNCTION_LIMITS) as cursor:
                conclusion = _take(cursor, message, decision, conclusions)
        except _Held:
            return False
        except DatabaseUnreachable as failure:
            if (refusal := refusal_behind(failure)) is None:
                raise
            attempt.judge(ruling_on(refusal))
            return True
        except psycopg2.Error as failure:
            attempt.judge(ruling_on(failure))
            return True
        attempt.conclusion = conclusion
        attempt.judge(TAKEN)
        conclusions.close_circuit_after(conclusion)
        return True


def _nowhere(_item_id: int, _job: Job) -> bool:
    """There is no dispatcher yet."""
    return False


class _Held(Exception):
    """Somebody else holds the item."""


def _take(cursor: Cursor, message: ClaimedMessage, decision: Decision, conclusions: MessageConclusions) -> Conclusion:
    """Has the function take a message, and concludes it, in the caller's transaction; mostly in one round trip.

    Raises:
        _Held: somebody else holds the item. The caller is to roll back.
        LostClaim: it is no longer this worker's. The same.
        psycopg2.Error: whatever the function fails of.
    """
    if decision.is_plain and not message.is_failing:
        if scheduled_messages.call_function_and_conclude(cursor, message, decision.results):
            return Conclusion(decision)
        raise LostClaim if scheduled_messages.try_lock_claimed(cursor, message) is False else _Held
    scheduled_messages.call_function(cursor, message)
    if scheduled_messages.try_lock_claimed(cursor, message) is None:
        raise _Held
    return conclusions.write(cursor, decision)
