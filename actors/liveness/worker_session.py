"""This worker process's presence: a database session of its own, proven twice a second.

Others see a worker die by this session ending. So a worker that cannot prove its session must not start what
others may already be doing in its place.
"""

import logging
import select
import socket
import threading
import time
from contextlib import suppress

import psycopg2

from actors.liveness.process import this_process
from actors.version import VERSION
from models import workers
from models.database.connections import Connection, Database, is_usable
from models.database.levels import check_level_in_session
from models.errors import DatabaseUnreachable, ReleaseTooOld

logger = logging.getLogger(__name__)

#: Seconds between two proofs.
PROOF_INTERVAL = 0.5

#: Seconds for which a proof holds, counted from before it was asked for. Not longer than the grace that others
#: give a session that has ended: when they take over, this worker knows already that it has lost its session.
PROOF_LASTS = workers.GRACE

#: Seconds between two tries to come back.
REATTACH_INTERVAL = 0.25

#: Tries for which a lock of somebody else's is waited for: well within the grace.
PATIENT_TRIES = 2


class WorkerSession:
    """The session that says this worker process is alive.

    Args:
        database: where; a connection of its own is used.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Connection | None = None
        self._worker_id: int | None = None
        self._proven_at = -float("inf")
        self._proven = threading.Condition()
        self._tries = 0
        self._stop = threading.Event()
        self._wake: socket.socket | None = None
        self._thread: threading.Thread | None = None

    @property
    def worker_id(self) -> int:
        """The number that this process is known by; it changes only if the process was called gone.

        Raises:
            RuntimeError: not started.
        """
        if self._worker_id is None:
            raise RuntimeError("the worker is not registered")
        return self._worker_id

    @property
    def has_begun(self) -> bool:
        """Whether this process is present, or comes back: between `start()` and `stop()`."""
        return self._thread is not None and not self._stop.is_set()

    def check(self) -> None:
        """Makes sure that there can be such a session.

        Raises:
            PooledSession: there is a pooler in between.
            DatabaseUnreachable: no connection could be made.
        """
        self._database.connect().close()

    def start(self) -> None:
        """Registers this process, and keeps it present from a thread of its own.

        Raises:
            DatabaseUnreachable: no connection could be made.
            ReleaseTooOld: this release can no longer work on this database.
        """
        self._stop.clear()
        self._register()
        self._wake, woken = socket.socketpair()
        self._thread = threading.Thread(target=self._attend, args=(woken,), name="duepost-worker-session", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Leaves in order: what this process may still hold is at once free for others."""
        self._stop.set()
        if self._thread is not None and self._wake is not None:
            self._wake.close()
            self._thread.join(timeout=15)
        if self._connection is not None:
            with suppress(DatabaseUnreachable):
                workers.deregister(self._connection, self.worker_id)
                self._connection.close()

    def is_proven(self) -> bool:
        """Whether the session was alive a moment ago."""
        return time.monotonic() - self._proven_at < PROOF_LASTS

    def wait_until_proven(self, timeout: float) -> bool:
        """Waits at most `timeout` seconds for the session to be proven."""
        if self.is_proven():
            return True
        with self._proven:
            return self._proven.wait_for(self.is_proven, timeout)

    def _register(self) -> None:
        asked_at = time.monotonic()
        self._connection = self._database.connect()
        check_level_in_session(self._connection)
        self._worker_id = workers.register(self._connection, this_process(), VERSION)
        try:
            # Once more: a migrate that has not seen this worker had raised the floor before it let it in.
            check_level_in_session(self._connection)
        except ReleaseTooOld:
            workers.deregister(self._connection, self._worker_id)
            raise
        self._prove_since(asked_at)

    def _prove_since(self, asked_at: float) -> None:
        with self._proven:
            self._proven_at = asked_at
            self._proven.notify_all()

    def _attend(self, woken: socket.socket) -> None:
        with woken:
            while not self._stop.is_set():
                self._prove_or_come_back(woken)

    def _prove_or_come_back(self, woken: socket.socket) -> None:
        try:
            self._prove(woken)
        except DatabaseUnreachable:
            self._proven_at = -float("inf")
            self._tries = 0
            logger.warning("The worker's database session is lost; coming back.")
            self._come_back()

    def _prove(self, woken: socket.socket) -> None:
        connection = self._connection
        if connection is None or not is_usable(connection):
            raise DatabaseUnreachable("the worker's session has ended")
        asked_at = time.monotonic()
        workers.heartbeat(connection)
        self._prove_since(asked_at)
        # An end of the session wakes this at once, and so does stop().
        # Not select(): a process may have more than its 1,024 descriptors.
        looked = select.poll()
        for descriptor in (connection.fileno(), woken.fileno()):
            looked.register(descriptor, select.POLLIN)
        looked.poll(PROOF_INTERVAL * 1000)

    def _come_back(self) -> None:
        while not self._stop.wait(REATTACH_INTERVAL):
            try:
                if self._attach():
                    logger.info("The worker's database session is back.")
                    return
            except DatabaseUnreachable:
                continue
            except ReleaseTooOld as error:
                # Unproven, so that nothing new is begun; maintenance ends the process.
                logger.debug("The worker's database session is not taken up again: %s", error)
            except psycopg2.Error as error:
                # Whatever the database has against it now, it need not have the next time.
                logger.warning("The worker's database session cannot be had yet: %s.", type(error).__name__)

    def _attach(self) -> bool:
        if self._connection is not None:
            self._connection.close()
        asked_at = time.monotonic()
        self._connection = self._database.connect()
        check_level_in_session(self._connection)
        self._tries += 1
        attached = workers.attach(self._connection, self.worker_id, insist=self._tries > PATIENT_TRIES)
        if attached is None:
            return False
        if attached:
            self._prove_since(asked_at)
        else:
            logger.warning("This worker was called gone while it was away; it goes on under a new number.")
            self._connection.close()
            self._register()
        return True
