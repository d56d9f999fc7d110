"""Who works: each worker process is known by a database session that ends when the process does."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from models.database import advisory_locks
from models.database.connections import Connection, Cursor, Database
from models.database.levels import own_level
from models.database.statements import statements

logger = logging.getLogger(__name__)

SQL = statements(__file__)

#: Seconds for which a worker whose session has ended may come back before its work is given to others.
GRACE = 2.0

#: The same where the server itself was restarted since: all sessions ended, and that proves nothing.
GRACE_AFTER_RESTART = 15.0


class Process(NamedTuple):
    """A worker's process.

    Attributes:
        host: the name of the machine or container that it runs on.
        pid: its process id there.
        machine: what its process id is unique in; None if that is not known.
        started_at_tick: what tells it from others that have had its process id there; None if that is not known.
    """

    host: str
    pid: int
    machine: str | None = None
    started_at_tick: int | None = None


class GoneJournal(NamedTuple):
    """The journal of a worker that is gone.

    Attributes:
        name: what its files are called.
        is_left: it went so lately that whoever has its folder at hand comes first.
    """

    name: str
    is_left: bool


def register(connection: Connection, process: Process, release: str | None = None) -> int:
    """A new worker, alive as long as `connection` is. Its id is never used again.

    The connection must be in autocommit mode and stay a session of its own. A number whose lock somebody else holds is
    passed over: workers of release 0.1 would go by that one's session.
    """
    with connection.cursor() as cursor:
        while True:
            noted = {"release": release, "level": own_level(), "lock": advisory_locks.WORKER}
            cursor.execute(SQL["register"], {**process._asdict(), **noted})
            [worker_id, is_locked, _] = cursor.fetchone() or (0, True, "")
            if is_locked:
                return int(worker_id)
            logger.warning("The number %d is passed over: %s holds its lock.", worker_id, _holder(cursor, worker_id))
            cursor.execute(SQL["discard"], {"worker_id": worker_id})


def attach(connection: Connection, worker_id: int, *, insist: bool = True) -> bool | None:
    """Takes up a worker's life again over a new connection.

    Args:
        connection: the new session, in autocommit mode.
        worker_id: the worker.
        insist: go on without the lock that workers of release 0.1 look at, if somebody else's session holds it.

    Returns:
        True: it goes on as before. False: it was called gone meanwhile and must register again. None: its old session
        is not yet seen to have ended; it is being ended, try again.
    """
    with connection.cursor() as cursor:
        cursor.execute(SQL["lock"], {"lock": advisory_locks.WORKER, "worker_id": worker_id})
        if cursor.fetchone() != (True,):
            cursor.execute(SQL["lock_holder"], {"lock": advisory_locks.WORKER, "worker_id": worker_id})
            holder = cursor.fetchone()
            if holder is None:
                return None
            pid, role, is_own = holder
            if is_own:
                cursor.execute(SQL["end_session"], {"pid": pid})
            if is_own or not insist:
                return None
            logger.warning("Session %d of %s holds this worker's lock; it goes on without.", pid, role)
        cursor.execute(SQL["attach"], {"worker_id": worker_id})
        return cursor.fetchone() is not None


def _holder(cursor: Cursor, worker_id: int) -> str:
    cursor.execute(SQL["lock_holder"], {"lock": advisory_locks.WORKER, "worker_id": worker_id})
    pid, role, _ = cursor.fetchone() or (0, "?", False)
    return f"session {pid} of {role}"


def heartbeat(connection: Connection) -> None:
    """Makes sure that the session of `connection` lives: one round trip; a dead one raises the driver's error."""
    with connection.cursor() as cursor:
        cursor.execute(SQL["heartbeat"])


def stamp(database: Database, worker_id: int) -> None:
    """A worker says that it makes progress, or has nothing to do: the liveness probe looks at that."""
    database.execute(SQL["stamp"], {"worker_id": worker_id})


def of_host(database: Database, host: str) -> dict[int, float]:
    """The workers of a host that are not gone: by process id, the seconds since each last stamped its progress."""
    rows = database.execute(SQL["of_host"], {"host": host})
    return {int(str(pid)): float(str(seconds)) for pid, seconds in rows}


@dataclass(frozen=True, slots=True)
class Stuck:
    """A worker process that is there and makes no progress: its machine, its process id, and for how many seconds."""

    host: str
    pid: int
    seconds: float


def stuck(database: Database, seconds: float) -> list[Stuck]:
    """The workers whose session is there, and that have said nothing of progress for longer than this."""
    rows = database.execute(SQL["stuck"], {"seconds": seconds})
    return [Stuck(*row) for row in rows]  # type: ignore[arg-type]  # the statement's columns are the fields


def deregister(connection: Connection, worker_id: int) -> None:
    """A worker ends in order: others need not wait for what it may have left."""
    with connection.cursor() as cursor:
        cursor.execute(SQL["deregister"], {"worker_id": worker_id})


def reap_dead(
    database: Database,
    has_ended: Callable[[Process], bool] = lambda _: False,
    *,
    grace: float = GRACE,
    grace_after_restart: float = GRACE_AFTER_RESTART,
) -> list[int]:
    """Calls those workers gone whose session has been missing for longer than the grace (seconds).

    A session counts only if it is the one that the worker itself has noted: no other login can stand in for it.

    Args:
        database: where.
        has_ended: whether a process is proven to be over. Its worker, once its session is missing, is gone at once.
        grace: for a session that has ended by itself.
        grace_after_restart: for one that has ended with the whole server.

    Returns:
        the ids of the workers that are gone from now on.
    """
    database.execute(SQL["mark_missing"])
    missing = database.execute(SQL["missing"], {"grace": grace, "grace_after_restart": grace_after_restart})
    gone = [
        row[0]
        for worker_id, is_overdue, *process in missing
        if is_overdue or has_ended(Process(*process))  # type: ignore[arg-type]  # as the columns are declared
        for row in database.execute(SQL["reap"], {"lock": advisory_locks.WORKER, "worker_id": worker_id})
    ]
    return [worker_id for worker_id in gone if isinstance(worker_id, int)]


def note_journal(database: Database, worker_id: int, name: str) -> None:
    """Tells the others which journal is a worker's: who has it at hand can say what became of its claims."""
    database.execute(SQL["note_journal"], {"worker_id": worker_id, "journal": name})


def gone_journals(database: Database, left_for: float) -> dict[int, GoneJournal]:
    """The journals of workers that are gone, by worker id.

    Args:
        database: where.
        left_for: for how many seconds a journal is left to the machine that it lies on.
    """
    rows = database.execute(SQL["gone_journals"], {"seconds": left_for})
    return {int(str(worker_id)): GoneJournal(str(name), bool(is_left)) for worker_id, name, is_left in rows}


def went_lately(database: Database) -> bool:
    """Whether a worker has ended, or was called gone, within the last minute."""
    return database.execute(SQL["went_lately"]) == [(True,)]


def count(database: Database) -> int:
    """How many workers nobody has called gone: one cheap round trip."""
    [(count,)] = database.execute(SQL["count"])
    return int(str(count))


def present(database: Database) -> int:
    """How many workers are alive: those whose session is there, not those that nobody has called gone yet."""
    [(count,)] = database.execute(SQL["present"])
    return count if isinstance(count, int) else 0


def delete_old(database: Database) -> None:
    """Deletes the rows of workers that ended more than a day ago and hold nothing."""
    database.execute(SQL["delete_old"])
