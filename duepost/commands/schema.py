"""`duepost migrate`."""

from typing import Annotated

import typer

from actors.queue.schema import queue_schema
from actors.settings import settings
from duepost.commands.context import Json, client_database
from duepost.commands.output import print_json, say, warn
from models import control
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
    as_json: Json = False,
) -> None:
    """Creates or upgrades the schema, the broker's too. Safe to repeat and to race.

    Run it as the role that shall own the schema; it need not be a superuser. Where older workers could not work on the
    new schema, it refuses while they are running.

    Example: duepost migrate
    """
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
    if as_json:
        print_json({"applied": applied})
    elif not applied:
        say("The schema is up to date.")
    for shortfall in shortfalls(database):
        _tell(shortfall)


def _tell(line: str) -> None:
    warn(f"duepost: {line}")
