"""The sender: claim, render, deliver, conclude."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import dramatiq
import psycopg2

from actors import reporting
from actors.company import Companion
from actors.conclusion import Conclusion
from actors.consumer import ClaimedMessage
from actors.crew import Crew, Job
from actors.delivery import Delivery, Judged, LostClaim
from actors.holdings import Holdings
from actors.pauses import FIRST_PROBE, LONGEST_PROBE
from actors.refusals import DEAD_IN_A_ROW, is_everybody_refused
from actors.rendering import RenderError
from actors.runtime import broker, database, relay_connection
from actors.settings import settings
from actors.smtp.connection import Connection, Envelope
from actors.smtp.dialogue import Script
from actors.smtp.verdicts import Ruling
from actors.waiting import BrokerUnreachable, wait_for_database
from models import control, emails, undeliverable
from models.database import Cursor
from models.emails import ClaimedEmail
from models.errors import DatabaseUnreachable
from models.words import State

logger = logging.getLogger(__name__)

#: The scheduler's name as an actor: the sender asks it for a pass.
SCHEDULER = "enqueue_due_emails"

#: Messages in hand for each connection to the relay: some are being sent, some claimed, some read ahead.
IN_HAND = 4

#: Of the messages of emails that are on time, and of those that are late: the lower goes first.
PRIORITY, LATE_PRIORITY = 10, 20

#: Threads that write down what is not plain.
OTHERS = 4

#: Milliseconds until a row that another transaction holds is looked at again.
BUSY_DELAY = 1_000


holdings = Holdings()


@dramatiq.actor(
    broker=broker,
    queue_name="duepost_send",
    priority=PRIORITY,
    lesser_priorities=(LATE_PRIORITY,),
    max_retries=None,
    min_backoff=1_000,
    max_backoff=60_000,
    company=IN_HAND * settings().smtp_connections,
)
def send_email(email_id: int) -> None:
    """Delivers one scheduled email, if it is still to be sent."""
    crew.do(email_id)


@dataclass(eq=False, slots=True)
class Work:
    """A claimed email, whose job it is, and the broker message that it came by, if any."""

    delivery: Delivery
    job: Job
    message: ClaimedMessage | None


class Senders:
    """What a crew does: claim, render, deliver, conclude.

    What may have to wait for a row that an application holds is left to other threads while there is company.
    """

    def __init__(self) -> None:
        self._others = ThreadPoolExecutor(OTHERS, "duepost-conclusion")

    def begin(self, jobs: Sequence[tuple[int, Job]], *, in_company: bool) -> list[Work]:
        """Claims emails in one statement; of two jobs for one email the first has it."""
        try:
            if settings().disabled:
                claimed = {}
            else:
                found = holdings.claim(database, [email_id for email_id, _ in jobs], broker.attendance.worker_id)
                claimed = {email.id: email for email in found}
        except DatabaseUnreachable as failure:
            for _, job in jobs:
                job.end(of_its_own(failure))
            return []
        except psycopg2.Error as failure:
            if len(jobs) > 1:
                # One email's failure is no other's.
                return [work for each in jobs for work in self.begin([each], in_company=True)]
            jobs[0][1].end(failure)
            return []
        works = []
        for email_id, job in jobs:
            email = claimed.pop(email_id, None)
            if email is None:
                self._end(job, partial(job.run, leave, email_id), in_company=in_company)
                continue
            works.append(Work(Delivery(email), job, job.run(current_message)))
        return works

    def script(self, work: Work, connection: Connection, following: Callable[[], Envelope | None]) -> Script[None]:
        """Attempts each recipient."""
        return work.delivery.script(connection, following)

    def prepare(self, work: Work) -> Envelope | None:
        """What its script will say first, if that is known without waiting."""
        return work.delivery.prepare()

    def conclude(self, works: Sequence[Work], *, in_company: bool) -> None:
        """Concludes those that are plain in one statement, and the others one by one."""
        outcomes = [(work, conclusion_of(work.delivery.email, work.delivery.judged)) for work in works]
        plain = [(outcome, work.message) for work, outcome in outcomes if outcome.is_plain]
        done: set[int] = set()
        if len(plain) > 1:
            with suppress(psycopg2.Error, BrokerUnreachable):
                # What fails here is tried alone.
                done = wait_for_database(partial(conclude_each, plain), broker.stopping)
        for work, outcome in outcomes:
            is_done = work.delivery.email.id in done
            action = partial(self._conclude, work, outcome, is_done=is_done)
            self._end(work.job, action, in_company=in_company and not is_done)

    def fail(self, work: Work, failure: BaseException) -> None:
        """Something else than the relay went wrong."""
        holdings.drop(work.delivery.email.claim)
        if isinstance(failure, LostClaim):
            work.job.run(report_lost_claim, work.delivery.email)
            work.job.end()
        else:
            work.job.end(of_its_own(failure))

    def take_along(self) -> tuple[int, Companion] | None:
        """The next message in this process's memory."""
        companion = broker.take_along(send_email.actor_name)
        return None if companion is None else (companion.message.args[0], companion)

    def _end(self, job: Job, action: Callable[[], None], *, in_company: bool) -> None:
        if in_company:
            self._others.submit(ended, job, action)
        else:
            ended(job, action)

    def _conclude(self, work: Work, outcome: Conclusion, *, is_done: bool) -> None:
        try:
            if is_done:
                for report in outcome.reports():
                    work.job.run(report)
            else:
                work.job.run(conclude_outcome, outcome)
            if work.delivery.failures:
                work.job.run(report_new, work.delivery.email, work.delivery.failures)
        except LostClaim:
            work.job.run(report_lost_claim, work.delivery.email)
        finally:
            holdings.drop(work.delivery.email.claim)


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
    own = type(failure)(*failure.args)
    own.__cause__ = failure.__cause__
    return own


