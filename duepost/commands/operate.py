"""`duepost retry`, `resolve`, `probe`, `pause`, `resume` and `priority`: an operator's hands."""

import contextlib
import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

import psycopg2
import typer

from duepost import operations
from duepost.commands.acting import (
    Address,
    By,
    DryRun,
    Ids,
    Kind,
    Reason,
    Route,
    User,
    Words,
    carry_out,
    chosen,
    order_of,
)
from duepost.commands.context import BadInput, Json, ask_for_pass, operator_database
from duepost.commands.output import print_json, say
from duepost.commands.read import paused_words
from duepost.commands.wording import count
from duepost.operations import Doing, Filter, Stop
from models import control, routes
from models.database.connections import Database
from models.words import Priority, State


class Resolution(StrEnum):
    """What a person decides about an email of which nobody knows whether it arrived."""

    SENT = "sent"
    RESEND = "resend"
    DROP = "drop"


#: How each resolution is carried out, and told.
RESOLVING: Mapping[Resolution, tuple[Doing, str]] = {
    Resolution.SENT: (Doing.RESOLVE_SENT, "sent"),
    Resolution.RESEND: (Doing.RESOLVE_RESEND, "due once more"),
    Resolution.DROP: (Doing.RESOLVE_DROP, "dropped"),
}


class FailedState(StrEnum):
    """Of what state emails can be retried."""

    SCHEDULED = State.SCHEDULED.value


class HeldState(StrEnum):
    """Of what state emails can be resolved."""

    UNKNOWN = State.UNKNOWN.value


class Wanted(StrEnum):
    """The priorities, as users have them."""

    URGENT = Priority.URGENT.word
    NORMAL = Priority.NORMAL.word
    BULK = Priority.BULK.word


def retry(
    ids: Ids = None,
    kind: Kind = None,
    state: Annotated[FailedState | None, typer.Option(help="All that have failed, instead of ids.")] = None,
    route: Route = None,
    user: User = None,
    address: Address = None,
    reply: Words = None,
    dry_run: DryRun = False,
    reason: Reason = None,
    by: By = None,
    as_json: Json = False,
) -> None:
    """Makes scheduled emails or messages due at once, without their pause: by ids, or with a filter those that failed.

    Each call is one line of the journal of operators, with who and --reason.

    Examples: duepost retry 42 43; duepost retry --kind digest --dry-run; duepost retry --reply 'quota exceeded'
    """
    asked = State.SCHEDULED if state else None
    wanted = Filter(kind=kind, state=asked, route=route, user=user, address=address, reply=reply, failed=bool(state))
    wanted = chosen("retry", ids, wanted)
    carry_out(
        Doing.RETRY, wanted, order_of(by, reason), word="due now", one="{} is due now", why="cannot be retried",
        dry_run=dry_run, as_json=as_json,
    )  # fmt: skip


def resolve(
    ids: Ids = None,
    resolution: Annotated[
        Resolution, typer.Argument(help="sent: it arrived; resend: send it once more; drop: never send it again.")
    ] = ...,  # type: ignore[assignment]  # it must be given, behind the ids
    kind: Kind = None,
    state: Annotated[HeldState | None, typer.Option(help="All that wait for a person, instead of ids.")] = None,
    route: Route = None,
    user: User = None,
    address: Address = None,
    dry_run: DryRun = False,
    reason: Reason = None,
    by: By = None,
    as_json: Json = False,
) -> None:
    """Decides about emails and messages whose outcome is unknown: sent, to be sent once more, or dropped.

    Of what is dropped the ledger says cleared.

    Examples: duepost list --state unknown; duepost resolve 42 43 sent; duepost resolve --kind invoice resend
    """
    asked = State.UNKNOWN if state else None
    wanted = chosen("resolve", ids, Filter(kind=kind, state=asked, route=route, user=user, address=address))
    doing, word = RESOLVING[resolution]
    carry_out(
        doing, wanted, order_of(by, reason), word=word, one=f"{{}}: {word}", why="is not unknown",
        dry_run=dry_run, as_json=as_json,
    )  # fmt: skip


