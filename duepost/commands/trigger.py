"""`duepost trigger`: the tick."""

import logging
import signal
import threading
import time
from types import FrameType
from typing import Annotated

import typer

from actors.alerts.logs import LogFormat, start_of_command
from actors.queue.broker import BrokerUnreachable
from actors.settings import settings
from duepost.commands.context import ask_for_pass, client_database, operator_database, session_database
from duepost.commands.output import say, warn
from models import emails, watching
from models.database.connections import Connection, Database
from models.database.full_scan_throttle import FullScanThrottle
from models.database.levels import check_level
from models.database.migrate import check_schema
from models.database.preconditions import check_writable
from models.errors import DatabaseUnreachable, PooledSession

LOGGER = logging.getLogger("duepost.watch")

#: Seconds between two looks for something that falls due earlier than what is known.
LOOK_INTERVAL = 0.2

#: Seconds for which what is due is left to the workers, who look for themselves (`actors/lookout.py`): a pass is for
#: what they leave.
GRACE = 0.2

#: Seconds between two ticks while rows stay due: the pass that was asked for is at work.
TICK_INTERVAL = 0.02

#: Seconds between two looks whether this release may still work on the database.
LEVEL_INTERVAL = 1.0

#: Seconds after which there is a tick although nothing is due: the cron monitor wants to hear of it.
LONGEST_SILENCE = 60.0

#: Seconds between two tries to become the one that acts, or to reach the database.
RETRY_INTERVAL = 0.5


def trigger(
    watch: Annotated[
        bool, typer.Option("--watch", help="Stay, and tick when the next email falls due; several may run, one acts.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing when all is well.")] = False,
) -> None:
    """One tick: asks a worker for a pass of the scheduler, unless that is asked for already. From cron, or --watch.

    Examples: duepost trigger; duepost trigger --watch
    """
    if settings().disabled and not watch:
        if not quiet:
            say("DUEPOST_DISABLED is set: nothing is enqueued.")
        return
    if watch:
        if settings().log is LogFormat.JSON:
            start_of_command(LogFormat.JSON, logging.INFO)
        Watch(client_database(), session_database()).run()
        return
    database = operator_database()
    check_writable(database)
    asked = ask_for_pass(database)
    if not quiet:
        say("A pass of the scheduler is asked for." if asked else "A pass of the scheduler was asked for already.")


class Watch:
    """Ticks when the next row falls due. Of several on one database, one acts; the others take over when it ends."""

    def __init__(self, database: Database, session_database: Database) -> None:
        self._database = database
        self._session_database = session_database
        self._session: Connection | None = None
        self._stands_by = False
        self._stopped = threading.Event()
        self._ticked_at = -LONGEST_SILENCE
        #: When this release was last seen to fit the schema, by the monotonic clock; None before the first time.
        self._checked_at: float | None = None
        self._full_scan_throttle = FullScanThrottle()

    def run(self) -> None:
        """Stays until SIGTERM or Ctrl-C; outlives a database that goes away, or is away when it begins.

        Raises:
            SchemaMismatch: the schema is missing, or older than this code.
            PooledSession: there is a pooler where a session has to last.
            ReleaseTooOld: the database has been upgraded by a later release, and this one can no longer work there.
        """
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        away = False
        while not self._stopped.is_set():
            try:
                self._check_schema()
                pause = self._look() if self._acts() else RETRY_INTERVAL
                if away:
                    self._say("the database is back")
                away = False
            except PooledSession:
                raise
            except (DatabaseUnreachable, BrokerUnreachable) as error:
                if not away:
                    why = f" ({error})" if self._checked_at is None else ""
                    self._say(f"the database is away{why}; waiting for it")
                away, pause = True, RETRY_INTERVAL
                self._give_up_session()
            self._stopped.wait(pause)
        self._give_up_session()
        self._say("the watch has ended, as it was asked to")

    def _say(self, what: str) -> None:
        """A line for whoever looks at the log."""
        if settings().log is LogFormat.JSON:
            LOGGER.info(what)
        else:
            warn(f"duepost: {what}")

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopped.set()

    def _check_schema(self) -> None:
        now = time.monotonic()
        if self._checked_at is None:
            check_schema(self._database)
            self._say("watching: it ticks when the next email falls due")
        elif now - self._checked_at < LEVEL_INTERVAL:
            return
        else:
            check_level(self._database)
        self._checked_at = now

    def _acts(self) -> bool:
        if self._session is not None:
            watching.heartbeat(self._session)
            return True
        session = self._session_database.connect()
        if watching.lead(session):
            self._session = session
            if self._stands_by:
                self._say("it is this watch's turn to act")
            self._stands_by = False
            return True
        session.close()
        if not self._stands_by:
            self._say("another watch acts; this one takes over when that ends")
        self._stands_by = True
        return False

    def _look(self) -> float:
        """Ticks if it is time to; gives the seconds until the next look."""
        if settings().disabled:
            return LOOK_INTERVAL
        seconds = self._seconds_until_due()
        silent_for = time.monotonic() - self._ticked_at
        if (seconds is not None and seconds <= -GRACE) or silent_for >= LONGEST_SILENCE:
            ask_for_pass(self._database)
            self._ticked_at = time.monotonic()
            return TICK_INTERVAL
        return min(LOOK_INTERVAL, seconds + GRACE) if seconds is not None else LOOK_INTERVAL

    def _seconds_until_due(self) -> float | None:
        if not self._full_scan_throttle.is_due:
            return emails.seconds_until_due(self._database, full_scan=False)
        with self._full_scan_throttle.measured():
            return emails.seconds_until_due(self._database)

    def _give_up_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
