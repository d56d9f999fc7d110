"""The sender: claim, render, deliver, conclude."""

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import dramatiq

from actors import reporting
from actors.company import Companion
from actors.conclusion import Conclusion
from actors.consumer import ClaimedMessage
from actors.crew import Blocking, Crew, Job
from actors.delivery import TOGETHER, Delivery, Judged, LostClaim, read_all
from actors.holdings import Holdings
from actors.pauses import FIRST_PROBE, LONGEST_PROBE
from actors.refusals import DEAD_IN_A_ROW, is_everybody_refused
from actors.rendering import RenderError
from actors.route import described
from actors.runtime import broker, database, relay_connection, relay_route
from actors.settings import settings
from actors.smtp.connection import Envelope
from actors.smtp.verdicts import Ruling, Scope
from actors.threads import Threads
from actors.waiting import wait_for_database
from models import control, emails, undeliverable
from models.database import Cursor
from models.emails import ClaimedEmail
from models.errors import DatabaseUnreachable
from models.words import State

logger = logging.getLogger(__name__)

#: The scheduler's name as an actor: the sender asks it for a pass.
SCHEDULER = "enqueue_due_emails"

#: Messages in hand for each connection to the relay: some are being sent, some claimed, some take long to render, and
#: some are read ahead.
IN_HAND = 6

#: Of the messages of emails that are on time, and of those that are late: the lower goes first.
PRIORITY, LATE_PRIORITY = 10, 20

#: Threads that look why an email could not be claimed.
LEAVING = 2

#: Seconds, about, for which an email whose template takes long is put off while too many of that sort are rendered.
POSTPONED = 30.0

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
    """What a crew does: claim, render, deliver, conclude."""

    def __init__(self) -> None:
        self._leaving = Threads("duepost-leaving", LEAVING)

    def begin(self, jobs: Sequence[tuple[int, Job]]) -> list[Work]:
        """Claims emails in one statement; of two jobs for one email the first has it."""
        try:
            claimed = self._claimed([email_id for email_id, _ in jobs])
        except DatabaseUnreachable as failure:
            for _, job in jobs:
                job.end(of_its_own(failure))
            return []
        except Exception as failure:  # noqa: BLE001 - one email's failure is no other's
            if len(jobs) > 1:
                return [work for each in jobs for work in self.begin([each])]
            jobs[0][1].end(failure)
            return []
        works = []
        for email_id, job in jobs:
            email = claimed.pop(email_id, None)
            if email is None:
                self._leaving.submit(partial(ended, job, partial(job.run, leave, email_id)))
            else:
                works.append(Work(Delivery(email), job, job.run(current_message)))
        return works

    def _claimed(self, email_ids: list[int]) -> dict[int, ClaimedEmail]:
        if settings().disabled:
            return {}
        return {email.id: email for email in holdings.claim(database, email_ids, broker.attendance.worker_id)}

    def is_unread(self, work: Work) -> bool:
        """Whether its users are still to be read."""
        return work.delivery.is_unread

    def read(self, works: Sequence[Work]) -> None:
        """Reads the users of what was claimed together; where that takes too long, each goes on to be read alone."""
        with suppress(emails.TooSlow):
            found = read_all([work.delivery.email for work in works], TOGETHER)
            for work, email in zip(works, found, strict=True):
                work.delivery.know(email)

    def advance(self, work: Work) -> Envelope | Blocking | None:
        """What comes next for an email."""
        return work.delivery.advance()

    def take(self, work: Work, rulings: Mapping[str, Ruling]) -> None:
        """What the relay has made of one copy."""
        work.delivery.take(rulings)

    def is_plain(self, work: Work) -> bool:
        """Whether it moves to the ledger, and nothing else changes."""
        return conclusion_of(work.delivery.email, work.delivery.judged).is_plain

    def is_broken(self, work: Work) -> bool:
        """Whether the relay, or our settings for it, have failed."""
        return any(each.ruling.scope is Scope.RELAY for each in work.delivery.judged)

    def conclude(self, works: Sequence[Work]) -> list[Work]:
        """Concludes plain ones in one statement."""
        outcomes = [(work, conclusion_of(work.delivery.email, work.delivery.judged)) for work in works]
        try:
            plain = [(outcome, work.message) for work, outcome in outcomes]
            done = wait_for_database(partial(conclude_each, plain), broker.stopping)
        except Exception as failure:  # noqa: BLE001 - what fails together is tried alone
            logger.warning("%d conclusions failed together: %s; each is tried alone", len(works), name_of(failure))
            return list(works)
        for work, outcome in outcomes:
            if work.delivery.email.id in done:
                ended(work.job, partial(self._concluded, work, outcome.reports()))
        return [work for work in works if work.delivery.email.id not in done]

    def conclude_alone(self, work: Work) -> None:
        """Concludes one, whatever came of it."""
        outcome = conclusion_of(work.delivery.email, work.delivery.judged)
        ended(work.job, partial(self._conclude_alone, work, outcome))

    def release(self, works: Sequence[Work]) -> None:
        """Sending → scheduled for what was claimed and not begun: that is no attempt, its place in line is kept."""
        claimed = [work.delivery.email for work in works]
        released: set[int] = set()
        try:
            released = wait_for_database(partial(emails.give_back, database, claimed), broker.stopping)
        except Exception as failure:  # noqa: BLE001 - what fails together is tried alone
            logger.warning("%d claims could not be given back together: %s", len(works), name_of(failure))
        for work in works:
            if work.delivery.email.id in released:
                ended(work.job, partial(holdings.drop, work.delivery.email.claim))
            else:
                # Another transaction holds the row just now: that is waited for, and others are not kept waiting.
                self._leaving.submit(partial(ended, work.job, partial(give_back_alone, work.delivery.email)))

    def postpone(self, work: Work) -> None:
        """Sending → scheduled for a while: no attempt is counted."""
        ended(work.job, partial(postpone, work.delivery.email))

    def fail(self, work: Work, failure: BaseException) -> None:
        """Something else than the relay went wrong."""
        holdings.drop(work.delivery.email.claim)
        if isinstance(failure, LostClaim):
            ended(work.job, partial(work.job.run, report_lost_claim, work.delivery.email))
        else:
            work.job.end(of_its_own(failure))

    def has_more(self) -> bool:
        """Whether one more message may wait in this process's memory."""
        return broker.has_more(send_email.actor_name)

    def take_along(self) -> tuple[int, Companion] | None:
        """The next message in this process's memory."""
        while (companion := broker.take_along(send_email.actor_name)) is not None:
            match companion.message.args:
                case (int() as email_id,):
                    return email_id, companion
            companion.end(TypeError("the message names no email"))
        return None

    def _conclude_alone(self, work: Work, outcome: Conclusion) -> None:
        try:
            work.job.run(conclude_outcome, outcome)
            self._report_failures(work)
        except LostClaim:
            work.job.run(report_lost_claim, work.delivery.email)
        finally:
            holdings.drop(work.delivery.email.claim)

    def _concluded(self, work: Work, reports: Sequence[Callable[[], None]]) -> None:
        holdings.drop(work.delivery.email.claim)
        for report in reports:
            work.job.run(tell, report)
        self._report_failures(work)

    def _report_failures(self, work: Work) -> None:
        if work.delivery.failures:
            work.job.run(tell, partial(report_new, work.delivery.email, work.delivery.failures))