def probe(
    name: Annotated[str | None, typer.Argument(help="Of this route alone.", metavar="[ROUTE]")] = None,
    route: Annotated[str | None, typer.Option(help="The same; without it, of each whose circuit is open.")] = None,
    reason: Reason = None,
    by: By = None,
) -> None:
    """Asks for the next probe of an open circuit at once: one email looks whether the relay takes mail again.

    Examples: duepost probe; duepost probe marketing
    """
    if name is not None and route is not None:
        raise BadInput("probe: name the route once")
    wanted = name or route
    database = operator_database()
    if wanted is not None:
        _known_route(database, wanted, "--route")
    if not operations.probe(database, order_of(by, reason), wanted):
        say("The circuit is closed: there is nothing to probe.")
        return
    # Who may not write to the broker's table leaves it to the next tick.
    with contextlib.suppress(psycopg2.errors.InsufficientPrivilege):
        ask_for_pass(database)
    say("A probe is asked for: duepost stats tells whether the circuit has closed.")


def _known_route(database: Database, route: str, option: str) -> None:
    known = [state.name for state in routes.states(database)]
    if route not in known and not route.startswith("endpoint:"):
        raise BadInput(f"{option}: there is no route {route}; known are {', '.join(known)}")


PausedKind = Annotated[str | None, typer.Option("--kind", help="Of this kind alone.")]
PausedRoute = Annotated[
    str | None, typer.Option("--route", help="By this route alone; an endpoint is duepost endpoint disable's.")
]


def pause(
    kind: PausedKind = None,
    route: PausedRoute = None,
    reason: Annotated[str | None, typer.Option(help="Why; others see it in stats and doctor.")] = None,
    by: By = None,
) -> None:
    """Stops enqueueing and sending for all workers; scheduling and clearing go on. What is being sent is finished.

    Examples: duepost pause --reason "the digest has a wrong link"; duepost pause --kind digest
    """
    database = operator_database()
    goes_on = _what("resume", kind, route)
    if _checked(database, kind, route) and operations.pause(database, order_of(by, reason), kind=kind, route=route):
        say(f"Paused. `{goes_on}` goes on.")
        return
    say(f"Paused already, {_known_pause(database, kind, route)}. `{goes_on}` goes on.")


def resume(kind: PausedKind = None, route: PausedRoute = None, reason: Reason = None, by: By = None) -> None:
    """Goes on after a pause: what is due leaves with the next tick, the oldest first.

    Examples: duepost resume; duepost resume --kind digest
    """
    database = operator_database()
    _checked(database, kind, route)
    was_paused = operations.resume(database, order_of(by, reason), kind=kind, route=route)
    say("Resumed." if was_paused else "It was not paused.")


def priority(
    kind: Annotated[str, typer.Argument(help="The kind.", metavar="KIND")],
    wanted: Annotated[Wanted, typer.Argument(help="What it goes ahead of.", metavar="urgent|normal|bulk")],
    reason: Reason = None,
    by: By = None,
    as_json: Json = False,
) -> None:
    """Makes a kind urgent, normal or bulk: what is scheduled from now on, and what is pending of it, page by page.

    Examples: duepost priority digest bulk --reason "after the outage"; duepost priority password_reset urgent
    """
    database = operator_database()
    if not kind.strip():
        raise BadInput("KIND: must not be empty")
    moved = operations.set_priority(database, order_of(by, reason), kind, Priority[wanted.name], _tell_moved)
    if as_json:
        print_json({"kind": kind, "priority": wanted.value, "moved": moved})
    else:
        say(f"{kind} is {wanted.value} now; of what is pending, {count(moved, 'item')} moved.")


def _tell_moved(number: int) -> None:
    """How far it has come, for who waits at a terminal."""
    if sys.stderr.isatty():
        typer.echo(f"\r{count(number, 'item')} moved", err=True, nl=False)


def _what(command: str, kind: str | None, route: str | None) -> str:
    named = f" --kind {kind}" if kind is not None else f" --route {route}" if route is not None else ""
    return f"duepost {command}{named}"


def _checked(database: Database, kind: str | None, route: str | None) -> bool:
    """Makes sure that it is all, one kind, or one route that is there."""
    if kind is not None and route is not None:
        raise BadInput("--kind: goes without --route")
    if route is not None:
        _known_route(database, route, "--route")
    return True


def _known_pause(database: Database, kind: str | None, route: str | None) -> str:
    if kind is None and route is None:
        found = control.read_pause(database)
        return paused_words(found.seconds, found.by, found.reason) if found else ""
    stops = operations.paused_kinds(database) if kind is not None else operations.stopped_routes(database)
    return next((stop_words(each) for each in stops if each.name in (kind, route)), "")


def stop_words(stop: Stop) -> str:
    """Who has paused a kind or a route, and why, as far as that is known."""
    return paused_words(None, stop.by, stop.reason)
