"""The sender: claim, render, deliver, conclude."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import dramatiq

from actors import conclusion, reporting
from actors.addresses import Mailbox, UndeliverableAddress, ascii_address, parse_sender
from actors.conclusion import Conclusion
from actors.consumer import ClaimedMessage
from actors.mime import build_message
from actors.pauses import FIRST_PROBE, LONGEST_PROBE
from actors.rendering import Content, RenderError
from actors.runtime import broker, database, relay_connections, templates
from actors.settings import settings
from actors.smtp.connection import Connection, Envelope
from actors.smtp.verdicts import Pace, Phase, Ruling, Scope
from actors.together import Together
from actors.waiting import wait_for_database
from models import control, emails
from models.database import Cursor
from models.emails import ClaimedEmail, Recipient
from models.words import State, Verdict

logger = logging.getLogger(__name__)

#: The scheduler's name as an actor: the sender asks it for a pass.
SCHEDULER = "enqueue_due_emails"

#: Ten minutes after the dot are legal (RFC 5321 section 4.5.3.2.6): nothing may cut a dialogue short.
NO_TIME_LIMIT = float("inf")

#: Milliseconds until a row that another transaction holds is looked at again.
BUSY_DELAY = 1_000


@dataclass(frozen=True, slots=True)
class Judged:
    """A recipient, and what the attempt came to for it."""

    recipient: Recipient
    ruling: Ruling


class LostClaim(Exception):
    """The row went to another worker while this one was away: nothing may be concluded."""


@dataclass
class Holdings:
    """The claims that this process is working on."""

    _claims: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, claim: int) -> None:
        """A claim is being worked on."""
        with self._lock:
            self._claims.add(claim)

    def drop(self, claim: int) -> None:
        """A claim is concluded, or given up."""
        with self._lock:
            self._claims.discard(claim)

    def __contains__(self, claim: int) -> bool:
        with self._lock:
            return claim in self._claims


holdings = Holdings()


@dramatiq.actor(
    broker=broker,
    queue_name="duepost_send",
    priority=10,
    max_retries=None,
    min_backoff=1_000,
    max_backoff=60_000,
    time_limit=NO_TIME_LIMIT,
)
def send_email(email_id: int) -> None:
    """Delivers one scheduled email, if it is still to be sent."""
    failures: dict[str, RenderError] = {}
    with ExitStack() as relay:
        connection = relay.enter_context(relay_connections.lent())
        email = claim(email_id)
        if email is None:
            return
        holdings.take(email.claim)
        try:
            judged = list(deliver(email, connection, failures))
            # Another thread may speak to the relay while this one writes down what came of it.
            relay.close()
            conclude(email, judged)
            report_new(email, failures)
        except LostClaim:
            logger.warning("Email %d went to another worker; its conclusion here changes nothing.", email.id)
            reporting.lost_claim(email.id, email.kind)
        finally:
            holdings.drop(email.claim)


def claim_each(email_ids: Sequence[int]) -> list[ClaimedEmail | None]:
    """Claims the emails of several threads; one that two threads want is the first's."""
    claimed = {email.id: email for email in emails.claim(database, email_ids, broker.attendance.worker_id)}
    return [claimed.pop(email_id, None) for email_id in email_ids]


claims: Together[int, ClaimedEmail | None] = Together(claim_each)


def claim(email_id: int) -> ClaimedEmail | None:
    """Queued → sending, in one short transaction; None where there is nothing to send.

    Raises:
        dramatiq.Retry: another transaction holds the row just now.
    """
    if settings().disabled:
        with database.transaction() as cursor:
            emails.release(cursor, email_id, anyway=True)
        return None
    email = claims.do(email_id)
    if email is not None:
        return email
    with database.transaction() as cursor:
        if emails.expire(cursor, email_id) or emails.release(cursor, email_id):
            return None
        busy = emails.is_claimable(cursor, email_id)
    if busy:
        raise dramatiq.errors.Retry("another transaction holds the row", delay=BUSY_DELAY)
    return None


def deliver(email: ClaimedEmail, connection: Connection, failures: dict[str, RenderError]) -> Iterator[Judged]:
    """Attempts each recipient in turn; no transaction is open meanwhile. Ends early when the relay fails.

    What fails in rendering is added to `failures`, by its text.
    """
    waiting = list(email.recipients)
    while waiting:
        recipient = waiting.pop(0)
        judged = Judged(recipient, attempt(email, recipient, connection, failures))
        if waiting and judged.ruling.scope is not Scope.RELAY:
            # Each copy that is out is on disk before the next one goes.
            note(email, judged)
        yield judged
        if judged.ruling.scope is Scope.RELAY:
            return


def attempt(
    email: ClaimedEmail, recipient: Recipient, connection: Connection, failures: dict[str, RenderError]
) -> Ruling:
    """Renders and delivers one copy."""
    refusal = conclusion.refusal_without_asking(recipient)
    if refusal is not None:
        return refusal
    try:
        address = ascii_address(recipient.address or "")
    except UndeliverableAddress as error:
        return Ruling(Verdict.UNDELIVERABLE, Scope.RECIPIENT, Phase.ADDRESS, reply=str(error))
    try:
        sender = parse_sender(email.sender) if email.sender else settings().need_sender()
        content = render(email, recipient)
        message = build_message(
            content=content,
            sender=sender,
            recipients=[Mailbox(recipient.name or "", address)],
            message_id=email.message_id_header,
            date=email.date_header,
            reply_to=email.reply_to,
            headers=email.headers or {},
        )
    except RenderError as error:
        failure = error
    except Exception as error:  # noqa: BLE001 - whatever one email's content does, others flow on
        failure = RenderError(email.template or "-", type(error).__name__, None)
    else:
        return connection.deliver(Envelope(sender.address, (address,), message))[address]
    failures[str(failure)] = failure
    return Ruling(Verdict.RETRY, Scope.MESSAGE, Phase.RENDER, reply=str(failure), pace=Pace.BROKEN)


