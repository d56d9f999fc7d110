"""`duepost retry`, `resolve`, `pause` and `resume`: an operator's hands."""

from enum import StrEnum
from typing import Annotated

import typer

from duepost.commands.context import EmailId, Failed, operator_database
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
    typer.echo(f"Email {email_id} is due now.")


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
    typer.echo(f"Email {email_id}: {'sent' if resolution is Resolution.SENT else 'due once more'}.")


def pause() -> None:
    """Stops enqueueing and sending for all workers; scheduling and clearing go on. What is being sent is finished.

    Example: duepost pause
    """
    control.pause(operator_database(), paused=True)
    typer.echo("Paused. `duepost resume` goes on.")


def resume() -> None:
    """Goes on after a pause: what is due leaves with the next tick, the oldest first.

    Example: duepost resume
    """
    control.pause(operator_database(), paused=False)
    typer.echo("Resumed.")


def standing(database: Database, email_id: int) -> str:
    """Where an email stands, in a few words."""
    row = reports.email(database, email_id)
    if row is not None:
        return f"it is {State(str(row['state']))}"
    ledger = reports.deliveries(database, email_id)
    return f"it is finished ({ledger[0]['outcome']})" if ledger else "there is no such email"
