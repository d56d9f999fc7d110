"""`duepost rate`: how many items a second leave by a route or to a domain, for all workers together."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from actors.delivery.rates import pace
from actors.settings import DEFAULT_RELAY
from duepost.commands.acting import By, Reason, order_of
from duepost.commands.context import Failed, Json, operator_database
from duepost.commands.output import Table, print_json, print_table, say
from duepost.commands.pacing import allowed, limit_words
from duepost.commands.wording import moment, span
from models import rates
from models.rates import RateState

app = typer.Typer(help="How many emails and messages a second leave: set, list, remove.", no_args_is_help=True)

Domain = Annotated[
    str | None, typer.Argument(help="The recipients' domain; without it, the whole route.", metavar="[DOMAIN]")
]
Route = Annotated[
    str, typer.Option(help="By which relay, default being that of DUEPOST_SMTP_URL; or endpoint:NAME, of messages.")
]

COLUMNS = ("route", "domain", "a second", "at once", "in force", "in use", "waiting", "turns until", "why")


@app.command("set")
def set_(
    domain: Domain = None,
    per_second: Annotated[
        float | None, typer.Option(help="Items in any second, by all workers together; 0.2 is one in five seconds.")
    ] = None,
    connections: Annotated[int | None, typer.Option(help="Items under way at the same time, by all workers.")] = None,
    route: Route = DEFAULT_RELAY,
    reason: Reason = None,
    by: By = None,
) -> None:
    """Limits what leaves by a route, by it to a domain, or to an endpoint, by all workers together, within a second.

    Examples: duepost rate set --per-second 14; duepost rate set gmail.com --per-second 5 --connections 3;
    duepost rate set --route endpoint:slack --per-second 1
    """
    answer = rates.set_rate(
        operator_database(), order_of(by, reason), route=route, domain=domain, per_second=per_second,
        connections=connections,
    )  # fmt: skip
    limits = limit_words(per_second, connections)
    say(f"{_called(route, domain)}: {limits}, {'as before' if answer == 'already' else 'from now on'}.")


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Lists what is limited: by an operator, and by what was learnt of a relay's replies.

    Examples: duepost rate list; duepost rate list --json
    """
    found = rates.states(operator_database())
    if as_json:
        print_json([asdict(each) for each in found])
    elif found:
        print_table(Table(COLUMNS, [_row(each) for each in found]))
    else:
        say("No rate is limited.")


@app.command()
def remove(domain: Domain = None, route: Route = DEFAULT_RELAY, reason: Reason = None, by: By = None) -> None:
    """Limits a route, or a domain by it, no more; what was learnt of it is forgotten too.

    Examples: duepost rate remove gmail.com; duepost rate remove --route marketing
    """
    answer = rates.remove_rate(operator_database(), order_of(by, reason), route=route, domain=domain)
    if answer == "not_found":
        raise Failed(f"{_called(route, domain)}: no rate is limited")
    say(f"{_called(route, domain)}: no limit from now on.")


def _called(route: str, domain: str | None) -> str:
    return f"The route {route}" if not domain else f"{domain} by {route}"


def _row(state: RateState) -> Sequence[str | int]:
    return (
        state.route, state.domain or "(all)", "" if state.per_second is None else f"{state.per_second:g}",
        "" if state.connections is None else state.connections, "" if state.in_force is None else pace(state.in_force),
        state.held, state.waiting, "" if state.turns_until is None else moment(state.turns_until), _why(state),
    )  # fmt: skip


def _why(state: RateState) -> str:
    if state.learnt is not None:
        return f"learnt of {state.learnt_because} at {moment(state.learnt_at)}"
    return state.reason or ""


def rate_facts(states: Sequence[RateState]) -> list[tuple[str, str]]:
    """What is limited and in use just now, and why, for a screen that is looked at."""
    return [
        (f"rate of {state.domain or state.route}", ", ".join(_facts(state)))
        for state in states
        if state.held or state.waiting or state.turns_until is not None or state.learnt is not None
    ]


def _facts(state: RateState) -> list[str]:
    said = [allowed(state), f"{state.speaking} under way"]
    if state.waiting:
        takes = "" if state.seconds is None else f", which takes {span(state.seconds)}"
        said.append(f"{state.waiting} waiting{takes}")
    if state.turns_until is not None:
        said.append(f"what waits has turns until {moment(state.turns_until)}")
    if state.learnt is not None:
        said.append(_why(state))
    return said
