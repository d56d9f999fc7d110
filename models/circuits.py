"""Each route's circuit: while it is open nothing is sent through that route, but for one probe in each pause."""

from models.database.connections import Cursor, Database
from models.database.statements import statements

SQL = statements(__file__)


def open_circuit(cursor: Cursor, route: str, *, reason: str, first_pause: float, refusal: str | None = None) -> bool:
    """Opens a route's circuit; its first probe comes after `first_pause` seconds.

    Args:
        cursor: of the transaction that concludes the email that shows it.
        route: the route's name.
        reason: a phase and a reply code, never an address.
        first_pause: seconds until the first probe.
        refusal: the words with which many recipients in a row were refused, if that is why it opens.

    Returns:
        whether it was closed until now.
    """
    cursor.execute(SQL["open"], {"route": route, "reason": reason, "pause": first_pause, "refusal": refusal})
    return cursor.fetchone() is not None


def put_off_probe(cursor: Cursor, route: str, *, reason: str | None, longest: float) -> float:
    """A probe has failed: the next one after twice the pause, at most `longest` seconds. No reason keeps the old one.

    Returns:
        the new pause in seconds; 0 where the circuit was closed meanwhile.
    """
    cursor.execute(SQL["put_off_probe"], {"route": route, "reason": reason, "longest": longest})
    row = cursor.fetchone()
    return float(row[0]) if row else 0.0


def close_circuit(database: Database, route: str) -> bool:
    """Closes a route's circuit, in a transaction of its own.

    Returns:
        whether it was open until now.
    """
    return bool(database.execute(SQL["close"], {"route": route}))


def probe_another(cursor: Cursor, route: str) -> None:
    """Makes the next probe of a route's open circuit due at once, in the caller's transaction; its pause stays."""
    cursor.execute(SQL["probe_now"], {"route": route})


def take_probe(database: Database, route: str) -> bool:
    """Whether it is this caller's turn to enqueue the one probe of this pause."""
    return bool(database.execute(SQL["take_probe"], {"route": route}))
