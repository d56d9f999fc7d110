"""`duepost bounces`: reads what came back, once; from cron."""

import hashlib
from dataclasses import asdict
from typing import Annotated

import typer

from actors.alerts import alerts
from actors.alerts.logs import start_of_command
from actors.content.tokens import Tokens
from actors.settings import BadSettings, settings
from actors.version import RELEASE
from duepost.bounces.mailboxes import Mailbox, opened
from duepost.bounces.reader import Reader, described
from duepost.commands.context import Failed, Json, operator_database
from duepost.commands.output import Table, print_json, print_table, say, warn
from duepost.commands.wording import count, counts, moment
from models import bounces as noted
from models import unsubscribing
from models.database.connections import Database
from models.errors import DatabaseUnreachable


def bounces(
    list_: Annotated[bool, typer.Option("--list", help="Only list what came back, the newest first.")] = False,
    limit: Annotated[int, typer.Option(help="With --list: at most this many.", min=1, max=10_000)] = 50,
    as_json: Json = False,
) -> None:
    """Reads the mailbox of DUEPOST_BOUNCE_MAILBOX: who bounced for good, or complained, gets nothing any more.

    What is concluded is marked as seen, and each is told once. Run it from cron. Exit status 1 where something of it
    could not be concluded, which is read again the next time.

    Examples: duepost bounces; duepost bounces --list --json
    """
    database = operator_database()
    if list_:
        _list(database, limit, as_json=as_json)
        return
    start_of_command(settings().log)
    address, place = settings().bounce_address, settings().bounce_mailbox
    if address is None or place is None:
        raise BadSettings(
            f"DUEPOST_BOUNCE_{'ADDRESS' if address is None else 'MAILBOX'}: must be set to read what came back"
        )
    dsn = settings().sentry_dsn
    alerts.start(dsn.get_secret_value() if dsn else None, environment=settings().sentry_environment, release=RELEASE)
    reader = Reader(database, Tokens(unsubscribing.secret(database)), address)
    with opened(place.get_secret_value()) as mailbox:
        failed = _read_all(reader, mailbox)
    found = described(reader.tally)
    if as_json:
        print_json({**found, "failed_to_read": failed})
    else:
        messages = found["messages"]
        others = {each.replace("_", " "): number for each, number in found.items() if each != "messages"}
        say(f"{count(messages, 'email')} read: {counts(others)}." if messages else "Nothing has come back.")
    if failed:
        raise Failed(f"{count(failed, 'email')} could not be concluded: see the log; the next run reads them again")


def _read_all(reader: Reader, mailbox: Mailbox) -> int:
    """Concludes each by itself, and marks it; gives how many failed."""
    failed = 0
    for name, raw in mailbox.waiting():
        try:
            reader.take(raw, hashlib.sha256(raw).hexdigest()[:32])
            mailbox.mark(name)
        except DatabaseUnreachable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever one email holds, the others are read
            warn(f"{name}: {type(error).__name__}")
            failed += 1
    return failed


def _list(database: Database, limit: int, *, as_json: bool) -> None:
    found = noted.newest(database, limit)
    if as_json:
        print_json([asdict(each) for each in found])
    elif found:
        columns = ("when", "source", "event", "effect", "email", "address", "code", "reply")
        rows = [
            (
                moment(each.received_at), each.source, each.event, each.effect, each.email_id or "", each.address or "",
                each.enhanced_code or "", each.reply or "",
            )
            for each in found
        ]  # fmt: skip
        print_table(Table(columns, rows))
    else:
        say("Nothing has come back.")
