"""What a worker process does before its first message and after its last."""

import sys

import dramatiq
import psycopg2
from dramatiq.middleware import Middleware

from actors.recovery import Recovery
from actors.runtime import attendance, broker, database
from actors.settings import BadSettings, settings
from models import control
from models.errors import DuepostError
from models.migrate import check_schema

#: Exit statuses of a worker that cannot start.
FAILED = 1
BAD_SETTINGS = 2


class Startup(Middleware):
    """Checks settings, database and schema; keeps the worker present while it runs."""

    def __init__(self) -> None:
        self._recovery = Recovery()

    def before_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:  # noqa: ARG002
        """Ends the process with one line and an exit status where it could not work.

        A relay that cannot be reached is no reason: mail waits for it.
        """
        try:
            settings().need_database_url()
            settings().need_relay()
            sender = settings().need_sender()
            check_schema(database)
            control.set_message_id_domain(database, sender.address.rpartition("@")[2])
            attendance.start()
        except BadSettings as error:
            leave(error, BAD_SETTINGS)
        except (DuepostError, psycopg2.Error) as error:
            leave(error, FAILED)
        self._recovery.start()

    def before_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:  # noqa: ARG002
        """Nothing new is begun; what runs may finish."""
        stop_waiting()

    def after_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:  # noqa: ARG002
        """Leaves in order, so that others need not wait."""
        self._recovery.stop()
        attendance.stop()


def stop_waiting() -> None:
    """Ends all waiting for a database that is away."""
    broker.stopping.set()


def leave(error: Exception, status: int) -> None:
    """Ends this process with one line."""
    print(f"duepost: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    sys.exit(status)
