"""`duepost find`, `why`, `forecast`, `top` and `journal`: what became of it, why, what comes, and who did what."""

import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.live import Live
from rich.text import Text

from actors.settings import settings
from duepost import operations
from duepost.commands import findings
from duepost.commands.ages import duration_of
from duepost.commands.context import BadInput, EmailId, Failed, Json, operator_database
from duepost.commands.listing import FOUND_COLUMNS, found_row
from duepost.commands.output import Table, console, print_facts, print_json, print_table, say, visible, warn
from duepost.commands.pacing import jam_words
from duepost.commands.rate import rate_facts
from duepost.commands.read import described, numbers
from duepost.commands.wording import counts, moment, span, suppression_words
from duepost.operations import Cause
from duepost.why import why as sentences
from models import rates
from models.database.connections import Database

#: Seconds between two frames of `duepost top`.
FRAME = 2.0

#: Causes that a frame names.
CAUSES = 8

CAUSE_COLUMNS = ("items", "state", "kind", "route", "since", "example", "words")


def find(
    address: Annotated[str | None, typer.Option(help="A mailbox, however it is spelled.")] = None,
    user: Annotated[str | None, typer.Option(help="A user's id.")] = None,
    key: Annotated[str | None, typer.Option(help="An idempotency key: whoever its item goes to.")] = None,
    limit: Annotated[int, typer.Option(help="At most this many of each.", min=1, max=10_000)] = 50,
    as_json: Json = False,
) -> None:
    """Finds everything planned and past for one person: emails and messages, by address, user or key.

    Exit status 1 where there is nothing.

    Examples: duepost find --address ann@example.com; duepost find --user 42; duepost find --key welcome-42
    """
    if [address, user, key].count(None) != 2:
        raise BadInput("find: give one of --address, --user and --key")
    found = operations.person(operator_database(), address=address, user=user, key=key, limit=limit)
    if as_json:
        print_json(asdict(found))
    else:
        for recipient in found.recipients:
            name = f", {recipient.name}" if recipient.name else ""
            active = "" if recipient.active is not False else "; not active"
            say(f"User {recipient.user_id}: <{recipient.address or 'no address'}>{name}{active}")
        for each in found.suppressions:
            say(f"{suppression_words(each)}.")
        if found.planned or found.past:
            print_table(Table(FOUND_COLUMNS, [found_row(each) for each in (*found.planned, *found.past)]))
        if found.is_view_unread:
            warn("duepost.recipient was not read: users who have had no email yet may be missing.")
        if found.more_planned or found.more_past:
            warn(f"There are more: --limit {limit * 10}, or duepost list with a filter.")
    if not (found.planned or found.past or found.suppressions):
        raise Failed("nothing is known of it")


def why(item_id: EmailId, as_json: Json = False) -> None:
    """Says in sentences what happened to an email or a message, what is next and when, and what would change it.

    Example: duepost why 42
    """
    found = sentences(operator_database(), item_id)
    if found is None:
        raise Failed(f"{item_id}: there is no such email or message")
    if as_json:
        print_json(asdict(found))
        return
    for sentence in found.happened:
        say(sentence)
    say(f"Next: {found.next}.")
    say("What would change it:")
    for each in found.change:
        say(f"  {each}.")


def forecast(
    hours: Annotated[int, typer.Option(help="How far ahead.", min=1, max=168)] = 24,
    outage: Annotated[
        str | None,
        typer.Option(
            "--after-outage",
            help="What follows if nothing is sent for so long from now, such as 0m or 2h.",
            metavar="DURATION",
        ),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Items a second, after an outage; as many as lately if left out.", min=0.001)
    ] = None,
    as_json: Json = False,
) -> None:
    """Counts what falls due in each of the next hours, by kind; what is overdue counts for this one.

    Where a rate makes that take longer than its hour, a line on stderr says how long.

    With --after-outage: what would be sent, in which order and until when, and what would be too late.

    Examples: duepost forecast; duepost forecast --hours 48 --json; duepost forecast --after-outage 2h --rate 50
    """
    if outage is not None:
        _after_outage(duration_of(outage, "--after-outage"), rate, as_json=as_json)
        return
    if rate is not None:
        raise BadInput("--rate: goes with --after-outage")
    database = operator_database()
    found = operations.forecast(database, hours)
    if as_json:
        print_json([asdict(each) for each in found])
    elif found:
        print_table(Table(("hour", "kind", "items"), [(moment(each.hour), each.kind, each.items) for each in found]))
    else:
        say(f"Nothing falls due within {hours} h.")
    for jam in rates.jams(database, hours):
        warn(jam_words(jam))


