"""What a worker process does before its first message and after its last."""

import gc
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import dramatiq
import psycopg2
from dramatiq.middleware import Middleware

from actors.content.dkim_keys import BadKey, Signer
from actors.content.files import FileReader
from actors.content.html import HtmlFailed, HtmlPreparer
from actors.content.libraries import MissingLibrary
from actors.delivery.email_work import EmailDispatcher
from actors.delivery.journal import Journal
from actors.delivery.rescue import Rescuer
from actors.delivery.route import SharedRoute, Watch
from actors.liveness import memory_limit
from actors.liveness.maintenance import TOO_OLD
from actors.lookout import Lookout
from actors.metrics import MetricsServer
from actors.queue.broker import PostgresBroker
from actors.settings import BadSettings, Settings
from models import control
from models.database.connections import Database
from models.database.migrate import check_schema
from models.database.preconditions import check_writable
from models.errors import DatabaseUnreachable, DuepostError, ReleaseTooOld

#: Exit statuses of a worker that cannot start.
FAILED = 1
BAD_SETTINGS = 2


class Delivering(NamedTuple):
    """What is begun and ended of a route.

    Attributes:
        route: registered as the worker begins.
        watch: looks at what is known of it.
        dispatcher: what is closed at the end.
    """

    route: SharedRoute
    watch: Watch
    dispatcher: EmailDispatcher


class Messenger(Protocol):
    """Carries messages beside the database, while a worker runs."""

    def check(self) -> None:
        """Looks whether it can; whoever is away is waited for later.

        Raises:
            DuepostError: it is refused.
        """

    def start(self) -> None:
        """Begins."""

    def stop(self) -> None:
        """Ends."""


class Startup(Middleware):
    """Checks settings, database and schema; looks after what others leave behind.

    Args:
        settings: what was asked for.
        database: where the emails are.
        broker: whose worker this is.
        routes: those that it serves.
        close_endpoints: closes the connections to endpoints.
        rescuer: looks after emails of workers that are gone.
        lookout: looks for what has fallen due; None where nothing is sent.
        journal: what is deleted at a clean end.
        metrics: serves what is counted; None where nobody asks for it.
        signer: whose keys have to be of use; None where nothing is signed.
        preparer: whose process is started; None where HTML stays as it is.
        messenger: carries messages beside the database; None where nothing does.
        files: reads what emails name by URL; None where nothing is read.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        broker: PostgresBroker,
        routes: Sequence[Delivering],
        close_endpoints: Callable[[], None],
        rescuer: Rescuer,
        lookout: Lookout | None,
        journal: Journal,
        metrics: MetricsServer | None = None,
        signer: Signer | None = None,
        preparer: HtmlPreparer | None = None,
        messenger: Messenger | None = None,
        files: FileReader | None = None,
    ) -> None:
        self._settings = settings
        self._database = database
        self._broker = broker
        self._routes = routes
        self._close_endpoints = close_endpoints
        self._rescuer = rescuer
        self._lookout = lookout
        self._journal = journal
        self._metrics = metrics
        self._signer = signer
        self._preparer = preparer
        self._messenger = messenger
        self._files = files

    def before_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:  # noqa: ARG002
        """Ends the process with one line and an exit status where it could not work.

        A relay that cannot be reached is no reason: mail waits for it.
        """
        try:
            self._settings.need_database_url()
            self._settings.need_relay()
            sender = self._settings.need_sender()
            if self._signer is not None:
                self._signer.keys.check()
            if self._preparer is not None:
                self._preparer.check()
            check_threads(worker.worker_threads, len(self._routes))
            check_schema(self._database)
            check_writable(self._database)
            self._broker.worker_session.check()
            control.set_message_id_domain(self._database, sender.address.rpartition("@")[2])
            self._check_messenger()
        except (BadSettings, BadKey, HtmlFailed, MissingLibrary) as error:
            end(error, BAD_SETTINGS)
        except ReleaseTooOld as error:
            end(error, TOO_OLD)
        except (DuepostError, psycopg2.Error) as error:
            end(error, FAILED)

    def _check_messenger(self) -> None:
        if self._messenger is None:
            return
        try:
            self._messenger.check()
        except DatabaseUnreachable:
            raise
        except DuepostError as error:
            raise BadSettings(f"DUEPOST_BROKER_URL: {error}; duepost doctor says what to do") from error

    def after_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:  # noqa: ARG002
        """Looks after emails of workers that are gone; bounds what any email may take from now on."""
        self._rescuer.start()
        for each in self._routes:
            each.watch.start()
        if self._lookout is not None:
            self._lookout.start()
        if self._messenger is not None:
            self._messenger.start()
        if self._metrics is not None:
            self._metrics.start()
        memory_limit.limit(self._settings.memory_limit)
        # What has been loaded by now stays: collections need not go through it again and again.
        gc.freeze()

    def after_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:  # noqa: ARG002
        """Looks no more, and takes leave of the relays."""
        if self._messenger is not None:
            self._messenger.stop()
        if self._lookout is not None:
            self._lookout.stop()
        if self._metrics is not None:
            self._metrics.stop()
        self._rescuer.stop()
        for each in self._routes:
            each.watch.stop()
            each.dispatcher.close()
        self._close_endpoints()
        if self._preparer is not None:
            self._preparer.close()
        if self._files is not None:
            self._files.close()
        self._journal.close()


def check_threads(threads: int, routes: int) -> None:
    """Makes sure that each relay may keep one thread of a process, and one more is left for the scheduler.

    With one relay a single thread will do: it does the one after the other.

    Raises:
        BadSettings: there are too few.
    """
    if routes > 1 and threads <= routes:
        raise BadSettings(
            f"--threads: {threads} for each process; {routes} relays need {routes + 1}: one for each, and one more"
        )


def end(error: Exception, status: int) -> None:
    """Ends this process with one line."""
    print(f"duepost: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    sys.exit(status)
