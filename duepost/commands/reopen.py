"""`duepost reopen`: what was undeliverable is scheduled again."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.progress import track

from duepost.commands.context import BadInput, Failed, Json, operator_database
from duepost.commands.items import Names, names_of
from duepost.commands.output import print_json, say, warn
from models import undeliverable
from models.database.connections import Database
from models.words import Reopening

#: Emails from which on a terminal shows the progress.
MANY = 1000

#: Seconds of the units of `--since`.
UNITS = {"m": 60, "h": 3600, "d": 86_400}

#: Why an email is not reopened.
REASONS = {
    Reopening.EXPIRED: "its time is over (expires_at)",
    Reopening.NOT_KEPT: "its content is not kept any more (DUEPOST_KEEP_UNDELIVERABLE_DAYS)",
    Reopening.NOT_UNDELIVERABLE: "nothing of it is undeliverable (duepost show tells what became of it)",
    Reopening.TOO_LATE: "it is being sent to others just now: try again",
}


def reopen(
    email_ids: Annotated[
        list[int] | None, typer.Argument(help="The ids of emails or messages.", min=1, max=2**63 - 1, metavar="[ID]...")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="All of this kind.")] = None,
    since: Annotated[
        str | None,
        typer.Option(help="All that ended since then: ISO 8601 with its zone, or an age such as 90m, 2h, 3d."),
    ] = None,
    reply: Annotated[str | None, typer.Option(help="All with these words in the relay's reply.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say which ones, and reopen none.")] = False,
    as_json: Json = False,
) -> None:
    """Schedules undeliverable emails once more, for those who could not be reached: due now, with the same Message-ID.

    What is undeliverable is kept for DUEPOST_KEEP_UNDELIVERABLE_DAYS (7). The suppression of its addresses is lifted.

    Examples: duepost reopen 42 43; duepost reopen --since 2h --reply 'relay access denied'
    """
    is_filtered = not (kind is None and since is None and reply is None)
    if bool(email_ids) == is_filtered:
        raise BadInput("reopen: give either ids, or --kind, --since or --reply")
    if reply is not None and not reply.strip():
        raise BadInput("--reply: must not be empty")
    moment = None if since is None else moment_of(since)
    database = operator_database()
    ids = sorted(set(email_ids or [])) or undeliverable.find(database, kind=kind, since=moment, reply=reply)
    names = names_of(database, ids)
    if dry_run:
        print_json(ids) if as_json else say(f"{names.many(ids)}: {' '.join(map(str, ids))}".rstrip(": "))
        return
    answers = {each: reopened(database, each) for each in track(ids, disable=as_json or len(ids) < MANY)}
    if as_json:
        print_json([{"email_id": each, "receipt": answer} for each, answer in answers.items()])
    else:
        report(answers, names)
    failed = [each for each, answer in answers.items() if answer is not Reopening.REOPENED]
    if failed:
        rest = f", and {len(failed) - 1} others" if len(failed) > 1 else ""
        raise Failed(f"{names.one(failed[0])} is not reopened: {REASONS[answers[failed[0]]]}{rest}")


def reopened(database: Database, email_id: int) -> Reopening:
    """Reopens one email, in a transaction of its own."""
    with database.transaction() as cursor:
        return undeliverable.reopen(cursor, email_id)


def report(answers: dict[int, Reopening], names: Names) -> None:
    """Says what has become of each, or how many where they are many."""
    counts = Counter(answers.values())
    if not answers:
        warn("Nothing that is kept fits.")
    elif len(answers) == 1 and counts[Reopening.REOPENED]:
        say(f"{names.one(next(iter(answers))).capitalize()} is due now.")
    elif counts[Reopening.REOPENED]:
        done = [each for each, answer in answers.items() if answer is Reopening.REOPENED]
        say(f"{names.many(done)} {'is' if len(done) == 1 else 'are'} due now.")


def moment_of(text: str) -> datetime:
    """The moment of `--since`, in UTC.

    Raises:
        BadInput: it is neither an ISO 8601 time with its zone nor an age.
    """
    number, unit = text[:-1], text[-1:]
    if unit in UNITS and number.isascii() and number.isdigit() and len(number) <= 6:
        return datetime.now(UTC) - timedelta(seconds=int(number) * UNITS[unit])
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise BadInput(
            "--since: must be an ISO 8601 time with its zone such as 2026-11-25T18:00Z, or an age such as 2h"
        )
    return moment.astimezone(UTC)
