"""Which of several watches acts."""

from models.database import advisory_locks
from models.database.connections import Connection
from models.database.statements import statements

SQL = statements(__file__)


def lead(session: Connection) -> bool:
    """Whether this session is the one that acts, from now until it ends."""
    with session.cursor() as cursor:
        cursor.execute(SQL["lead"])
        if cursor.fetchone() is None:
            return False
        cursor.execute(SQL["lock"], {"role": advisory_locks.ROLE, "watch": advisory_locks.WATCH})
        return True


def heartbeat(session: Connection) -> None:
    """Makes sure that the session lives: one round trip; a dead one raises the driver's error."""
    with session.cursor() as cursor:
        cursor.execute(SQL["heartbeat"])