def name_of(failure: BaseException) -> str:
    """An exception's type, for a log line: its text may hold values of a row."""
    return type(failure).__name__


def tell(report: Callable[[], None]) -> None:
    """Reports what is committed: that a report fails changes nothing of it."""
    try:
        report()
    except Exception:  # whatever a reporter raises
        logger.exception("A report has failed.")


def give_back_alone(email: ClaimedEmail) -> None:
    """Sending → scheduled for one of which nothing was sent; waits for whoever holds its row."""

    def write() -> None:
        with database.transaction() as cursor:
            if emails.lock_claimed(cursor, email):
                emails.give_back_locked(cursor, email)

    try:
        wait_for_database(write, broker.stopping)
    finally:
        holdings.drop(email.claim)


def postpone(email: ClaimedEmail) -> None:
    """Sending → scheduled, due again in a while, without an attempt: too many templates take long just now."""

    def write() -> None:
        with database.transaction() as cursor:
            emails.conclude_later(
                cursor,
                email,
                pause=POSTPONED * random.uniform(0.5, 1.5),  # noqa: S311 - jitter is no secret
                counted=False,
                mailbox_full=False,
                error="render: waits for its turn: too many templates take long just now",
            )

    try:
        wait_for_database(write, broker.stopping)
    finally:
        holdings.drop(email.claim)


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
        tell(report)
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
    if not emails.lock_claimed(cursor, email):
        return outcome, already_concluded(cursor, email)
    refusal = keep_undeliverable(cursor, email, outcome)
    if refusal is not None:
        outcome = outcome.as_relay_failure()
    state: State | None = None
    if outcome.is_finished:
        concluded = emails.conclude_finished(cursor, email, outcome.results)
    else:
        state = put_back(cursor, email, outcome)
        concluded = state is not None
    if not concluded:
        return outcome, already_concluded(cursor, email)
    if refusal is not None:
        undeliverable.reopen(cursor, email.id)
    for result in outcome.dead_addresses:
        emails.suppress(cursor, result)
    reports = outcome.reports(state) + outcome.retries()
    reports += break_circuit(cursor, email, outcome, refusal) + slow_down(cursor, outcome)
    broker.acknowledge_if_held(cursor)
    return outcome, reports


def keep_undeliverable(cursor: Cursor, email: ClaimedEmail, outcome: Conclusion) -> str | None:
    """Keeps what is undeliverable for some days; looks whether everybody is refused alike.

    The caller holds the row's lock.

    Returns:
        the words that everybody is refused with; then it is about us, and those who were dropped for it before are
        scheduled again. None where a refusal is the recipient's own.
    """
    if not outcome.undeliverable:
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

    The caller holds the row's lock.

    Returns:
        where it stands now; None where the claim is no longer the row's.
    """
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
        cursor,
        reason=described(failure) + (", all recipients alike" if refusal is not None else ""),
        first_pause=FIRST_PROBE,
        refusal=refusal,
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


def slow_down(cursor: Cursor, outcome: Conclusion) -> list[Callable[[], None]]:
    """Where the relay has had too much of us nothing is claimed for a while; then comes a pass of the scheduler."""
    refusal = next((ruling for ruling in outcome.rulings if relay_route.is_too_much(ruling)), None)
    pause = relay_route.slow_down(cursor, refusal) if refusal is not None else None
    if refusal is None or pause is None:
        return []
    broker.enqueue(tick_message(), delay=round(pause * 1000))
    said = "The relay has had too much of us (%s): it gets nothing for %.0f s."
    return [partial(logger.info, said, described(refusal), pause)]


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


crew = Crew(Senders(), relay_connection, settings().smtp_connections, relay_route)
