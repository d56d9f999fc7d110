"""What is done with emails: claimed, rendered, delivered, concluded; many at once, and none at another's cost."""

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

import dramatiq

from actors.delivery.attempt import TOGETHER, Attempt, Judged, LostClaim, Records
from actors.delivery.composer import Composer, EmailPayload
from actors.delivery.conclude import Conclusion, Conclusions
from actors.delivery.decision import Decision
from actors.delivery.dispatcher import Dispatcher
from actors.delivery.in_flight import InFlightClaims
from actors.delivery.job import Job
from actors.delivery.journal import Journal
from actors.delivery.lanes import Blocking
from actors.delivery.report import report, report_lost_claim, report_render_failures
from actors.delivery.thread_pool import ThreadPool
from actors.queue.batching import BatchedMessage
from actors.queue.broker import PostgresBroker
from actors.queue.consumer import ClaimedMessage
from actors.queue.waiting import wait_for_database
from actors.ruling import Ruling, Scope
from models import emails
from models.database.connections import Database
from models.emails import ClaimedEmail
from models.errors import DatabaseUnreachable

logger = logging.getLogger(__name__)

#: Threads that look why an email could not be claimed.
LEAVING: Final = 2

#: Seconds, about, for which an email whose template takes long is put off while too many of that sort are rendered.
POSTPONED: Final = 30.0

#: Milliseconds until a row that another transaction holds is looked at again.
BUSY_DELAY: Final = 1_000


@dataclass(eq=False, slots=True)
class Work:
    """A claimed email, whose job it is, and the broker message that it came by, if any.

    Attributes:
        journalled: how many of the attempt's rulings are in the journal.
    """

    attempt: Attempt
    job: Job
    message: ClaimedMessage | None
    journalled: int = 0

    @property
    def is_unread(self) -> bool:
        """Whether its users are still to be read."""
        return self.attempt.is_unread

    @property
    def is_plain(self) -> bool:
        """Whether it moves to the ledger, and nothing else changes."""
        return decision_on(self.attempt.email, self.attempt.judged).is_plain

    @property
    def has_route_failed(self) -> bool:
        """Whether the relay, or our settings for it, have failed."""
        return any(each.ruling.scope is Scope.RELAY for each in self.attempt.judged)


#: Delivers emails.
EmailDispatcher: TypeAlias = Dispatcher[Work, EmailPayload]


