"""Takes back the emails that dead workers held. Every worker process looks twice a second."""

import logging
import threading

from actors.broker import BrokerUnreachable
from actors.runtime import broker, database
from actors.scheduler import tick
from actors.sender import holdings, lost
from models import emails, workers
from models.errors import DatabaseUnreachable

logger = logging.getLogger(__name__)

#: Seconds between two looks.
INTERVAL = 0.5

#: How many looks there are between two looks whatever has been seen, for claims of the gone and for forgotten ones of
#: our own. They read all that is being sent, and with an old snapshot all that ever was since.
LOOKS_BETWEEN = 60


class Recovery:
    """A thread that takes back the emails of workers that are gone, and those that this one has forgotten."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="duepost-recovery", daemon=True)

    def start(self) -> None:
        """Starts looking."""
        self._thread.start()

    def stop(self) -> None:
        """Ends; waits for a look that is under way."""
        self._stop.set()
        self._thread.join(timeout=15)

    def _run(self) -> None:
        looks = 0
        while not self._stop.wait(INTERVAL):
            try:
                give_back_strays()
                is_turn = looks % LOOKS_BETWEEN == 0
                if is_turn or workers.went_lately(database):
                    take_back()
                if is_turn:
                    take_back_forgotten()
                looks += 1
            except (DatabaseUnreachable, BrokerUnreachable) as error:
                logger.debug("Recovery waits for the database: %s", type(error).__name__)


def take_back() -> None:
    """One look: what did workers hold that are gone?"""
    if [each for each in emails.lost_claims(database) if lost(each)]:
        tick()


def give_back_strays() -> None:
    """What this process has claimed without hearing of it, as it was cut off in that moment."""
    if holdings.give_back_strays(database, broker.attendance.worker_id):
        tick()


def take_back_forgotten() -> None:
    """Claims of this very process that nothing in it works on any more: a conclusion that failed for good."""
    for claim in emails.old_claims(database, broker.attendance.worker_id):
        if claim.claim not in holdings:
            lost(claim)
