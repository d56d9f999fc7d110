"""`duepost reopen`: what was undeliverable is scheduled again."""

from collections.abc import Mapping
from typing import Annotated

import typer

from duepost import operations
from duepost.commands.acting import Address, By, Reason, Route, User, chosen, order_of
from duepost.commands.ages import moment_of
from duepost.commands.context import Failed, Json, operator_database
from duepost.commands.items import Names, names_of
from duepost.commands.output import print_json, say, warn
from duepost.operations import Doing, Filter
from models.words import Reopening

#: What JSON says of one that is scheduled again.
REOPENED = Reopening.REOPENED.value

#: Why an email is not reopened.
REASONS: Mapping[str, str] = {
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
    route: Route = None,
    user: User = None,
    address: Address = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say which ones, and reopen none.")] = False,
    reason: Reason = None,
    by: By = None,
    as_json: Json = False,
) -> None:
    """Schedules undeliverable emails once more, for those who could not be reached: due now, with the same Message-ID.

    What is undeliverable is kept for DUEPOST_KEEP_UNDELIVERABLE_DAYS (7). The suppression of its addresses is lifted.

    Examples: duepost reopen 42 43; duepost reopen --since 2h --reply 'relay access denied'
    """
    moment = None if since is None else moment_of(since)
    asked = Filter(kind=kind, since=moment, reply=reply, route=route, user=user, address=address)
    wanted = chosen("reopen", email_ids, asked, "--kind, --since or --reply")
    database = operator_database()
    if dry_run:
        ids = sorted(set(email_ids or [])) or operations.reopenable(database, wanted)
        number = names_of(database, ids).many(ids)
        print_json(ids) if as_json else say(f"{number}: {' '.join(map(str, ids))}".rstrip(": "))
        return
    answers = operations.act(database, Doing.REOPEN, wanted, order_of(by, reason)).receipts
    names = names_of(database, list(answers))
    if as_json:
        receipts = {each: REOPENED if answer == "done" else answer for each, answer in answers.items()}
        print_json([{"email_id": each, "receipt": receipt} for each, receipt in receipts.items()])
    else:
        report(answers, names)
    failed = [each for each, answer in answers.items() if answer != "done"]
    if failed:
        rest = f", and {len(failed) - 1} others" if len(failed) > 1 else ""
        raise Failed(f"{names.one(failed[0])} is not reopened: {_reason(answers[failed[0]])}{rest}")


def _reason(answer: str) -> str:
    return REASONS.get(answer) or operations.REASONS.get(answer, answer)


def report(answers: Mapping[int, str], names: Names) -> None:
    """Says what has become of each, or how many where they are many."""
    done = [each for each, answer in answers.items() if answer == "done"]
    if not answers:
        warn("Nothing that is kept fits.")
    elif len(answers) == 1 and done:
        say(f"{names.one(done[0]).capitalize()} is due now.")
    elif done:
        say(f"{names.many(done)} {'is' if len(done) == 1 else 'are'} due now.")
