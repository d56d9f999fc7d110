"""What the dispatcher does with items of any channel, in order: claim, attempt, conclude.

What one of them raises ends that one's job, and no other's.
"""

import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

import dramatiq
import psycopg2

from actors.alerts.traces import Step, Trace, Traces
from actors.channels.channel import Payload
from actors.delivery.conclude import Conclusion, Conclusions
from actors.delivery.conditions import LIMITS, KeptAttempt, NotClaimed, Speeds, described, ruling_on, rulings_on
from actors.delivery.decision import Decision, Judged
from actors.delivery.in_flight import InFlightClaims, LostClaim
from actors.delivery.job import Job
from actors.delivery.journal import Journal
from actors.delivery.lanes import Blocking
from actors.delivery.report import count, report, report_lost_claim, trace
from actors.delivery.thread_pool import ThreadPool
from actors.metrics import WorkerMetrics
from actors.queue.broker import PostgresBroker
from actors.queue.consumer import ClaimedMessage
from actors.queue.waiting import wait_for_database
from actors.ruling import Ruling
from models import emails
from models.database.connections import Cursor, Database, refusal_behind
from models.errors import DatabaseUnreachable
from models.items import Checked, Claimed, Kept
from models.kept_content import Copy
from models.words import Priority

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=Claimed)
C_co = TypeVar("C_co", bound=Claimed, covariant=True)
P_co = TypeVar("P_co", bound=Payload, covariant=True)
A = TypeVar("A", bound="Attempt[Claimed, Payload]")

#: Threads that look why an email could not be claimed.
LEAVING: Final = 2

#: Seconds, about, for which an email whose template takes long is put off while too many of that sort are rendered.
POSTPONED: Final = 30.0

#: Milliseconds until a row that another transaction holds is looked at again.
BUSY_DELAY: Final = 1_000


class Attempt(Protocol[C_co, P_co]):
    """One attempt at a claimed item. One thread at a time has it; `advance` and `take` never wait."""

    @property
    def item(self) -> C_co:
        """The claimed item that is attempted."""

    @property
    def judged(self) -> Sequence[Judged]:
        """What has come of it so far."""

    @property
    def copies(self) -> Sequence[Copy]:
        """What was sent and is to be kept."""

    @property
    def is_unread(self) -> bool:
        """Whether something of it is still to be read, together with others."""

    @property
    def has_route_failed(self) -> bool:
        """Whether the dispatcher's one route, or our settings for it, have failed."""

    @property
    def is_concluded_alone(self) -> bool:
        """Whether more is to be written than that it is over, whatever came of it."""

    def advance(self) -> P_co | Blocking | None:
        """What comes next; nothing where it is over."""

    def take(self, rulings: Mapping[str, Ruling]) -> None:
        """What the channel has made of the payload."""

    def report(self) -> None:
        """Tells an operator what there is to tell of it but its conclusion."""


class Refusable(Attempt[C_co, P_co], Protocol[C_co, P_co]):
    """An attempt of which something can come before anything is made."""

    def refuse(self, ruling: Ruling) -> None:
        """That came of it, for all whom it is for."""

    def keep_waiting(self, rulings: Mapping[str, Ruling]) -> None:
        """That came of it for these users: they are to get nothing now."""


class Work(Generic[C_co, P_co]):
    """A claimed item, whose job it is, and the broker message that it came by, if any.

    Attributes:
        journalled: how many of the attempt's rulings are in the journal.
        begun_at: when it was claimed, by the monotonic clock.
        trace: when its steps ended; None where it is not traced.
    """

    __slots__ = ("attempt", "begun_at", "job", "journalled", "message", "trace")

    def __init__(
        self, attempt: Attempt[C_co, P_co], job: Job, message: ClaimedMessage | None, trace: Trace | None = None
    ) -> None:
        self.attempt = attempt
        self.job = job
        self.message = message
        self.journalled = 0
        self.begun_at = time.monotonic()
        self.trace = trace

    @property
    def is_unread(self) -> bool:
        """Whether something is still to be read."""
        return self.attempt.is_unread

    @property
    def is_plain(self) -> bool:
        """Whether it moves to the ledger, and nothing else changes."""
        return not self.attempt.is_concluded_alone and decision_on(self.attempt).is_plain

    @property
    def has_route_failed(self) -> bool:
        """Whether the route, or our settings for it, have failed."""
        return self.attempt.has_route_failed

    @property
    def is_urgent(self) -> bool:
        """Whether it goes ahead of others."""
        return self.attempt.item.priority == Priority.URGENT