class EmailWork:
    """What the dispatcher does with emails: claim, render, deliver, conclude.

    Args:
        database: where the emails are.
        broker: which messages they come by.
        in_flight: what this process has claimed.
        journal: what relays have said is in it before anything else is done about it.
        composer: makes copies.
        records: what attempts read and write under way.
        conclusions: writes down what came of them.
        way: the route that they are sent by.
        disabled: nothing is claimed.
    """

    def __init__(
        self,
        database: Database,
        broker: PostgresBroker,
        in_flight: InFlightClaims,
        journal: Journal,
        composer: Composer,
        records: Records,
        conclusions: Conclusions,
        *,
        way: str,
        disabled: bool,
    ) -> None:
        self._way = way
        self._database = database
        self._broker = broker
        self._in_flight = in_flight
        self._journal = journal
        self._composer = composer
        self._records = records
        self._conclusions = conclusions
        self._disabled = disabled
        self._leaving = ThreadPool("duepost-leaving", LEAVING)

    def claim(self, jobs: Sequence[tuple[int, Job]]) -> list[Work]:
        """Claims emails in one statement; of two jobs for one email the first has it."""
        try:
            claimed = self._claimed([email_id for email_id, _ in jobs])
        except DatabaseUnreachable as failure:
            for _, job in jobs:
                self._end_unclaimed(job, of_its_own(failure))
            return []
        except Exception as failure:  # noqa: BLE001 - one email's failure is no other's
            if len(jobs) > 1:
                return [work for each in jobs for work in self.claim([each])]
            self._end_unclaimed(jobs[0][1], failure)
            return []
        works = []
        for email_id, job in jobs:
            email = claimed.pop(email_id, None)
            if email is None and is_hint(job.run(self._current_message)):
                # Somebody else has it, or has changed it. What is still due is found by a pass of the scheduler.
                job.end()
            elif email is None:
                self._leaving.submit(partial(ended, job, partial(job.run, self._release, email_id)))
            else:
                works.append(Work(self.attempt(email), job, job.run(self._current_message)))
        return works

    def _end_unclaimed(self, job: Job, failure: BaseException) -> None:
        """Ends a job whose email could not be claimed. A hint's is logged only: a pass's message tells of it, once."""
        if is_hint(job.run(self._current_message)):
            logger.warning("An email that is due could not be claimed: %s; a pass is to do it.", name_of(failure))
            job.end()
        else:
            job.end(failure)

    def _claimed(self, email_ids: list[int]) -> dict[int, ClaimedEmail]:
        if self._disabled:
            return {}
        worker_id = self._broker.worker_session.worker_id
        self._journal.begin(worker_id)
        return {email.id: email for email in self._in_flight.claim(self._database, email_ids, worker_id, self._way)}

    def attempt(self, email: ClaimedEmail) -> Attempt:
        """An attempt at a claimed email that is about to begin."""
        return Attempt(email, self._composer, self._records)

    def read(self, works: Sequence[Work]) -> None:
        """Reads the users of what was claimed together; where that takes too long, each goes on to be read alone."""
        with suppress(emails.TooSlow):
            found = self._records.read_all([work.attempt.email for work in works], TOGETHER)
            for work, email in zip(works, found, strict=True):
                work.attempt.know(email)

    def advance(self, work: Work) -> EmailPayload | Blocking | None:
        """What comes next for an email."""
        return work.attempt.advance()

    def take(self, work: Work, rulings: Mapping[str, Ruling]) -> None:
        """What the relay has made of one copy; the journal has it first."""
        work.attempt.take(rulings)
        attempt, message = work.attempt, work.message
        said = {each.recipient.user_id: each.ruling for each in attempt.judged[work.journalled :]}
        work.journalled = len(attempt.judged)
        hint = message.claim if message and message.is_stored else None
        self._journal.append(attempt.email.id, attempt.email.claim, hint, said)

    def conclude(self, works: Sequence[Work]) -> list[Work]:
        """Concludes plain ones in one statement."""
        outcomes = [(work, decision_on(work.attempt.email, work.attempt.judged)) for work in works]
        try:
            plain = [(outcome, work.message) for work, outcome in outcomes]
            done = wait_for_database(partial(self._conclusions.conclude_together, plain), self._broker.stopping)
        except Exception as failure:  # noqa: BLE001 - what fails together is tried alone
            logger.warning("%d conclusions failed together: %s; each is tried alone", len(works), name_of(failure))
            return list(works)
        for work, outcome in outcomes:
            if work.attempt.email.id in done:
                ended(work.job, partial(self._concluded, work, Conclusion(outcome)))
        return [work for work in works if work.attempt.email.id not in done]

    def conclude_alone(self, work: Work) -> None:
        """Concludes one, whatever came of it."""
        outcome = decision_on(work.attempt.email, work.attempt.judged)
        ended(work.job, partial(self._conclude_alone, work, outcome))

    def release(self, works: Sequence[Work]) -> None:
        """Sending → scheduled for what was claimed and not begun: that is no attempt, its place in line is kept."""
        claimed = [work.attempt.email for work in works]
        released: set[int] = set()
        try:
            released = wait_for_database(partial(emails.give_back, self._database, claimed), self._broker.stopping)
        except Exception as failure:  # noqa: BLE001 - what fails together is tried alone
            logger.warning("%d claims could not be given back together: %s", len(works), name_of(failure))
        for work in works:
            if work.attempt.email.id in released:
                ended(work.job, partial(self._drop, work.attempt.email.claim))
            else:
                # Together it failed: each is tried alone, and others are not kept waiting.
                self._leaving.submit(partial(ended, work.job, partial(self._return_alone, work.attempt.email)))

    def postpone(self, work: Work) -> None:
        """Sending → scheduled for a while: no attempt is counted."""
        ended(work.job, partial(self._postpone, work.attempt.email))

    def fail(self, work: Work, failure: BaseException) -> None:
        """Something else than the relay went wrong."""
        self._in_flight.drop(work.attempt.email.claim)
        if isinstance(failure, LostClaim):
            self._journal.forget(work.attempt.email.claim)
            ended(work.job, partial(work.job.run, report_lost_claim, work.attempt.email))
        else:
            work.job.end(of_its_own(failure))

    def _conclude_alone(self, work: Work, outcome: Decision) -> None:
        try:
            conclusion = work.job.run(self._conclusions.conclude, outcome)
            self._report(work, conclusion)
        except LostClaim:
            work.job.run(report_lost_claim, work.attempt.email)
        finally:
            self._in_flight.drop(work.attempt.email.claim)
        self._journal.forget(work.attempt.email.claim)

    def _drop(self, claim: int) -> None:
        """The database has what came of a claim, or it is given up."""
        self._in_flight.drop(claim)
        self._journal.forget(claim)

    def _current_message(self) -> ClaimedMessage | None:
        """The broker message in process."""
        return self._broker.message_in_process

    def _concluded(self, work: Work, conclusion: Conclusion) -> None:
        self._drop(work.attempt.email.claim)
        self._report(work, conclusion)

    def _report(self, work: Work, conclusion: Conclusion) -> None:
        """Tells an operator what there is to tell, in the message's own context."""
        work.job.run(report, conclusion)
        work.job.run(report_render_failures, work.attempt.email, work.attempt.failures)

    def _release(self, email_id: int) -> None:
        """An email that could not be claimed: its message goes where nothing may be sent now, or it has expired.

        Raises:
            dramatiq.Retry: another transaction holds the row just now.
        """
        with self._database.transaction() as cursor:
            if not self._disabled and (
                emails.expire(cursor, email_id) or not emails.is_claimable(cursor, email_id, self._way)
            ):
                emails.release(cursor, email_id)
                return
        if not self._disabled:
            raise dramatiq.errors.Retry("another transaction holds the row", delay=BUSY_DELAY)

    def _return_alone(self, email: ClaimedEmail) -> None:
        """Sending → scheduled for one of which nothing was sent."""
        try:
            wait_for_database(partial(emails.give_back, self._database, [email]), self._broker.stopping)
        finally:
            self._drop(email.claim)

    def _postpone(self, email: ClaimedEmail) -> None:
        """Sending → scheduled, due again in a while, without an attempt: too many templates take long just now."""

        def write() -> None:
            with self._database.transaction() as cursor:
                emails.conclude_later(
                    cursor,
                    email,
                    pause=POSTPONED * random.uniform(0.5, 1.5),  # noqa: S311 - jitter is no secret
                    counted=False,
                    mailbox_full=False,
                    error="render: waits for its turn: too many templates take long just now",
                )

        try:
            wait_for_database(write, self._broker.stopping)
        finally:
            self._drop(email.claim)


class EmailInbox:
    """Messages in this process's memory that ask for emails to be delivered.

    Args:
        broker: in whose workers' memory.
        actor_name: the actor that they are for.
    """

    def __init__(self, broker: PostgresBroker, actor_name: str) -> None:
        self._broker = broker
        self._actor_name = actor_name

    def has_more(self) -> bool:
        """Whether one may wait."""
        return self._broker.has_more(self._actor_name)

    def next(self) -> tuple[int, BatchedMessage] | None:
        """Takes the next one: its email's id, and its job."""
        while (batched := self._broker.next_batched(self._actor_name)) is not None:
            match batched.message.args:
                case (int() as email_id,):
                    return email_id, batched
            batched.end(TypeError("the message names no email"))
        return None


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


def decision_on(email: ClaimedEmail, judged: Sequence[Judged]) -> Decision:
    """What an attempt came to."""
    return Decision.of(email, [(each.recipient, each.ruling) for each in judged])
