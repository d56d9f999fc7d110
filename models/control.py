"""What all workers share: the operator's pause, the relay's circuit, and whose turn the rare work is."""

from dataclasses import dataclass
from datetime import datetime

from psycopg2.errors import LockNotAvailable

from models.database.connections import Cursor, Database
from models.database.statements import statements
from models.errors import DatabaseUnreachable

SQL = statements(__file__)


@dataclass(frozen=True, slots=True)
class Control:
    """The shared state. Times are UTC; `circuit_reason` is a phase and a reply code, never an address.

    `route_paused`: the relay has had too much of us; it is given nothing for some seconds.
    """

    paused: bool
    circuit_open: bool
    circuit_opened_at: datetime | None
    circuit_reason: str | None
    probe_at: datetime | None
    probe_is_due: bool
    route_paused: bool


def read(database: Database) -> Control:
    """The shared state as it is now."""
    [row] = database.execute(SQL["read"])
    return Control(*row)  # type: ignore[arg-type]  # the statement's columns are the class's fields


@dataclass(frozen=True, slots=True)
class Pause:
    """An operator's pause: for how many seconds it has lasted, whose it is, and why; None where that is not known."""

    seconds: float | None
    by: str | None
    reason: str | None


def pause(database: Database, *, by: str | None = None, reason: str | None = None) -> bool:
    """Stops enqueueing and sending; scheduling and clearing go on.

    Returns:
        whether it was going on until now; a pause that is there already is left as it is.
    """
    return bool(database.execute(SQL["pause"], {"by": by, "reason": reason}))


def resume(database: Database) -> bool:
    """Goes on after a pause.

    Returns:
        whether it was paused until now.
    """
    return bool(database.execute(SQL["resume"]))


def read_pause(database: Database) -> Pause | None:
    """The pause, if there is one."""
    for row in database.execute(SQL["read_pause"]):
        return Pause(*row)  # type: ignore[arg-type]  # the statement's columns are the class's fields
    return None


def open_circuit(cursor: Cursor, *, reason: str, first_pause: float, refusal: str | None = None) -> bool:
    """Opens the circuit; its first probe comes after `first_pause` seconds.

    Args:
        cursor: of the transaction that concludes the email that shows it.
        reason: a phase and a reply code, never an address.
        first_pause: seconds until the first probe.
        refusal: the words with which many recipients in a row were refused, if that is why it opens.

    Returns:
        whether it was closed until now.
    """
    cursor.execute(SQL["open_circuit"], {"reason": reason, "pause": first_pause, "refusal": refusal})
    return cursor.fetchone() is not None


def put_off_probe(cursor: Cursor, *, reason: str | None, longest: float) -> float:
    """A probe has failed: the next one after twice the pause, at most `longest` seconds. No reason keeps the old one.

    Returns:
        the new pause in seconds; 0 where the circuit was closed meanwhile.
    """
    cursor.execute(SQL["put_off_probe"], {"reason": reason, "longest": longest})
    row = cursor.fetchone()
    return float(row[0]) if row else 0.0


def close_circuit(database: Database) -> bool:
    """Closes the circuit, in a transaction of its own.

    Returns:
        whether it was open until now.
    """
    return bool(database.execute(SQL["close_circuit"]))


def probe_now(database: Database) -> bool:
    """Makes the next probe due at once.

    Returns:
        whether the circuit is open.
    """
    return bool(database.execute(SQL["probe_now"]))


def probe_another(cursor: Cursor) -> None:
    """Makes the next probe due at once, in the caller's transaction; its pause stays."""
    cursor.execute(SQL["probe_now"])


def take_probe(database: Database) -> bool:
    """Whether it is this caller's turn to enqueue the one probe of this pause."""
    return bool(database.execute(SQL["take_probe"]))


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