def current_message() -> ClaimedMessage | None:
    """The broker message in process."""
    return broker.message_in_process


def report_lost_claim(email: ClaimedEmail) -> None:
    """Says that a claim went to another worker while this one was away."""
    reporting.lost_claim(email.id, email.kind)


def claim(email_id: int) -> ClaimedEmail | None:
    """Queued → sending, in one short transaction; None where there is nothing to send.

    Raises:
        dramatiq.Retry: another transaction holds the row just now.
    """
    if not settings().disabled:
        for email in emails.claim(database, [email_id], broker.attendance.worker_id):
            return email
    leave(email_id)
    return None


def leave(email_id: int) -> None:
    """An email that could not be claimed: it goes back in line where nothing may be sent now, or has expired.

    Raises:
        dramatiq.Retry: another transaction holds the row just now.
    """
    disabled = settings().disabled
    with database.transaction() as cursor:
        if (not disabled and emails.expire(cursor, email_id)) or emails.release(cursor, email_id, anyway=disabled):
            return
        busy = not disabled and emails.is_claimable(cursor, email_id)
    if busy:
        raise dramatiq.errors.Retry("another transaction holds the row", delay=BUSY_DELAY)


def report_new(email: ClaimedEmail, failures: dict[str, RenderError]) -> None:
    """A template's failure is ours to mend: a line each time, an event when it is new; not for each user."""
    for text, failure in failures.items():
        reporting.render_error(email.id, email.kind, failure, is_new=text not in (email.last_error or ""))


def conclusion_of(email: ClaimedEmail, judged: Sequence[Judged]) -> Conclusion:
    """What an attempt came to."""
    return Conclusion.of(email, [(each.recipient, each.ruling) for each in judged])


def conclude(email: ClaimedEmail, judged: Sequence[Judged]) -> None:
    """Moves the row on, writes the journal and acknowledges the message, in one transaction.

    Raises:
        LostClaim: the row is no longer this worker's, and nothing was changed.
    """
    conclude_outcome(conclusion_of(email, judged))


def conclude_outcome(outcome: Conclusion) -> None:
    """The same for what it came to.

    Raises:
        LostClaim: the row is no longer this worker's, and nothing was changed.
    """
    email = outcome.email

    def write() -> tuple[Conclusion, list[Callable[[], None]]]:
        if outcome.is_plain and conclude_each([(outcome, broker.message_in_process)]):
            return outcome, outcome.reports()
        with database.transaction() as cursor:
            return apply(cursor, email, outcome)

    written, reports = wait_for_database(write, broker.stopping)
    for report in reports:
        report()
    if email.probe and written.relay_answered and control.close_circuit(database):
        logger.info("The relay takes mail again; the circuit is closed.")
        broker.enqueue_unless_one_waits(tick_message())


def conclude_each(plain: Sequence[tuple[Conclusion, ClaimedMessage | None]]) -> set[int]:
    """Concludes emails of which nothing else is to be said, and acknowledges their messages.

    Returns:
        the ids of those that it did; what somebody else holds, or has, is left out.
    """
    done = emails.conclude_finished_each(
        database,
        [
            emails.Finished(outcome.email, outcome.results, message.claim if message else None)
            for outcome, message in plain
        ],
    )
    for outcome, message in plain:
        if message is not None and outcome.email.id in done:
            message.settle()
    return done


