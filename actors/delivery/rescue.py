"""Rescues the emails that dead workers held. Every worker process looks twice a second.

What a dead worker's journal names is concluded as that worker would have concluded it. Of the rest nobody knows what
came of it: it is unknown.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Final

import psycopg2

from actors.delivery.attempt import Records
from actors.delivery.conclude import Conclusions
from actors.delivery.decision import Decision
from actors.delivery.in_flight import InFlightClaims, LostClaim
from actors.delivery.journal import Journal, Record
from actors.delivery.report import report, report_unknown
from actors.queue.broker import BrokerUnreachable, PostgresBroker
from actors.tick import tick
from models import attachments, emails, scheduled_messages, workers
from models.database.connections import Database
from models.emails import ClaimedEmail, Lost
from models.errors import DatabaseUnreachable
from models.items import Claimed, Recipient, is_endpoint
from models.words import State

logger = logging.getLogger(__name__)

#: Seconds between two looks.
INTERVAL: Final = 0.5

#: Every 60th look runs whatever has been seen, for claims of the dead and for forgotten ones of our own: it reads every
#: row that is being sent.
LOOKS_BETWEEN: Final = 60

#: Seconds for which claims of a worker that keeps a journal are left to its own machine, where that is not this one: a
#: service manager has started the next worker there by then.
LEFT_TO_ITS_MACHINE: Final = 15.0

#: What a journal says of claims: by the number of the claim.
Journalled = Mapping[int, Record]


class Rescuer:
    """A thread that takes back the emails of workers that are gone, and those that this one has forgotten.

    Args:
        database: where the emails are.
        broker: whose worker this is.
        in_flight: what this process has claimed.
        journal: this process's, by which those of others are read.
        records: reads users.
        conclusions: returns what writes down what a journal says of emails that were sent by a route.
    """

    def __init__(
        self,
        database: Database,
        broker: PostgresBroker,
        in_flight: InFlightClaims,
        journal: Journal,
        records: Records,
        conclusions: Callable[[str], Conclusions],
    ) -> None:
        self._database = database
        self._broker = broker
        self._in_flight = in_flight
        self._journal = journal
        self._records = records
        self._conclusions = conclusions
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="duepost-rescue", daemon=True)

    def start(self) -> None:
        """Starts looking."""
        self._thread.start()

    def stop(self) -> None:
        """Ends; waits for a look that is under way."""
        self._stop.set()
        self._thread.join(timeout=15)

    def rescue(self) -> None:
        """One look: what did workers hold that are gone?"""
        lost = emails.lost_claims(self._database)
        if not lost:
            return
        journals = workers.gone_journals(self._database, LEFT_TO_ITS_MACHINE)
        read: dict[int, Journalled | None] = {
            worker_id: self._journal.read(journals[worker_id].name) if worker_id in journals else {}
            for worker_id in {each.worker_id for each in lost}
        }
        has_moved = False
        for each in lost:
            journalled = read[each.worker_id]
            if journalled is None and journals[each.worker_id].is_left:
                continue
            has_moved |= bool(self._end_alone(each, journalled or {}))
        if has_moved:
            tick(self._broker)

    def return_orphaned(self) -> None:
        """Returns what this process has claimed without hearing of it, as it was cut off in that moment."""
        if self._in_flight.return_orphaned(self._database, self._broker.worker_session.worker_id):
            tick(self._broker)

    def rescue_forgotten(self) -> None:
        """Claims of this very process that nothing in it works on any more: a conclusion that failed for good."""
        claims = emails.old_claims(self._database, self._broker.worker_session.worker_id)
        forgotten = [each for each in claims if each.claim not in self._in_flight]
        journalled = self._journal.read(self._journal.name) if forgotten else None
        for each in forgotten:
            if self._end_alone(each, journalled or {}) is not None:
                self._journal.forget(each.claim)

    def delete_journals(self) -> None:
        """Deletes the journals of dead workers whose claims have all been ended."""
        if self._journal.names() - {self._journal.name}:
            journals = workers.gone_journals(self._database, LEFT_TO_ITS_MACHINE)
            holders = {each.worker_id for each in emails.lost_claims(self._database)}
            self._journal.delete_unneeded(
                {each.name for each in journals.values()},
                {each.name for worker_id, each in journals.items() if worker_id in holders},
            )

    def mark_lost(self, lost: Lost) -> State | None:
        """Ends a claim that nobody will conclude: what came of it is unknown. Reported once it is committed."""
        with self._database.transaction() as cursor:
            why = emails.WORKER_FORGOT if self._is_own(lost) else emails.WORKER_ENDED
            state = emails.conclude_lost(cursor, lost, why=why)
        if state is not None:
            report_unknown(lost, state)
        return state

    def _end_alone(self, lost: Lost, journalled: Journalled) -> bool | None:
        """Ends a claim; whatever its row makes that fail of, others are rescued.

        Returns:
            whether this was the one to do so; None where it failed, and is tried again with a later look.

        Raises:
            DatabaseUnreachable: the database is away.
            BrokerUnreachable: the worker ends meanwhile.
        """
        try:
            return self._end(lost, journalled)
        except (DatabaseUnreachable, BrokerUnreachable):
            raise
        except Exception as failure:  # noqa: BLE001 - whatever one row does, others are rescued
            whose = "this worker" if self._is_own(lost) else "a dead worker"
            logger.warning("Email %d of %s cannot be ended: %s.", lost.id, whose, type(failure).__name__)
            return None

    def _is_own(self, lost: Lost) -> bool:
        return lost.worker_id == self._broker.worker_session.worker_id

    def _end(self, lost: Lost, journalled: Journalled) -> bool:
        """Ends a claim, from a journal where that names it; gives whether this was the one to do so."""
        if is_endpoint(lost.route) and (called := self._function_message(lost)) is not None:
            # The function runs in the transaction that concludes the message: there was none, so it has not run.
            return bool(emails.return_unstarted(self._database, [called]))
        record = journalled.get(lost.claim)
        if record is not None and record.email_id == lost.id:
            try:
                if self._conclude(lost, record):
                    logger.info("Email %d is concluded from the journal of worker %d.", lost.id, lost.worker_id)
                    return True
            except LostClaim:
                return False
            except (DatabaseUnreachable, BrokerUnreachable):
                raise
            except Exception as failure:
                if isinstance(failure, psycopg2.Error) and not isinstance(failure, psycopg2.DataError):
                    # The row's fault: what the relay has said stands, and is concluded once that can be stored.
                    raise
                logger.warning("A journal's word on email %d is of no use: %s.", lost.id, type(failure).__name__)
        return self.mark_lost(lost) is not None

    def _conclude(self, lost: Lost, record: Record) -> bool:
        """Concludes a claim as its worker would have; False where the journal says nothing that is of use.

        Raises:
            LostClaim: somebody else has ended it.
        """
        item = self._claimed(lost)
        judged = [(each, record.rulings[each.key]) for each in item.recipients if each.key in record.rulings]
        if not judged:
            return False
        decision = Decision.of(item, judged)
        if len(judged) < len(item.recipients) and decision.relay_failure is None:
            state = self._conclusions(lost.route).conclude_lost(decision, lost)
            report_unknown(lost, state)
        elif not (decision.is_plain and self._conclude_plain(decision, record)):
            report(self._conclusions(lost.route).conclude(decision))
        return True

    def _claimed(self, lost: Lost) -> Claimed:
        """The claimed item, as it was attempted.

        Raises:
            LostClaim: somebody else has ended it.
        """
        if is_endpoint(lost.route):
            for message in scheduled_messages.claimed_unread(self._database, [lost.id], lost.worker_id, ()):
                if message.claim == lost.claim:
                    return message
        else:
            for email in emails.claimed_unread(self._database, [lost.id], lost.worker_id, ()):
                if email.claim == lost.claim:
                    return self._with_recipients(email)
        raise LostClaim

    def _function_message(self, lost: Lost) -> Claimed | None:
        """The message of a claim, if it is one that a function of the application's takes."""
        for message in scheduled_messages.claimed_unread(self._database, [lost.id], lost.worker_id, ()):
            if message.claim == lost.claim and message.function is not None:
                return message
        return None

    def _conclude_plain(self, decision: Decision, record: Record) -> bool:
        """Moves it to the ledger, its broker message with it; False where somebody holds its row just now."""
        finished = emails.Finished(decision.item, decision.results, record.message)
        return bool(emails.conclude_finished_each(self._database, [finished]))

    def _with_recipients(self, email: ClaimedEmail) -> ClaimedEmail:
        """The same with whom it was to reach, as they were when it was attempted: known, and active.

        A user who cannot be read any more has no address here.
        """
        try:
            email = self._records.read(email)
        except emails.TooSlow as slow:
            email = emails.with_flaw(email, slow.flaw)
        return email._replace(recipients=tuple(map(_attempted, email.recipients)))

    def _run(self) -> None:
        looks = 0
        while not self._stop.wait(INTERVAL):
            try:
                self._journal.tidy()
                self.return_orphaned()
                is_turn = looks % LOOKS_BETWEEN == 0
                if is_turn or workers.went_lately(self._database):
                    self.rescue()
                if is_turn:
                    self.rescue_forgotten()
                    self.delete_journals()
                    # What the last email that needed it has left.
                    attachments.drop(self._database)
                looks += 1
            except (DatabaseUnreachable, BrokerUnreachable) as error:
                logger.debug("The rescuer waits for the database: %s", type(error).__name__)
            except Exception as error:  # noqa: BLE001 - without this thread nobody's emails are rescued
                logger.warning("A look for emails of dead workers has failed: %s.", type(error).__name__)


def _attempted(recipient: Recipient) -> Recipient:
    return recipient._replace(known=True, active=True, suppressed=False, flaw=None)