class Shared(NamedTuple):
    """What the work of all channels of a process shares.

    Attributes:
        database: where the items are.
        broker: which messages they come by.
        in_flight: what this process has claimed.
        journal: what was answered is in it before anything else is done about it.
        disabled: nothing is claimed.
        metrics: what counts; None where nobody asks.
        traces: chooses attempts to be traced.
    """

    database: Database
    broker: PostgresBroker
    in_flight: InFlightClaims
    journal: Journal
    disabled: bool
    metrics: WorkerMetrics | None = None
    traces: Traces = Traces(0.0)


class ItemWork(ABC, Generic[C, P_co]):
    """What the dispatcher does with items: claim, attempt, conclude. A channel says how they are claimed and attempted.

    Args:
        shared: what it shares with others.
        way: the route that they leave by; None where each has its own.
    """

    def __init__(self, shared: Shared, way: str | None) -> None:
        self._way = way
        self._database = shared.database
        self._broker = shared.broker
        self._in_flight = shared.in_flight
        self._journal = shared.journal
        self._disabled = shared.disabled
        self._metrics = shared.metrics
        self._traces = shared.traces
        self._leaving = ThreadPool("duepost-leaving", LEAVING)
        self._speeds = Speeds()

    @abstractmethod
    def _claim(
        self, item_ids: Sequence[int], worker_id: int, keep: Callable[[Kept], None] = lambda _: None
    ) -> Sequence[C]:
        """Claims items in one statement; `keep` is given those whose conditions are to be asked first.

        Raises:
            DatabaseUnreachable: nobody knows whether they are claimed.
        """

    @abstractmethod
    def _claim_apart(self, cursor: Cursor, item_id: int, worker_id: int) -> C | None:
        """Claims one whose conditions have been asked in this transaction; None where it may not be sent."""

    @abstractmethod
    def _unclaimed(self, kept: Kept) -> C:
        """An item of which no more is known than that it was kept."""

    @abstractmethod
    def attempt(self, item: C) -> Refusable[C, P_co]:
        """An attempt at a claimed item that is about to begin."""

    @abstractmethod
    def _conclusions_of(self, item: C) -> Conclusions:
        """What writes down what came of it."""

    def read(self, works: Sequence[Work[C, P_co]]) -> None:
        """Reads the rest of items that were claimed together."""

    def _defer(self, jobs: Sequence[tuple[int, Job]]) -> Sequence[tuple[int, Job]]:
        """Ends the jobs whose turn it is not yet; returns the others."""
        return jobs

    def claim(self, jobs: Sequence[tuple[int, Job]]) -> list[Work[C, P_co]]:
        """Claims items in one statement; of two jobs for one item the first has it."""
        kept: dict[int, Kept] = {}
        try:
            jobs = self._defer(jobs)
            claimed = self._claimed([item_id for item_id, _ in jobs], lambda each: kept.update({each.id: each}))
        except DatabaseUnreachable as failure:
            for _, job in jobs:
                self._end_unclaimed(job, of_its_own(failure))
            return []
        except Exception as failure:  # noqa: BLE001 - one item's failure is no other's
            if len(jobs) > 1:
                return [work for each in jobs for work in self.claim([each])]
            self._end_unclaimed(jobs[0][1], failure)
            return []
        works, apart = [], []
        for item_id, job in jobs:
            item = claimed.pop(item_id, None)
            if item_id in kept:
                apart.append((kept.pop(item_id), job))
            elif item is None and is_hint(job.run(self._current_message)):
                # Somebody else has it, or has changed it. A pass of the scheduler finds it if it is still due.
                job.end()
            elif item is None:
                self._leaving.submit(partial(ended, job, partial(job.run, self._release, item_id)))
            else:
                works.append(Work(self.attempt(item), job, job.run(self._current_message), self._traces.begin()))
        return works + self._works_of_kept(apart)

    def _works_of_kept(self, kept: Sequence[tuple[Kept, Job]]) -> list[Work[C, P_co]]:
        """Has the conditions of items asked, and each claimed by itself; puts those off that there is no room for."""
        works: list[Work[C, P_co]] = []
        put_off = []
        for each, job in kept:
            seconds = self._speeds.admit(each.kind)
            if seconds:
                put_off.append((each, job, seconds))
            else:
                works.append(self._work_of_kept(each, job))
        if put_off:
            # Where that fails they are due again in some seconds.
            with suppress(DatabaseUnreachable, psycopg2.Error):
                emails.put_off(self._database, [(each, seconds) for each, _, seconds in put_off])
        for _, job, _ in put_off:
            job.end()
        return works

    def _work_of_kept(self, kept: Kept, job: Job) -> Work[C, P_co]:
        work: Work[C, P_co]

        def claim() -> None:
            self._ask_and_claim(kept, work)

        attempt: KeptAttempt[C, P_co] = KeptAttempt(self._unclaimed(kept), self._speeds, claim)
        work = Work(attempt, job, job.run(self._current_message))
        return work

    def _ask_and_claim(self, kept: Kept, work: Work[C, P_co]) -> None:
        """Asks an item's conditions, and claims it in the same transaction: its work goes on with an attempt at it.

        Raises:
            NotClaimed: it is not to be sent, or not now.
            DatabaseUnreachable: the database is away.
        """
        begun, failure = time.monotonic(), None
        try:
            item, checked = self._try_to_claim(kept, None)
        except DatabaseUnreachable as error:
            failure = refusal_behind(error)
            if failure is None:
                raise
        except psycopg2.Error as error:
            failure = error
        finally:
            _leave_place(work.attempt, time.monotonic() - begun)
        if failure is not None:
            item, checked = self._try_to_claim(kept, described(failure))
        if item is None:
            raise NotClaimed
        attempt = self.attempt(item)
        if checked.answer == "failed":
            attempt.refuse(ruling_on(checked.said or ""))
        elif checked.waits:
            attempt.keep_waiting(rulings_on(checked.waits))
        work.attempt, work.trace = attempt, self._traces.begin()

    def _try_to_claim(self, kept: Kept, failure: str | None) -> tuple[C | None, Checked]:
        worker_id = self._broker.worker_session.worker_id
        self._journal.begin(worker_id)

        def claim(hold: Callable[[int], None]) -> tuple[C | None, Checked]:
            item = None
            with self._database.transaction(LIMITS) as cursor:
                checked = emails.check_conditions(cursor, kept, failure)
                if checked.answer in {"send", "failed"}:
                    item = self._claim_apart(cursor, kept.id, worker_id)
                if item is not None:
                    hold(item.claim)
            return item, checked

        return self._in_flight.claim_apart(self._database, claim)

    def _end_unclaimed(self, job: Job, failure: BaseException) -> None:
        """Ends a job whose email could not be claimed. A hint's is logged only: a pass's message tells of it, once."""
        if is_hint(job.run(self._current_message)):
            logger.warning("Due items could not be claimed: %s; a pass is to do it.", name_of(failure))
            job.end()
        else:
            job.end(failure)

    def _claimed(self, item_ids: list[int], keep: Callable[[Kept], None]) -> dict[int, C]:
        if self._disabled or not item_ids:
            return {}
        worker_id = self._broker.worker_session.worker_id
        self._journal.begin(worker_id)
        return {item.id: item for item in self._claim(item_ids, worker_id, keep)}

    def advance(self, work: Work[C, P_co]) -> P_co | Blocking | None:
        """What comes next for an item."""
        step = work.attempt.advance()
        if work.trace is not None and step is not None and not isinstance(step, Blocking):
            work.trace.end(Step.RENDER)
        return step

    def take(self, work: Work[C, P_co], rulings: Mapping[str, Ruling]) -> None:
        """What was answered; the journal has it first."""
        if work.trace is not None:
            work.trace.end(Step.DIALOGUE)
        work.attempt.take(rulings)
        attempt, message = work.attempt, work.message
        said = {each.recipient.key: each.ruling for each in attempt.judged[work.journalled :]}
        work.journalled = len(attempt.judged)
        hint = message.claim if message and message.is_stored else None
        self._journal.append(attempt.item.id, attempt.item.claim, hint, said)

    def conclude(self, works: Sequence[Work[C, P_co]]) -> list[Work[C, P_co]]:
        """Concludes plain ones in one statement."""
        outcomes = [(work, decision_on(work.attempt)) for work in works]
        try:
            plain = [(outcome, work.message) for work, outcome in outcomes]
            together = self._conclusions_of(works[0].attempt.item).conclude_together
            done = wait_for_database(partial(together, plain), self._broker.stopping)
        except Exception as failure:  # noqa: BLE001 - what fails together is tried alone
            logger.warning("%d conclusions failed together: %s; each is tried alone", len(works), name_of(failure))
            return list(works)
        for work, outcome in outcomes:
            if work.attempt.item.id in done:
                ended(work.job, partial(self._concluded, work, Conclusion(outcome)))
        return [work for work in works if work.attempt.item.id not in done]

    def conclude_alone(self, work: Work[C, P_co]) -> None:
        """Concludes one, whatever came of it."""
        outcome = decision_on(work.attempt)
        ended(work.job, partial(self._conclude_alone, work, outcome))

    def release(self, works: Sequence[Work[C, P_co]]) -> None:
        """Sending → scheduled for what was claimed and not begun: that is no attempt, its place in line is kept.

        What has begun, as some of its recipients have been attempted, is concluded as far as it has come.
        """
        for work in works:
            _leave_place(work.attempt)
            if work.attempt.judged:
                self._leaving.submit(partial(self.conclude_alone, work))
        works = [work for work in works if not work.attempt.judged]
        claimed = [work.attempt.item for work in works]
        released: set[int] = set()
        try:
            released = wait_for_database(
                partial(emails.return_unstarted, self._database, claimed), self._broker.stopping
            )
        except Exception as failure:  # noqa: BLE001 - what fails together is tried alone
            logger.warning("%d claims could not be returned together: %s", len(works), name_of(failure))
        for work in works:
            if work.attempt.item.id in released:
                ended(work.job, partial(self._drop, work.attempt.item))
            else:
                # Together it failed: each is tried alone, and others are not kept waiting.
                self._leaving.submit(partial(ended, work.job, partial(self._return_alone, work.attempt.item)))

    def _wait_as_scheduled(self, works: Sequence[Work[C, P_co]], give_turns: Callable[[Sequence[C]], set[int]]) -> None:
        """Sending → scheduled for those that are given turns, which `give_turns` says of claims.

        What has begun, as some of its recipients have been attempted, is released as far as it has come.
        """
        fresh = [work for work in works if not work.attempt.judged]
        given = give_turns([work.attempt.item for work in fresh]) if fresh else set()
        for work in fresh:
            if work.attempt.item.id in given:
                ended(work.job, partial(self._drop, work.attempt.item))
        # Rows that somebody holds: none is waited for, and they keep their place in line.
        if left := [work for work in works if work.attempt.item.id not in given]:
            self.release(left)

    def postpone(self, work: Work[C, P_co]) -> None:
        """Sending → scheduled for a while: no attempt is counted, unless it has begun."""
        if work.attempt.judged:
            self.conclude_alone(work)
        else:
            ended(work.job, partial(self._postpone, work.attempt.item))

    def fail(self, work: Work[C, P_co], failure: BaseException) -> None:
        """Something else than the relay went wrong."""
        _leave_place(work.attempt)
        self._let_go(work.attempt.item)
        if isinstance(failure, NotClaimed):
            self._leave(work)
        elif isinstance(failure, LostClaim):
            self._journal.forget(work.attempt.item.claim)
            ended(work.job, partial(work.job.run, report_lost_claim, work.attempt.item))
        else:
            work.job.end(of_its_own(failure))

    def _leave(self, work: Work[C, P_co]) -> None:
        """Ends the job of an item that is not to be sent, or not now."""
        if work.message is None or not work.message.is_stored:
            work.job.end()
        else:
            ended(work.job, partial(work.job.run, self._release, work.attempt.item.id))

    def _conclude_alone(self, work: Work[C, P_co], outcome: Decision) -> None:
        try:
            conclusion = self._conclude(work, outcome)
            self._report(work, conclusion)
        except LostClaim:
            work.job.run(report_lost_claim, work.attempt.item)
        finally:
            self._let_go(work.attempt.item)
        self._journal.forget(work.attempt.item.claim)

    def _let_go(self, item: C) -> None:
        """This process works on a claim no more."""
        self._in_flight.drop(item.claim)

    def _drop(self, item: C) -> None:
        """The database has what came of a claim, or it is given up."""
        self._let_go(item)
        self._journal.forget(item.claim)

    def _conclude(self, work: Work[C, P_co], outcome: Decision) -> Conclusion:
        """Commits what came of an item.

        Raises:
            LostClaim: it is no longer this worker's.
        """
        return work.job.run(self._conclusions_of(work.attempt.item).conclude, outcome)

    def _current_message(self) -> ClaimedMessage | None:
        """The broker message in process."""
        return self._broker.message_in_process

    def _concluded(self, work: Work[C, P_co], conclusion: Conclusion) -> None:
        self._drop(work.attempt.item)
        self._report(work, conclusion)

    def _report(self, work: Work[C, P_co], conclusion: Conclusion) -> None:
        """Counts, and tells an operator what there is to tell, in the message's own context."""
        if self._metrics is not None:
            count(self._metrics, conclusion, self._way, time.monotonic() - work.begun_at)
        if work.trace is not None:
            work.trace.end(Step.CONCLUDE)
            trace(work.trace, conclusion, self._way)
        work.job.run(report, conclusion)
        work.job.run(work.attempt.report)

    def _release(self, item_id: int) -> None:
        """An item that could not be claimed: its message goes where nothing may be sent now, or it has expired.

        Raises:
            dramatiq.Retry: another transaction holds the row just now.
        """
        with self._database.transaction() as cursor:
            if not self._disabled and (
                emails.expire(cursor, item_id) or not emails.is_claimable(cursor, item_id, self._way)
            ):
                emails.release(cursor, item_id)
                return
        if not self._disabled:
            raise dramatiq.errors.Retry("another transaction holds the row", delay=BUSY_DELAY)

    def _return_alone(self, item: C) -> None:
        """Sending → scheduled for one of which nothing was sent."""
        try:
            wait_for_database(partial(emails.return_unstarted, self._database, [item]), self._broker.stopping)
        finally:
            self._drop(item)

    def _postpone(self, item: C) -> None:
        """Sending → scheduled, due again in a while, without an attempt: too many templates take long just now."""

        def write() -> None:
            with self._database.transaction() as cursor:
                emails.conclude_later(
                    cursor,
                    item,
                    pause=POSTPONED * random.uniform(0.5, 1.5),  # noqa: S311 - jitter is no secret
                    counted=False,
                    mailbox_full=False,
                    error="render: waits for its turn: too many templates take long just now",
                )

        try:
            wait_for_database(write, self._broker.stopping)
        finally:
            self._drop(item)


