"""What commands that act on items have in common: which ones, who and why, and what is said of what was done."""

import getpass
import os
import socket
from datetime import datetime
from typing import Annotated

import typer

from duepost import operations
from duepost.commands.context import BadInput, Failed, operator_database
from duepost.commands.items import names_of
from duepost.commands.output import print_json, say, warn
from duepost.commands.wording import count
from duepost.operations import Doing, Filter, Order, Report
from models import reports
from models.database.connections import Database
from models.words import State

Ids = Annotated[
    list[int] | None, typer.Argument(help="The ids of emails or messages.", min=1, max=2**63 - 1, metavar="[ID]...")
]
Kind = Annotated[str | None, typer.Option(help="All of this kind, instead of ids.")]
Route = Annotated[
    str | None, typer.Option(help="All that leave by this route, instead of ids; endpoint:NAME for messages.")
]
User = Annotated[str | None, typer.Option(help="All about this user, instead of ids.")]
Address = Annotated[str | None, typer.Option(help="All to this mailbox, however it is spelled, instead of ids.")]
Words = Annotated[str | None, typer.Option("--reply", help="All with these words in the last error or reply.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say how many fit, and change nothing.")]
Reason = Annotated[str | None, typer.Option(help="Why; the journal of operators keeps it.")]
By = Annotated[str | None, typer.Option(help="Who; this machine's user by default.")]


def whoever() -> str:
    """Who gives this command: user and machine, as far as they are known."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        # In a container a user id may have no name.
        user = f"user {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def order_of(by: str | None, reason: str | None) -> Order:
    """Who gives this command, and why."""
    return Order(by or whoever(), "command", reason)


def chosen(command: str, ids: list[int] | None, wanted: Filter, options: str = "--kind or --state") -> Filter:
    """The items that a command is about; `options` are the first of its filters.

    Raises:
        BadInput: neither ids nor a filter was given, or both were.
    """
    if bool(ids) == (wanted != Filter()):
        raise BadInput(f"{command}: give either ids, or {options}")
    if wanted.reply is not None and not wanted.reply.strip():
        raise BadInput("--reply: must not be empty")
    return Filter(ids=tuple(ids)) if ids else wanted


def carry_out(
    doing: Doing,
    wanted: Filter,
    order: Order,
    *,
    word: str,
    one: str,
    why: str,
    dry_run: bool,
    as_json: bool,
    at: datetime | None = None,
) -> None:
    """Does it, and says what was done and what was not, with reasons.

    Args:
        doing: what.
        wanted: to which items.
        order: who, and why.
        word: what is said of many that it was done to.
        one: what is said of one; `{}` is what it is called.
        why: what is said of one that it could not be done to: "cannot be retried".
        dry_run: only count.
        as_json: print JSON.
        at: to which time, for a move.

    Raises:
        Failed: something was asked for by its id and not done.
    """
    database = operator_database()
    if dry_run:
        _preview(database, doing, wanted, as_json=as_json)
        return
    report = operations.act(database, doing, wanted, order, at=at)
    if as_json:
        print_json(
            {
                "action_id": report.action_id,
                "done": report.done,
                "skipped": report.skipped,
                "examples": report.examples,
            }
        )
    elif report.done:
        done = [item_id for item_id, receipt in report.receipts.items() if receipt == "done"]
        names = names_of(database, done)
        say(one.format(names.one(done[0])).capitalize() + "." if len(done) == 1 else f"{names.many(done)}: {word}.")
    if wanted.ids:
        _fail_for(database, report, why)
    elif not as_json:
        say_skipped(report)


def _preview(database: Database, doing: Doing, wanted: Filter, *, as_json: bool) -> None:
    number = operations.preview(database, doing, wanted).number
    if as_json:
        print_json({"number": number.number, "is_estimate": number.is_estimate})
    else:
        say(f"{number} would be looked at; nothing is changed.")


def say_skipped(report: Report) -> None:
    """Says on stderr what was left as it was, and why."""
    if not report.done and not report.skipped:
        warn("There is no such email or message.")
    for reason, number in sorted(report.skipped.items()):
        ids = ", ".join(map(str, report.examples.get(reason, ())))
        named = f" ({ids}{', …' if number > operations.EXAMPLES else ''})" if ids else ""
        warn(f"{count(number, 'item')} left alone{named}: {operations.REASONS.get(reason, reason)}")


def _fail_for(database: Database, report: Report, why: str) -> None:
    others = sorted(item_id for item_id, receipt in report.receipts.items() if receipt != "done")
    if others:
        more = f", and {len(others) - 1} others" if others[1:] else ""
        name = names_of(database, others[:1]).one(others[0])
        raise Failed(f"{name} {why}: {_standing(database, others[0], report)}{more}")


def _standing(database: Database, item_id: int, report: Report) -> str:
    """Where an item stands, or what was wrong, in a few words."""
    receipt = report.receipts[item_id]
    if receipt in ("locked", "refused", "failed", "tried_since", "may_have_arrived"):
        return operations.REASONS[receipt]
    row = reports.email(database, item_id)
    if row is not None:
        return f"it is {State(str(row['state']))}"
    ledger = reports.deliveries(database, item_id)
    return f"it is finished ({ledger[0]['outcome']})" if ledger else "there is no such email or message"
