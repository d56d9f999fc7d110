"""Which code may work on a database. A level is the number of the newest migration that code knows.

A migration may raise the floor: the level that a worker's code must have from then on. An older worker finishes what it
has in hand, and ends.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

from models.database import advisory_locks
from models.database.connections import Connection, Cursor, Database, Row
from models.database.statements import statements
from models.errors import ReleaseTooOld

MIGRATIONS = Path(__file__).parent.parent / "migrations"
SQL = statements(__file__)


class OldWorker(NamedTuple):
    """A worker that is running, and below the floor that a migration wants to raise.

    Attributes:
        id: its number.
        host: the machine or container that it runs on.
        pid: its process id there.
        release: its release; None with 0.1.
        level: its level; None with 0.1, which cannot be told to end.
    """

    id: int
    host: str
    pid: int
    release: str | None
    level: int | None

    def __str__(self) -> str:
        return f"worker {self.id} (process {self.pid} on {self.host}, release {self.release or '0.1'})"


@cache
def own_level() -> int:
    """The level of this code."""
    return max(int(path.name[:4]) for path in MIGRATIONS.glob("*.sql"))


def check_level(database: Database) -> None:
    """Makes sure that this code may still work on a database: one round trip.

    Raises:
        ReleaseTooOld: the database has gone on without it.
        DatabaseUnreachable: no connection could be made.
    """
    _compare(database.execute(SQL["floor"]), own_level())


def check_level_in_session(connection: Connection) -> None:
    """The same over a session of one's own, in autocommit mode."""
    with connection.cursor() as cursor:
        cursor.execute(SQL["floor"])
        _compare(cursor.fetchall(), own_level())


def _compare(rows: list[Row], level: int) -> None:
    [(floor,)] = rows
    if isinstance(floor, int) and floor > level:
        raise ReleaseTooOld(
            f"this release is too old for the database: it knows migrations up to {level:04}, and the database needs "
            f"workers that know {floor:04}. Install the release that has upgraded it"
        )


def check_level_of(cursor: Cursor, level: int) -> None:
    """The same for code of a given level, on a database that may be older than this.

    Raises:
        ReleaseTooOld: the database has gone on without it.
    """
    cursor.execute(SQL["is_known"])
    if cursor.fetchone() == (True,):
        cursor.execute(SQL["floor"])
        _compare(cursor.fetchall(), level)


def raise_floor(cursor: Cursor, floor: int) -> tuple[int, int | None] | None:
    """Tells running workers below a floor to finish and end, before the migration that needs it is applied.

    Returns:
        the number of the migration that it is noted at, and what was noted there; None where nobody could hear it.
    """
    cursor.execute(SQL["is_known"])
    if cursor.fetchone() != (True,):
        return None
    cursor.execute(SQL["newest"])
    number, before = cursor.fetchone() or (0, None)
    note_floor(cursor, number, floor)
    return number, before


def note_floor(cursor: Cursor, number: int, floor: int | None) -> None:
    """Notes a floor at an applied migration; None for none."""
    cursor.execute(SQL["note"], {"number": number, "floor": floor})


def workers_below(cursor: Cursor, floor: int, *, lock: bool = False) -> list[OldWorker]:
    """Which workers are running that a floor leaves behind.

    Args:
        cursor: of the caller's transaction; its role owns the schema.
        floor: the level.
        lock: let nobody become a worker until the transaction ends.
    """
    cursor.execute(SQL["has_workers"])
    if cursor.fetchone() != (True,):
        return []
    if lock:
        cursor.execute(SQL["lock_workers"])
    cursor.execute(SQL["workers_below"], {"lock": advisory_locks.WORKER, "floor": floor})
    return [OldWorker(*row) for row in cursor.fetchall()]