def _leave_place(attempt: Attempt[Claimed, Payload], seconds: float | None = None) -> None:
    """Lets another item of the kind be asked about, where this one was waiting for that."""
    if isinstance(attempt, KeptAttempt):
        attempt.leave(seconds)


def name_of(failure: BaseException) -> str:
    """An exception's type, for a log line: its text may hold values of a row."""
    return type(failure).__name__


def is_hint(message: ClaimedMessage | None) -> bool:
    """Whether a message is stored nowhere: then nobody counts on what it asks for."""
    return message is not None and not message.is_stored


def ended(job: Job, action: Callable[[], None]) -> None:
    """Does the last of a job, and ends it, with what was raised."""
    try:
        action()
    except BaseException as failure:  # noqa: BLE001 - the job's own thread, or Dramatiq's middleware, is to see it
        job.end(failure)
    else:
        job.end()


def of_its_own(failure: BaseException) -> BaseException:
    """An exception that several threads can raise: each has a traceback of its own."""
    try:
        own = type(failure)(*failure.args)
    except Exception:  # noqa: BLE001 - not every class can be made of its arguments
        return failure
    own.__cause__ = failure.__cause__
    return own


def decision_on(attempt: Attempt[Claimed, Payload]) -> Decision:
    """What an attempt came to."""
    return Decision.of(attempt.item, [(each.recipient, each.ruling) for each in attempt.judged], attempt.copies)