def _after_outage(seconds: float, rate: float | None, *, as_json: bool) -> None:
    found = operations.after_outage(operator_database(), seconds, rate)
    if as_json:
        print_json(
            {
                "rate_per_second": found.rate,
                "waiting": [{**asdict(each), "priority": each.priority.word} for each in found.waiting],
                "done_after_seconds": {line.word: seconds for line, seconds in found.done_after.items()},
            }
        )
        return
    if not found.waiting:
        say("Nothing would wait.")
        return
    rows = [
        (
            each.priority.word, each.kind, each.items, each.too_late, moment(each.oldest),
            span(found.done_after[each.priority]) if each.items and each.priority in found.done_after else "",
        )
        for each in found.waiting
    ]  # fmt: skip
    print_table(Table(("priority", "kind", "sent", "too late", "due since", "line done after"), rows))
    if found.rate is None:
        warn("Nothing was sent lately: --rate says how many a second it will be.")
    else:
        say(f"At {found.rate:.3g} a second.")


def journal(
    limit: Annotated[int, typer.Option(help="At most this many.", min=1, max=10_000)] = 50,
    by: Annotated[str | None, typer.Option(help="Only those of this person.")] = None,
    action: Annotated[str | None, typer.Option(help="Only these, such as retry or pause.")] = None,
    as_json: Json = False,
) -> None:
    """Lists what operators have done, the newest first: who, when, to what, why, by command or console.

    Examples: duepost journal; duepost journal --action pause --json
    """
    found = operations.journal(operator_database(), action=action, by=by, limit=limit)
    if as_json:
        print_json([asdict(each) for each in found])
        return
    if not found:
        say("No operator has done anything yet.")
        return
    rows = [
        (
            each.id, moment(each.began_at), each.by, each.via, each.action.replace("_", " "),
            ", ".join(f"{name} {value}" for name, value in each.asked.items()), each.done,
            counts({reason.replace("_", " "): number for reason, number in each.skipped.items()}), each.reason or "",
        )
        for each in found
    ]  # fmt: skip
    print_table(Table(("action", "when", "by", "via", "what", "asked", "done", "left alone", "reason"), rows))


def top() -> None:
    """Shows what waits, what fails and why, every two seconds, until Ctrl-C; in a pipe once.

    Examples: duepost top; duepost top | head
    """
    database = operator_database()
    if not sys.stdout.isatty():
        facts, causes = _frame(database)
        print_facts(facts)
        if causes:
            say()
            print_table(Table(CAUSE_COLUMNS, [_cause_row(each) for each in causes]))
        return
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    with Live(console=console(), screen=True, auto_refresh=False) as screen:
        while not stopped.is_set():
            screen.update(Text(_drawn(*_frame(database), height=screen.console.height)), refresh=True)
            stopped.wait(FRAME)


def _frame(database: Database) -> tuple[list[tuple[str, str]], Sequence[Cause]]:
    found = findings.unwell(findings.of_mail(database, is_disabled=settings().disabled))
    told = [(f"{each.check} {each.health}", visible(each.detail)) for each in found]
    told += rate_facts(rates.states(database))
    return [*told, *described(numbers(database, counts_ledger=False))], operations.failures(database, limit=CAUSES)


def _cause_row(cause: Cause) -> Sequence[str | int]:
    return (
        cause.items, cause.state, cause.kind, cause.route, moment(cause.since), f"duepost why {cause.example_id}",
        cause.example or cause.words,
    )  # fmt: skip


def _drawn(facts: Sequence[tuple[str, str]], causes: Sequence[Cause], *, height: int) -> str:
    """A frame as text, no longer than the screen: whatever it shows is text, never markup."""
    width = max((len(name) for name, _ in facts), default=0)
    lines = [f"{name:<{width}}  {value}" for name, value in facts]
    if causes:
        lines += ["", "What fails, and how to look at one of them:"]
        lines += [
            f"{each.items:>8} {each.state:<14} {each.kind}: {each.example or each.words}"
            f" (duepost why {each.example_id})"
            for each in causes
        ]
    return "\n".join([*map(visible, lines[: max(height - 2, 1)]), "", f"every {span(FRAME)}; Ctrl-C ends it"])
