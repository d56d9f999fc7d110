"""What a worker process does on the side: sees others die, says that it lives, and ends if it is wedged."""

import faulthandler
import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from actors.liveness.process import has_ended
from actors.liveness.worker_session import WorkerSession
from models import messages, rates, workers
from models.database.connections import Database
from models.database.full_scan_throttle import FullScanThrottle
from models.database.levels import check_level
from models.errors import DatabaseUnreachable, ReleaseTooOld

logger = logging.getLogger(__name__)

#: Seconds between two looks for workers that are gone.
LOOK_INTERVAL = 0.5

#: Seconds between two stamps of progress in the table of workers.
STAMP_INTERVAL = 5.0

#: Seconds by which the database's clock may go back without anything being done about it.
CLOCK_TOLERANCE = 1.0

#: Seconds between two looks whether this release may still work on the database.
LEVEL_INTERVAL = 1.0

#: Seconds between two purges of dead letters and results.
PURGE_INTERVAL = 600.0

#: Seconds until maintenance tries again that the database has refused something.
FAILED_PAUSE = 5.0

#: Exit status of a process that ends because it is wedged.
WEDGED = 70

#: Exit status of a process whose release is too old for the database.
TOO_OLD = 78


class QueueReader(Protocol):
    """What reads a queue, as far as it is watched."""

    @property
    def queue_name(self) -> str:
        """Which queue it reads."""

    @property
    def closed(self) -> bool:
        """Whether it has stopped."""

    @property
    def is_stopping(self) -> bool:
        """Whether it is to read nothing new."""

    @property
    def has_room(self) -> bool:
        """Whether it may take one more message."""

    @property
    def looked_at(self) -> float:
        """When it last looked, by the monotonic clock."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a worker process may seem to stand still, in seconds.

    Attributes:
        idle: while messages wait and there is room for them.
        busy: while all it has room for is in hand, and none of that begins or ends.
    """

    idle: float = 60.0
    busy: float = 3600.0


@dataclass
class Progress:
    """When this process last began or ended a message, by the monotonic clock; and what reads its queues."""

    readers: Mapping[str, QueueReader] = field(default_factory=dict)
    moved_at: float = field(default_factory=time.monotonic)

    def moved(self) -> None:
        """A message was begun, or ended."""
        self.moved_at = time.monotonic()


