"""`duepost retry`, `resolve`, `probe`, `pause` and `resume`: an operator's hands."""

import getpass
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated

import typer

from duepost.commands.context import BadInput, Failed, ask_for_pass, operator_database
from duepost.commands.items import names_of
from duepost.commands.output import say, warn
from duepost.commands.read import paused_words
from models import circuits, control, emails, reports, routes
from models.database.connections import Cursor, Database
from models.words import State


class Resolution(StrEnum):
    """What a person decides about an email of which nobody knows whether it arrived."""

    SENT = "sent"
    RESEND = "resend"
    DROP = "drop"


#: How each resolution is carried out, and told.
RESOLVING: Mapping[Resolution, tuple[Callable[[Cursor, int], bool], str]] = {
    Resolution.SENT: (emails.resolve_sent, "sent"),
    Resolution.RESEND: (emails.resolve_resend, "due once more"),
    Resolution.DROP: (emails.resolve_drop, "dropped"),
}

EmailIds = Annotated[
    list[int] | None, typer.Argument(help="The ids of emails or messages.", min=1, max=2**63 - 1, metavar="[ID]...")
]
Kind = Annotated[str | None, typer.Option(help="All of this kind, instead of ids.")]


class FailedState(StrEnum):
    """Of what state emails can be retried."""

    SCHEDULED = State.SCHEDULED.value


class HeldState(StrEnum):
    """Of what state emails can be resolved."""

    UNKNOWN = State.UNKNOWN.value


def retry(
    email_ids: EmailIds = None,
    kind: Kind = None,
    state: Annotated[FailedState | None, typer.Option(help="All that have failed, instead of ids.")] = None,
) -> None:
    """Makes scheduled emails or messages due at once, without their pause. With --kind or --state, those that failed.

    Examples: duepost retry 42 43; duepost retry --kind digest
    """
    _either("retry", email_ids, kind, state)
    database = operator_database()
    ids = email_ids or emails.failed_ids(database, kind)
    done = [each for each in ids if _done(database, emails.retry_now, each)]
    _say_done(database, done, "due now", "{} is due now")
    _say_others(database, ids, done, "cannot be retried")


def resolve(
    email_ids: EmailIds = None,
    resolution: Annotated[
        Resolution, typer.Argument(help="sent: it arrived; resend: send it once more; drop: never send it again.")
    ] = ...,  # type: ignore[assignment]  # it must be given, behind the ids
    kind: Kind = None,
    state: Annotated[HeldState | None, typer.Option(help="All that wait for a person, instead of ids.")] = None,
) -> None:
    """Decides about emails and messages whose outcome is unknown: sent, to be sent once more, or dropped.

    Of what is dropped the ledger says cleared.

    Examples: duepost list --state unknown; duepost resolve 42 43 sent; duepost resolve --kind invoice resend
    """
    _either("resolve", email_ids, kind, state)
    database = operator_database()
    ids = email_ids or emails.unknown_ids(database, kind)
    act, word = RESOLVING[resolution]
    done = [each for each in ids if _done(database, act, each)]
    _say_done(database, done, word, f"{{}}: {word}")
    _say_others(database, ids, done, "is not unknown")


def probe(
    route: Annotated[
        str | None, typer.Option(help="Of this route alone; without it, of each whose circuit is open.")
    ] = None,
) -> None:
    """Asks for the next probe of an open circuit at once: one email looks whether the relay takes mail again.

    Examples: duepost probe; duepost probe --route marketing
    """
    database = operator_database()
    known = [state.name for state in routes.states(database)]
    if route is not None and route not in known:
        raise BadInput(f"--route: there is no route {route}; known are {', '.join(known)}")
    if not circuits.probe_now(database, route):
        say("The circuit is closed: there is nothing to probe.")
        return
    ask_for_pass(database)
    say("A probe is asked for: duepost stats tells whether the circuit has closed.")


def _either(command: str, email_ids: list[int] | None, kind: str | None, state: StrEnum | None) -> None:
    if bool(email_ids) == (kind is not None or state is not None):
        raise BadInput(f"{command}: give either ids, or --kind or --state")


def _done(database: Database, act: Callable[[Cursor, int], bool], email_id: int) -> bool:
    """Does one email in a transaction of its own: no other waits for it, or fails with it."""
    with database.transaction() as cursor:
        return act(cursor, email_id)


def _say_done(database: Database, done: Sequence[int], word: str, one: str) -> None:
    names = names_of(database, done)
    if len(done) == 1:
        say(one.format(names.one(done[0])).capitalize() + ".")
    elif done:
        say(f"{names.many(done)}: {word}.")


def _say_others(database: Database, ids: Sequence[int], done: Sequence[int], why: str) -> None:
    """What was asked for and not done.

    Raises:
        Failed: there is one such email, or more.
    """
    if not ids:
        warn("There is no such email or message.")
    others = sorted(set(ids) - set(done))
    if others:
        more = f", and {len(others) - 1} others" if others[1:] else ""
        name = names_of(database, others[:1]).one(others[0])
        raise Failed(f"{name} {why}: {standing(database, others[0])}{more}")


def pause(
    reason: Annotated[str | None, typer.Option(help="Why; others see it in stats and doctor.")] = None,
    by: Annotated[str | None, typer.Option(help="Who; this machine's user by default.")] = None,
) -> None:
    """Stops enqueueing and sending for all workers; scheduling and clearing go on. What is being sent is finished.

    Example: duepost pause --reason "the digest has a wrong link"
    """
    database = operator_database()
    if control.pause(database, by=by or whoever(), reason=reason):
        say("Paused. `duepost resume` goes on.")
        return
    found = control.read_pause(database)
    known = paused_words(found.seconds, found.by, found.reason) if found else ""
    say(f"Paused already, {known}. `duepost resume` goes on.")


def resume() -> None:
    """Goes on after a pause: what is due leaves with the next tick, the oldest first.

    Example: duepost resume
    """
    say("Resumed." if control.resume(operator_database()) else "It was not paused.")


def whoever() -> str:
    """Who gives this command: user and machine, as far as they are known."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        # In a container a user id may have no name.
        user = f"user {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def standing(database: Database, email_id: int) -> str:
    """Where an email stands, in a few words."""
    row = reports.email(database, email_id)
    if row is not None:
        return f"it is {State(str(row['state']))}"
    ledger = reports.deliveries(database, email_id)
    return f"it is finished ({ledger[0]['outcome']})" if ledger else "there is no such email or message"
