"""Rescues the emails that dead workers held. Every worker process looks twice a second."""

import logging
import threading
from typing import Final

from actors.alerts import alerts
from actors.delivery.in_flight import InFlightClaims
from actors.queue.broker import BrokerUnreachable, PostgresBroker
from actors.tick import tick
from models import emails, workers
from models.database.connections import Database
from models.errors import DatabaseUnreachable
from models.words import State

logger = logging.getLogger(__name__)

#: Seconds between two looks.
INTERVAL: Final = 0.5

#: Every 60th look runs whatever has been seen, for claims of the dead and for forgotten ones of our own: it reads every
#: row that is being sent.
LOOKS_BETWEEN: Final = 60


class Rescuer:
    """A thread that takes back the emails of workers that are gone, and those that this one has forgotten.

    Args:
        database: where the emails are.
        broker: whose worker this is.
        in_flight: what this process has claimed.
    """

    def __init__(self, database: Database, broker: PostgresBroker, in_flight: InFlightClaims) -> None:
        self._database = database
        self._broker = broker
        self._in_flight = in_flight
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
        if [each for each in emails.lost_claims(self._database) if self.mark_lost(each)]:
            tick(self._broker)

    def return_orphaned(self) -> None:
        """Returns what this process has claimed without hearing of it, as it was cut off in that moment."""
        if self._in_flight.give_back_strays(self._database, self._broker.worker_session.worker_id):
            tick(self._broker)

    def rescue_forgotten(self) -> None:
        """Claims of this very process that nothing in it works on any more: a conclusion that failed for good."""
        for claim in emails.old_claims(self._database, self._broker.worker_session.worker_id):
            if claim.claim not in self._in_flight:
                self.mark_lost(claim)

    def mark_lost(self, lost: emails.Lost) -> State | None:
        """Ends a claim that nobody will conclude: what came of it is unknown. Reported once it is committed."""
        with self._database.transaction() as cursor:
            state = emails.lose(cursor, lost)
        if state is not None:
            alerts.unknown(lost.id, lost.kind, state)
        return state

    def _run(self) -> None:
        looks = 0
        while not self._stop.wait(INTERVAL):
            try:
                self.return_orphaned()
                is_turn = looks % LOOKS_BETWEEN == 0
                if is_turn or workers.went_lately(self._database):
                    self.rescue()
                if is_turn:
                    self.rescue_forgotten()
                looks += 1
            except (DatabaseUnreachable, BrokerUnreachable) as error:
                logger.debug("The rescuer waits for the database: %s", type(error).__name__)
