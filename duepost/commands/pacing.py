"""What rates let leave, and what waits for them, in sentences."""

from collections.abc import Sequence

from actors.delivery.rates import pace
from actors.settings import DEFAULT_RELAY
from duepost.commands.wording import count, moment, span
from models.items import is_endpoint
from models.rates import WHOLE, Jam, RateState


def called(route: str, domain: str) -> str:
    """What a rate is of."""
    if domain == WHOLE:
        return f"the route {route}"
    return domain if route == DEFAULT_RELAY else f"{domain} by {route}"


def allowed(state: RateState) -> str:
    """How much may leave."""
    return limit_words(state.in_force, state.connections)


def limit_words(per_second: float | None, connections: int | None) -> str:
    """A limit: `5 a second, 3 at once`."""
    said = [] if per_second is None else [pace(per_second)]
    said += [] if connections is None else [f"{connections} at once"]
    return ", ".join(said)


def more_with(state: RateState) -> str:
    """The command that lets more leave."""
    if state.learnt is not None and state.per_second is None:
        return f"duepost rate remove{_named(state.route, state.domain)} forgets what was learnt"
    option = "--connections N" if state.in_force is None else "--per-second N"
    return f"duepost rate set{_named(state.route, state.domain)} {option} lets more leave"


def waiting_words(state: RateState) -> str:
    """How many wait for a rate, and how long that takes."""
    slowed = f", as the relay has had too much ({state.learnt_because})" if state.learnt is not None else ""
    takes = "" if state.seconds is None else f", which takes {span(state.seconds)}"
    verb = "waits" if state.waiting == 1 else "wait"
    return (
        f"{count(state.waiting, _item(state.route))} {verb} for the rate of {called(state.route, state.domain)}, "
        f"{allowed(state)}{slowed}{takes}"
    )


def rate_waited_for(states: Sequence[RateState], route: str, words: str) -> RateState | None:
    """The rate that an item of a route waits for by its reason; None where there is none any more."""
    own = (each for each in states if each.route == route and each.domain and f" {each.domain}:" in words)
    whole = (each for each in states if not each.domain and f" the route {each.route}:" in words)
    return next(own, None) or next(whole, None)


def jam_words(jam: Jam) -> str:
    """That more falls due than a rate lets leave, and what would help."""
    number = f"{jam.items:,} {_item(jam.route)}s" + (" or more" if jam.is_least else "")
    return (
        f"At {pace(jam.per_second)} the {number} that are due from {moment(jam.begins)} on take "
        f"{span((jam.ends - jam.begins).total_seconds())}, until {moment(jam.ends)}: that is the rate of "
        f"{called(jam.route, jam.domain)}; duepost rate set{_named(jam.route, jam.domain)} --per-second N changes it."
    )


def _item(route: str) -> str:
    """What leaves by a route."""
    return "message" if is_endpoint(route) else "email"


def _named(route: str, domain: str) -> str:
    return (f" {domain}" if domain else "") + ("" if route == DEFAULT_RELAY else f" --route {route}")
