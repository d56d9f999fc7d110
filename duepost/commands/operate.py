"""`duepost retry`, `resolve`, `pause` and `resume`: an operator's hands."""

import getpass
import os
import socket
from enum import StrEnum
from typing import Annotated

import typer

from duepost.commands.context import EmailId, Failed, operator_database
from duepost.commands.output import say
from duepost.commands.read import paused_words
from models import control, emails, reports
from models.database import Database
from models.words import State


class Resolution(StrEnum):
    """What a person decides about an email of which nobody knows whether it arrived."""

    SENT = "sent"
    RESEND = "resend"


def retry(email_id: EmailId) -> None:
    """Makes a scheduled email due at once, without waiting for its pause.

    Example: duepost retry 42
    """
    database = operator_database()
    with database.transaction() as cursor:
        done = emails.retry_now(cursor, email_id)
    if not done:
        raise Failed(f"email {email_id} cannot be retried: {standing(database, email_id)}")
    say(f"Email {email_id} is due now.")


def resolve(
    email_id: EmailId,
    resolution: Annotated[Resolution, typer.Argument(help="sent: it arrived; resend: send it once more.")],
) -> None:
    """Decides about an email whose outcome is unknown: it was sent, or it is to be sent once more.

    Examples: duepost list --state unknown; duepost resolve 42 sent
    """
    database = operator_database()
    with database.transaction() as cursor:
        act = emails.resolve_sent if resolution is Resolution.SENT else emails.resolve_resend
        done = act(cursor, email_id)
    if not done:
        raise Failed(f"email {email_id} is not unknown: {standing(database, email_id)}")
    say(f"Email {email_id}: {'sent' if resolution is Resolution.SENT else 'due once more'}.")


def pause(
    reason: Annotated[str | None, typer.Option(help="Why; others see it in stats and doctor.")] = None,
    by: Annotated[str | None, typer.Option(help="Who; this machine's user by default.")] = None,
) -> None:
    """Stops enqueueing and sending for all workers; scheduling and clearing go on. What is being sent is finished.

    Example: duepost pause --reason "the digest has a wrong link"
    """
    database = operator_database()
    if control.pause(database, by=by or whoever(), reason=reason):
        say("Paused. `duepost resume` goes on.")
        return
    found = control.read_pause(database)
    known = paused_words(found.seconds, found.by, found.reason) if found else ""
    say(f"Paused already, {known}. `duepost resume` goes on.")


def resume() -> None:
    """Goes on after a pause: what is due leaves with the next tick, the oldest first.

    Example: duepost resume
    """
    say("Resumed." if control.resume(operator_database()) else "It was not paused.")


def whoever() -> str:
    """Who gives this command: user and machine, as far as they are known."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        # In a container a user id may have no name.
        user = f"user {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def standing(database: Database, email_id: int) -> str:
    """Where an email stands, in a few words."""
    row = reports.email(database, email_id)
    if row is not None:
        return f"it is {State(str(row['state']))}"
    ledger = reports.deliveries(database, email_id)
    return f"it is finished ({ledger[0]['outcome']})" if ledger else "there is no such email"