class Maintenance:
    """A thread of its own, from the worker's boot to its end.

    Args:
        database: where.
        worker_session: this process's presence.
        progress: what it has been doing.
        patience: how long it may stand still.
        dead_letters_kept: how long dead letters are kept.
        retire: begins nothing new, and ends the process once what is in hand is done; called once, and comes back.
        end: ends the process; it does not come back.
    """

    def __init__(
        self,
        database: Database,
        worker_session: WorkerSession,
        progress: Progress,
        *,
        patience: Patience,
        dead_letters_kept: timedelta,
        retire: Callable[[], None],
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self._database = database
        self._worker_session = worker_session
        self._progress = progress
        self._patience = patience
        self._dead_letters_kept = dead_letters_kept
        self._retire = retire
        self._is_retiring = False
        self._end = end
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="duepost-maintenance", daemon=True)
        self._turns: Mapping[Callable[[], None], float] = {
            # First: the others need the database.
            self.retire_if_orphaned: LOOK_INTERVAL,
            self.reap: LOOK_INTERVAL,
            self.follow_the_clock: LOOK_INTERVAL,
            self.retire_if_too_old: LEVEL_INTERVAL,
            self.stamp_or_end: min(STAMP_INTERVAL, patience.idle / 4),
            self.purge: PURGE_INTERVAL,
        }
        self._next = dict.fromkeys(self._turns, 0.0)
        self._full_scan_throttle = FullScanThrottle()
        self._proven_since: float | None = None
        #: How far the database's clock is ahead of the monotonic one.
        self._clock_ahead = -float("inf")

    def start(self) -> None:
        """Begins."""
        self._rearm()
        self._thread.start()

    def stop(self) -> None:
        """Ends; waits for a look that is under way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=15)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._rearm()
            try:
                self._turn()
            except DatabaseUnreachable as error:
                logger.debug("Maintenance waits for the database: %s", error.reason)
            except Exception as error:  # noqa: BLE001 - without this thread nobody is reaped, and the process ends
                logger.warning("Maintenance failed with %s, and tries again.", type(error).__name__)
                self._stop.wait(FAILED_PAUSE)
            self._stop.wait(min(LOOK_INTERVAL, self._patience.idle / 4))
        faulthandler.cancel_dump_traceback_later()
        self._database.close()

    def _turn(self) -> None:
        now = time.monotonic()
        for action, interval in self._turns.items():
            if now >= self._next[action]:
                self._next[action] = now + interval
                action()

    def reap(self) -> None:
        """Sees who is gone, and returns the messages that they had in hand."""
        workers.reap_dead(self._database, has_ended)
        if self._full_scan_throttle.is_due or workers.went_lately(self._database):
            with self._full_scan_throttle.measured():
                messages.return_from_dead(self._database)

    def follow_the_clock(self) -> None:
        """Sees that the database's clock was set back, and lets nothing wait for it to come round again."""
        ahead = messages.clock(self._database) - time.monotonic()
        back = self._clock_ahead - ahead
        if back > CLOCK_TOLERANCE:
            logger.warning("The database's clock went back by %.0f s.", back)
            messages.follow_clock_back(self._database)
            rates.follow_clock_back(self._database, back)
        self._clock_ahead = ahead

    def retire_if_orphaned(self) -> None:
        """Ends this process in order where Dramatiq's master is gone: nobody else would ever tell it to stop.

        Without a word: its log went to the master.
        """
        master = multiprocessing.parent_process()
        if self._is_retiring or master is None or os.getppid() == master.pid:
            return
        self._is_retiring = True
        self._retire()

    def retire_if_too_old(self) -> None:
        """Ends this process in order where a later release has upgraded the database past this one."""
        if self._is_retiring:
            return
        try:
            check_level(self._database)
        except ReleaseTooOld as error:
            self._is_retiring = True
            logger.critical("This worker finishes what it has in hand, and ends with status %d: %s.", TOO_OLD, error)
            self._retire()

    def stamp_or_end(self) -> None:
        """Says in the table that this process makes progress; ends it if it does not while work is due."""
        reason = self._stalled()
        if reason is None and self._worker_session.is_proven():
            workers.stamp(self._database, self._worker_session.worker_id)
        if reason is None:
            return
        logger.critical("This worker process is wedged, and ends: %s", reason)
        faulthandler.dump_traceback(file=sys.__stderr__ or 2)
        self._end(WEDGED)

    def purge(self) -> None:
        """Deletes old dead letters and results."""
        messages.purge(self._database, self._dead_letters_kept)

    def _stalled(self) -> str | None:
        """Why this process is to be taken for wedged; None while it is not, or while the database is away."""
        now = time.monotonic()
        if not self._worker_session.is_proven():
            self._proven_since = None
            return None
        self._proven_since = self._proven_since or now
        since_then = now - self._proven_since
        open_readers = [each for each in self._progress.readers.values() if not each.closed]
        late = [
            each.queue_name
            for each in open_readers
            if each.has_room and not each.is_stopping and min(now - each.looked_at, since_then) > self._patience.idle
        ]
        if late and (waiting := messages.overdue(self._database, late, self._patience.idle)):
            return f"messages wait in {', '.join(waiting)}, and nobody reads them"
        full = any(not each.has_room for each in open_readers)
        if full and min(now - self._progress.moved_at, since_then) > self._patience.busy:
            return f"no message has begun or ended for {self._patience.busy:.0f} s"
        return None

    def _rearm(self) -> None:
        """If not even this thread comes round again, as when C code keeps the interpreter, a timer in C ends all."""
        if self._end is os._exit:
            seconds = 2 * self._patience.idle + self._database.limits.answer
            faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)