def apply(cursor: Cursor, email: ClaimedEmail, outcome: Conclusion) -> tuple[Conclusion, list[Callable[[], None]]]:
    """Writes a conclusion; gives it as it was written, and what is to be reported once it is committed."""
    refusal = keep_undeliverable(cursor, email, outcome)
    if refusal is not None:
        outcome = outcome.as_relay_failure()
    state: State | None = None
    if outcome.is_finished:
        concluded = emails.lock_claimed(cursor, email) and emails.conclude_finished(cursor, email, outcome.results)
    else:
        state = put_back(cursor, email, outcome)
        concluded = state is not None
    if not concluded:
        return outcome, already_concluded(cursor, email)
    if refusal is not None:
        undeliverable.reopen(cursor, email.id)
    for result in outcome.dead_addresses:
        emails.suppress(cursor, result)
    reports = outcome.reports(state) + outcome.retries() + break_circuit(cursor, email, outcome, refusal)
    broker.acknowledge_if_held(cursor)
    return outcome, reports


def keep_undeliverable(cursor: Cursor, email: ClaimedEmail, outcome: Conclusion) -> str | None:
    """Keeps what is undeliverable for some days; looks whether everybody is refused alike.

    Returns:
        the words that everybody is refused with; then it is about us, and those who were dropped for it before are
        scheduled again. None where a refusal is the recipient's own.
    """
    if not outcome.undeliverable or not emails.lock_claimed(cursor, email):
        return None
    undeliverable.keep(cursor, email, outcome.results, days=settings().keep_undeliverable_days)
    if outcome.refusal is None:
        return None
    alike = undeliverable.refused_alike(cursor, email.id, DEAD_IN_A_ROW)
    addresses = {each.address for each in alike}
    if is_everybody_refused(addresses, says_dead=outcome.refusal.suppress):
        for email_id in sorted({each.email_id for each in alike} - {email.id}):
            undeliverable.reopen(cursor, email_id)
    elif not (email.probe and undeliverable.is_refused_as_the_circuit_says(cursor, email.id)):
        return None
    return alike[0].refusal


def put_back(cursor: Cursor, email: ClaimedEmail, outcome: Conclusion) -> State | None:
    """Journals an attempt that has not finished the email, and makes it due later, or unknown.

    Returns:
        where it stands now; None where the claim is no longer the row's.
    """
    if not emails.lock_claimed(cursor, email):
        return None
    emails.settle(cursor, email, outcome.results)
    emails.journal(cursor, email, outcome.results)
    if outcome.is_unknown:
        return emails.conclude_unknown(cursor, email, error=outcome.error)
    is_later = emails.conclude_later(
        cursor,
        email,
        pause=outcome.pause,
        counted=outcome.is_counted,
        mailbox_full=outcome.mailbox_is_full,
        error=outcome.error,
    )
    return State.SCHEDULED if is_later else None


def already_concluded(cursor: Cursor, email: ClaimedEmail) -> list[Callable[[], None]]:
    """The claim is not the row's any more: fine if we concluded it ourselves, in a commit whose answer was lost.

    Raises:
        LostClaim: it went to another worker.
    """
    if not emails.was_concluded(cursor, email):
        raise LostClaim
    broker.acknowledge_if_held(cursor)
    return []


def break_circuit(
    cursor: Cursor, email: ClaimedEmail, outcome: Conclusion, refusal: str | None
) -> list[Callable[[], None]]:
    """Opens the circuit, or puts off its next probe; the scheduler is asked to be there when that is due.

    A probe that the relay has not answered, for whatever reason, has failed.

    Args:
        cursor: of the transaction that concludes the email.
        email: it.
        outcome: what its attempt came to.
        refusal: the words that everybody is refused with, if so.
    """
    failure = outcome.relay_failure
    reports: list[Callable[[], None]] = []
    if failure is not None and control.open_circuit(
        cursor, reason=described(failure), first_pause=FIRST_PROBE, refusal=refusal
    ):
        pause = FIRST_PROBE
        reports.append(partial(reporting.circuit_opened, failure))
    elif email.probe and not outcome.relay_answered:
        reason = described(failure) if failure is not None else None
        pause = control.put_off_probe(cursor, reason=reason, longest=LONGEST_PROBE)
    else:
        return []
    broker.enqueue(tick_message(), delay=round(pause * 1000))
    return reports


def described(failure: Ruling) -> str:
    """A relay's failure in phase and codes: its text may hold an address."""
    return " ".join(str(part) for part in (failure.phase, failure.code, failure.enhanced_code) if part)


def tick_message() -> dramatiq.Message[None]:
    """A message that asks for a pass of the scheduler."""
    message: dramatiq.Message[None] = broker.get_actor(SCHEDULER).message()
    return message


def lost(lost_claim: emails.Lost) -> State | None:
    """Takes a claim back that nobody will conclude: what came of it is unknown. Reported once it is committed."""
    with database.transaction() as cursor:
        state = emails.lose(cursor, lost_claim)
    if state is not None:
        reporting.unknown(lost_claim.id, lost_claim.kind, state)
    return state


crew = Crew(Senders(), relay_connection, settings().smtp_connections)
