"""`duepost demo`: the main job from end to end."""

import shutil
import time
from email import message_from_bytes
from pathlib import Path
from typing import Annotated

import psycopg2
import typer

from actors.settings import settings
from duepost.catching import Refusal
from duepost.commands.jsonl import BadLine
from duepost.commands.output import print_table, say
from duepost.commands.wording import count
from duepost.demo import messages
from duepost.demo.director import Director
from duepost.demo.messages import PlannedMessage
from duepost.demo.plan import TEMPLATES, PlannedEmail, read_plan
from duepost.demo.show import display, doubled, outcome_table
from duepost.private import make_private
from duepost.stack import Stack
from models.errors import DuepostError

#: Where the demo works, below the working directory; each run makes a new one.
FOLDER = Path(".duepost") / "demo"

#: How the demo's catcher plays a difficult relay.
REFUSALS = (
    Refusal("dead-address@*", "550 5.1.1 There is no such mailbox", None),
    Refusal("moved-away@*", "550 5.1.1 There is no such mailbox", None),
    Refusal("greylisted@*", "451 4.7.1 Greylisted, please try again later", 1),
    Refusal("never-available@*", "450 4.2.0 The mailbox is not available now", None),
)

#: Seconds between two looks.
INTERVAL = 0.1

#: Seconds after which the bundled sample has failed: it takes about fifteen.
SAMPLE_PATIENCE = 120.0


class DemoFailed(DuepostError):
    """The demo did not end as expected."""


def demo(
    file: Annotated[
        Path | None,
        typer.Argument(help="JSON Lines: the arguments of schedule_email, one email a line.", show_default=False),
    ] = None,
    processes: Annotated[int, typer.Option(help="Worker processes.", min=1)] = 2,
    threads: Annotated[int, typer.Option(help="ThreadPool of each worker process.", min=1)] = 8,
) -> None:
    """Shows the main job: schedules emails, delivers them through real workers, and compares what became of each.

    Without FILE it uses a bundled sample of some 200 emails, a few messages to a webhook and to a function of the
    database, and catchers of its own. Exit status 0 only if every outcome is the expected one. A line of FILE may
    also have "expect", such as "undeliverable"; "sent" is the default.

    Examples: duepost demo; duepost demo emails.jsonl
    """
    plan = _read(file)
    _clear_folder()
    templates = settings().templates if file else FOLDER / "templates"
    if file is None:
        shutil.copytree(TEMPLATES, templates)
    say("Starting PostgreSQL, a relay and the workers …")
    with Stack(
        FOLDER, templates, use_relay=file is not None, refusals=REFUSALS, catches_messages=file is None
    ) as stack:
        director = Director(stack.database, templates)
        if stack.postgres is not None or file is None:
            director.introduce(plan)
        # In a database that is not the demo's own there is neither a catcher's endpoint nor a function of ours.
        message_plan = messages.plan() if stack.http_catcher is not None else []
        if message_plan:
            messages.introduce(stack.database)
        _schedule(director, plan, message_plan, file)
        stack.start_workers(processes=processes, threads=threads)
        _deliver(stack, director, None if file else SAMPLE_PATIENCE)
        table, well = outcome_table(director.items, director.outcomes())
        print_table(table)
        if stack.catcher is not None:
            well &= _check_mailbox(stack, director)
        if director.messages:
            line, is_well = messages.check(stack.database, stack.caught_messages, director.messages)
            say(line)
            well &= is_well
    shutil.rmtree(FOLDER / "postgres", ignore_errors=True)
    if not well:
        raise DemoFailed("some outcomes are not as expected")
    say("Every outcome is as expected.")


def _read(file: Path | None) -> list[PlannedEmail]:
    try:
        plan = read_plan(file)
    except OSError as error:
        raise BadLine(f"{file}: {error.strerror or error}") from error
    if not plan:
        raise BadLine(f"{file}: holds no email")
    return plan


def _clear_folder() -> None:
    make_private(FOLDER)
    for leftover in ("mailbox", "messages", "templates", "logs"):
        shutil.rmtree(FOLDER / leftover, ignore_errors=True)


def _schedule(
    director: Director, plan: list[PlannedEmail], message_plan: list[PlannedMessage], file: Path | None
) -> None:
    done = 0
    try:
        for done in director.schedule(plan, message_plan):  # noqa: B007 - it tells which line fails
            pass
    except (psycopg2.Error, TypeError) as error:
        line = plan[min(done, len(plan) - 1)].line
        message = error.diag.message_primary if isinstance(error, psycopg2.Error) else None
        reason = (message or str(error)).splitlines()[0]
        raise BadLine(f"{file.name if file else 'sample'}: line {line}: {reason}") from error
    and_messages = f" and {count(len(message_plan), 'message')}" if message_plan else ""
    say(f"Scheduled {count(len(plan), 'email')}{and_messages} in one transaction.")


def _deliver(stack: Stack, director: Director, patience: float | None) -> None:
    deadline = time.monotonic() + patience if patience else float("inf")
    total = len(director.items)
    with display(total) as shown:
        while True:
            standing = director.progress()
            shown.update(standing)
            if standing.scheduled + standing.queued + standing.sending == 0:
                return
            for line in director.act():
                shown.say(line)
            ended = stack.ended()
            if ended is not None:
                raise DemoFailed(f"the {ended} ended by itself: see {FOLDER / 'logs' / ended}.log")
            if time.monotonic() > deadline:
                shown.say(f"not finished after {patience:.0f} s; what there is so far:")
                return
            time.sleep(INTERVAL)


def _check_mailbox(stack: Stack, director: Director) -> bool:
    assert stack.catcher is not None  # noqa: S101 - the caller has looked
    received = [
        (recipient, str(message_from_bytes(content)["Message-ID"]))
        for recipients, content in stack.catcher.messages()
        for recipient in recipients
    ]
    sent = sum(found["sent"] for item_id, found in director.outcomes().items() if item_id in director.emails)
    twice = doubled(received)
    say(f"The mailbox {stack.mailbox} holds {len(received)} copies, the ledger says {sent}; {len(twice)} came twice.")
    return len(received) == sent and not twice
