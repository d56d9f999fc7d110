"""What it means that an application's function takes a message, or fails; and a trial of one, which is rolled back."""

from typing import Final

import psycopg2

from actors.ruling import Phase, Ruling, Scope, one_line
from models import scheduled_messages
from models.database.connections import Database, Limits, refusal_behind
from models.errors import DatabaseUnreachable
from models.scheduled_messages import ClaimedMessage
from models.words import Verdict

#: How long an application's function may take, and wait for a lock.
FUNCTION_LIMITS: Final = Limits(statement=15.0, lock=10.0)

#: It has taken the message.
TAKEN: Final = Ruling(Verdict.SENT, Scope.RECIPIENT, Phase.RESPONSE)

#: SQLSTATEs of a function that is gone, whose schema is, or that may not be called: no message is at fault.
_GONE: Final = frozenset({"42883", "42501", "3F000"})


class _Undone(Exception):
    """The function has taken the message, and all of that is rolled back."""


def try_function(database: Database, message: ClaimedMessage) -> Ruling:
    """Has a message's function take it as it does in a delivery, in a transaction that is rolled back.

    Raises:
        DatabaseUnreachable: the server or the connection is gone.
    """
    try:
        _take_and_undo(database, message)
    except _Undone:
        pass
    except DatabaseUnreachable as failure:
        if (refusal := refusal_behind(failure)) is None:
            raise
        return ruling_on(refusal)
    except psycopg2.Error as failure:
        return ruling_on(failure)
    return TAKEN


def _take_and_undo(database: Database, message: ClaimedMessage) -> None:
    with database.transaction(FUNCTION_LIMITS) as cursor:
        scheduled_messages.call_function(cursor, message)
        scheduled_messages.check_constraints(cursor)
        raise _Undone


def ruling_on(failure: psycopg2.Error) -> Ruling:
    """What it means that a function has failed: it is called again."""
    said = f"SQLSTATE {failure.pgcode}"
    message = failure.diag.message_primary
    if message:
        said += f": {message}"
    scope = Scope.RELAY if failure.pgcode in _GONE else Scope.MESSAGE
    return Ruling(Verdict.RETRY, scope, Phase.REQUEST, reply=one_line(said))
