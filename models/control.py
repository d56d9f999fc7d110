"""What all workers share: the operator's pause, and whose turn the rare work is."""

from dataclasses import dataclass

from psycopg2.errors import LockNotAvailable

from models.database.connections import Database
from models.database.statements import statements
from models.errors import DatabaseUnreachable

SQL = statements(__file__)


def is_paused(database: Database) -> bool:
    """Whether an operator has paused Duepost."""
    return database.execute(SQL["is_paused"]) == [(True,)]


@dataclass(frozen=True, slots=True)
class Pause:
    """An operator's pause: for how many seconds it has lasted, whose it is, and why; None where that is not known."""

    seconds: float | None
    by: str | None
    reason: str | None


def read_pause(database: Database) -> Pause | None:
    """The pause, if there is one."""
    for row in database.execute(SQL["read_pause"]):
        return Pause(*row)  # type: ignore[arg-type]  # the statement's columns are the class's fields
    return None


def begin_long_pass(database: Database) -> bool:
    """Whether this caller may go through many due emails, for the next 2 s; not beside another one."""
    return bool(database.execute(SQL["begin_long_pass"]))


def go_on_with_long_pass(database: Database) -> None:
    """It goes on for 2 s more, and no watch need ask for another one."""
    database.execute(SQL["go_on_with_long_pass"])


def end_long_pass(database: Database) -> None:
    """It has come to the end."""
    database.execute(SQL["end_long_pass"])


def take_check_in(database: Database) -> bool:
    """Whether it is this caller's turn to check in with the monitor: at most three times a minute."""
    return bool(database.execute(SQL["take_check_in"]))


def take_maintenance(database: Database) -> bool:
    """Whether it is this caller's turn to maintain partitions: every six hours once that is noted, else in a minute."""
    return bool(database.execute(SQL["take_maintenance"]))


def note_maintenance(database: Database) -> None:
    """All of it is done, for the next six hours."""
    database.execute(SQL["note_maintenance"])


def maintain_partitions(database: Database, *, retention_days: int | None) -> bool:
    """Makes the ledger's next partitions; drops those older than the retention, if there is one.

    Waits for no lock for more than 100 ms, as everybody else waits behind it.

    Returns:
        whether it is done: not if a long reader is in the way.
    """
    try:
        database.execute(SQL["maintain_partitions"], {"days": retention_days})
    except DatabaseUnreachable as error:
        if isinstance(error.__cause__, LockNotAvailable):
            return False
        raise
    return True


def keeping(database: Database) -> tuple[int | None, bool]:
    """For how many days the ledger is kept at least, None for good, and whether this role may drop it before."""
    [(days, is_owner)] = database.execute(SQL["keeping"])
    return (days if isinstance(days, int) else None), is_owner is True


def why_kept_longer(asked: int | None, days: int | None, *, is_owner: bool) -> str | None:
    """Why the ledger is kept for longer than asked; None if it is not.

    Args:
        asked: DUEPOST_RETENTION_DAYS here.
        days: for how many the owner keeps it at least; None for good.
        is_owner: whether this role may drop it before.
    """
    if asked is None or is_owner or (days is not None and days <= asked):
        return None
    kept = "for good" if days is None else f"for {days} days"
    return (
        f"the ledger is kept {kept}, as its owner has set, and not for {asked} days: run `duepost migrate` as the "
        "schema's owner with DUEPOST_RETENTION_DAYS"
    )


def set_message_id_domain(database: Database, domain: str) -> None:
    """The right-hand side of the Message-IDs of emails that name no sender."""
    database.execute(SQL["set_message_id_domain"], {"domain": domain})


def installation(database: Database) -> str:
    """What tells this database from every other: 16 hexadecimal digits."""
    [(found,)] = database.execute(SQL["installation"])
    return str(found)
