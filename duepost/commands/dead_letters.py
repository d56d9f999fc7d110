"""`duepost dead-letters` and `requeue`: messages of the broker that failed for good."""

from dataclasses import asdict
from typing import Annotated
from uuid import UUID

import typer

from duepost.commands.context import BadInput, Failed, Json, operator_database
from duepost.commands.output import Table, print_json, print_table, say
from models import messages


def dead_letters(
    limit: Annotated[int, typer.Option(help="At most this many.", min=1, max=1_000_000)] = 50,
    as_json: Json = False,
) -> None:
    """Lists messages of the broker that failed for good, the newest first; they are kept for 7 days.

    A message is a hint: no email is lost with it. DUEPOST_DEAD_LETTER_DAYS sets another time.

    Examples: duepost dead-letters; duepost dead-letters --json
    """
    found = messages.dead_letters(operator_database(), limit)
    if as_json:
        print_json([asdict(letter) for letter in found])
        return
    if not found:
        say("There are no dead letters.")
        return
    columns = ("message", "queue", "actor", "failed at", "failure", "retries")
    rows = [
        (
            letter.message_id,
            letter.queue_name,
            letter.actor_name or "",
            letter.failed_at.isoformat(sep=" ", timespec="seconds"),
            letter.failure or "",
            letter.retries,
        )
        for letter in found
    ]
    print_table(Table(columns, rows))


def requeue(
    message_ids: Annotated[
        list[str], typer.Argument(help="As `duepost dead-letters` shows them.", metavar="MESSAGE...")
    ],
) -> None:
    """Runs dead letters once more, with their retries counted from zero: all of them, or none if one is not there.

    Example: duepost requeue 0b5c8f3e-7a55-4a63-8b5c-2f1f6e1d9f4e
    """
    for message_id in message_ids:
        if not is_uuid(message_id):
            raise BadInput(
                f"MESSAGE: {message_id!r} is no message's id; it is a UUID, as `duepost dead-letters` shows it"
            )
    with operator_database().transaction() as cursor:
        for message_id in message_ids:
            if not messages.requeue(cursor, message_id):
                raise Failed(f"message {message_id}: there is no such dead letter")
    say(f"{len(message_ids)} to be run once more.")


def is_uuid(text: str) -> bool:
    """Whether a text is a UUID."""
    try:
        UUID(text)
    except ValueError:
        return False
    return True
