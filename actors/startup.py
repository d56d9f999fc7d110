"""What a worker process does before its first message and after its last."""

import gc
import sys

import dramatiq
import psycopg2
from dramatiq.middleware import Middleware

from actors import memory
from actors.recovery import Recovery
from actors.route import Watch
from actors.runtime import broker, database, relay_route
from actors.sender import crew
from actors.settings import BadSettings, settings
from models import control
from models.errors import DuepostError
from models.migrate import check_schema
from models.preconditions import check_writable

#: Exit statuses of a worker that cannot start.
FAILED = 1
BAD_SETTINGS = 2


class Startup(Middleware):
    """Checks settings, database and schema; looks after what others leave behind."""

    def __init__(self) -> None:
        self._recovery = Recovery()
        self._watch = Watch(relay_route, crew.tidy)

    def before_worker_boot(self, _broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:  # noqa: ARG002
        """Ends the process with one line and an exit status where it could not work.

        A relay that cannot be reached is no reason: mail waits for it.
        """
        try:
            settings().need_database_url()
            settings().need_relay()
            sender = settings().need_sender()
            check_schema(database)
            check_writable(database)
            broker.attendance.check()
            control.set_message_id_domain(database, sender.address.rpartition("@")[2])
        except BadSettings as error:
            leave(error, BAD_SETTINGS)
        except (DuepostError, psycopg2.Error) as error:
            leave(error, FAILED)

    def after_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:  # noqa: ARG002
        """Looks after emails of workers that are gone; bounds what any email may take from now on."""
        self._recovery.start()
        self._watch.start()
        memory.limit(settings().memory_limit)
        # What has been loaded by now stays: collections need not go through it again and again.
        gc.freeze()

    def after_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:  # noqa: ARG002
        """Looks no more, and takes leave of the relay."""
        self._recovery.stop()
        self._watch.stop()
        crew.close()


def leave(error: Exception, status: int) -> None:
    """Ends this process with one line."""
    print(f"duepost: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    sys.exit(status)