def render(email: ClaimedEmail, recipient: Recipient) -> Content:
    """The content as this recipient gets it.

    Raises:
        RenderError: the template is missing or fails.
    """
    if email.template is None:
        return Content(email.subject or "", email.body_text, email.body_html)
    whom = {
        "user_id": recipient.user_id,
        "address": recipient.address,
        "name": recipient.name,
        "locale": recipient.locale,
        "timezone": recipient.timezone,
    }
    return templates.render(email.template, {**(email.context or {}), "recipient": whom})


def report_new(email: ClaimedEmail, failures: dict[str, RenderError]) -> None:
    """A template's failure is ours to mend, and reported when it is new: not with each retry, not for each user."""
    for text, failure in failures.items():
        if text not in (email.last_error or ""):
            reporting.render_error(email.id, email.kind, failure)


def note(email: ClaimedEmail, judged: Judged) -> None:
    """Puts one recipient's result on disk while others are still to go.

    Raises:
        LostClaim: the row is no longer this worker's.
    """
    result = conclusion.result(email, judged.recipient, judged.ruling)

    def write() -> bool:
        with database.transaction() as cursor:
            if not emails.lock_claimed(cursor, email):
                return False
            emails.settle(cursor, email, [result])
            return True

    if not wait_for_database(write, broker.stopping):
        raise LostClaim


def conclude(email: ClaimedEmail, judged: list[Judged]) -> None:
    """Moves the row on, writes the journal and acknowledges the message, in one transaction.

    Raises:
        LostClaim: the row is no longer this worker's, and nothing was changed.
    """
    outcome = Conclusion.of(email, [(each.recipient, each.ruling) for each in judged])

    def write() -> list[Callable[[], None]]:
        if outcome.is_plain and conclusions.do((outcome, broker.message_in_process)):
            return outcome.reports()
        with database.transaction() as cursor:
            return apply(cursor, email, outcome)

    for report in wait_for_database(write, broker.stopping):
        report()
    if email.probe and outcome.relay_answered and control.close_circuit(database):
        logger.info("The relay takes mail again; the circuit is closed.")
        broker.enqueue_unless_one_waits(tick_message())


def conclude_each(plain: Sequence[tuple[Conclusion, ClaimedMessage | None]]) -> list[bool]:
    """Concludes the emails of several threads, and acknowledges their messages; says of each whether it did."""
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
    return [outcome.email.id in done for outcome, _ in plain]


conclusions: Together[tuple[Conclusion, ClaimedMessage | None], bool] = Together(conclude_each)


def apply(cursor: Cursor, email: ClaimedEmail, outcome: Conclusion) -> list[Callable[[], None]]:
    """Writes a conclusion; gives what is to be reported once it is committed."""
    if outcome.is_finished:
        concluded = emails.lock_claimed(cursor, email) and emails.conclude_finished(cursor, email, outcome.results)
    else:
        concluded = put_back(cursor, email, outcome)
    if not concluded:
        return already_concluded(cursor, email)
    for result in outcome.dead_addresses:
        emails.suppress(cursor, result)
    reports = outcome.reports() + break_circuit(cursor, email, outcome)
    broker.acknowledge_if_held(cursor)
    return reports


def put_back(cursor: Cursor, email: ClaimedEmail, outcome: Conclusion) -> bool:
    """Journals an attempt that has not finished the email, and makes it due later, or unknown."""
    if not emails.lock_claimed(cursor, email):
        return False
    emails.settle(cursor, email, outcome.results)
    emails.journal(cursor, email, outcome.results)
    if outcome.is_unknown:
        return emails.conclude_unknown(cursor, email, error=outcome.error) is not None
    return emails.conclude_later(
        cursor,
        email,
        pause=outcome.pause,
        counted=outcome.is_counted,
        mailbox_full=outcome.mailbox_is_full,
        error=outcome.error,
    )


def already_concluded(cursor: Cursor, email: ClaimedEmail) -> list[Callable[[], None]]:
    """The claim is not the row's any more: fine if we concluded it ourselves, in a commit whose answer was lost.

    Raises:
        LostClaim: it went to another worker.
    """
    if not emails.was_concluded(cursor, email):
        raise LostClaim
    broker.acknowledge_if_held(cursor)
    return []


def break_circuit(cursor: Cursor, email: ClaimedEmail, outcome: Conclusion) -> list[Callable[[], None]]:
    """Opens the circuit, or puts off its next probe; the scheduler is asked to be there when that is due.

    A probe that the relay has not answered, for whatever reason, has failed.
    """
    failure = outcome.relay_failure
    reports: list[Callable[[], None]] = []
    if failure is not None and control.open_circuit(cursor, reason=described(failure), first_pause=FIRST_PROBE):
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
        logger.warning("Email %d: its worker ended in the middle; it is %s.", lost_claim.id, state)
        reporting.unknown(lost_claim.id, lost_claim.kind)
    return state
