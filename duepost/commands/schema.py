"""`duepost migrate`."""

from typing import Annotated

import typer

from actors.queue.schema import queue_schema
from actors.settings import settings
from duepost.commands.acting import By, Reason, whoever
from duepost.commands.ages import moment_of
from duepost.commands.context import BadInput, Json, client_database
from duepost.commands.output import print_json, say, warn
from models import control, erasure
from models.database.migrate import migrate as apply
from models.database.preconditions import shortfalls


def migrate(
    despite_old_workers: Annotated[
        bool,
        typer.Option(
            "--despite-old-workers",
            help="Upgrade past releases whose workers are running: those that can be told finish first and end.",
        ),
    ] = False,
    after_restore: Annotated[
        bool,
        typer.Option(
            "--after-restore",
            help="The database was restored from a backup: hold what may have been sent since, before a worker starts.",
        ),
    ] = False,
    due_by: Annotated[
        str | None,
        typer.Option(help="With --after-restore: when the lost one stopped sending; ISO 8601 with its zone, or 2h."),
    ] = None,
    reason: Reason = None,
    by: By = None,
    as_json: Json = False,
) -> None:
    """Creates or upgrades the schema, the broker's too. Safe to repeat and to race.

    Run it as the role that shall own the schema; it need not be a superuser. Where older workers could not work on the
    new schema, it refuses while they are running.

    Examples: duepost migrate; duepost migrate --after-restore --reason "disk of db1 lost"
    """
    if due_by is not None and not after_restore:
        raise BadInput("--due-by: goes with --after-restore")
    moment = None if due_by is None else moment_of(due_by, "--due-by")
    applied = []
    database = client_database()
    for name in apply(
        database,
        queue_schema=queue_schema(),
        retention_days=settings().retention_days,
        despite_old_workers=despite_old_workers,
        tell=_tell,
    ):
        applied.append(name)
        if not as_json:
            say(f"applied {name}")
    if settings().sender is not None:
        # Emails may be scheduled before the first worker starts.
        control.set_message_id_domain(database, settings().need_sender().address.rpartition("@")[2])
    held: dict[str, int] = {}
    if after_restore:
        _, number, kept = erasure.hold_after_restore(database, due_by=moment, by=by or whoever(), reason=reason)
        held = {"held": number, "due_later": kept}
    if as_json:
        print_json({"applied": applied, **held})
    elif not applied:
        say("The schema is up to date.")
    if held and not as_json:
        say(
            f"{held['held']} held: they were due, and may have been sent after the backup was made; "
            f"{held['due_later']} are due later and stay."
        )
        say("Look with duepost list --state unknown; decide with duepost resolve --kind KIND sent, or resend, or drop.")
    for shortfall in shortfalls(database):
        _tell(shortfall)


def _tell(line: str) -> None:
    warn(f"duepost: {line}")
