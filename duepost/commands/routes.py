"""What the relays have shown of themselves to the workers, in sentences."""

from collections.abc import Iterator
from datetime import datetime

from actors.settings import DEFAULT_RELAY, variable_of
from duepost.commands.wording import moment, seconds_until, span
from models.routes import RouteState


def called(state: RouteState, states: list[RouteState]) -> str:
    """What a route is called: its relay, and its name where there are several."""
    target = state.target or f"the relay {state.name}"
    return target if len(states) == 1 or state.target is None else f"{state.name} ({target})"


def route_facts(states: list[RouteState]) -> list[str]:
    """What is known of each relay, a sentence each; empty while none has shown a limit."""
    return [sentence for state in states for sentence in _sentences(state, called(state, states))]


def circuit_words(state: RouteState, states: list[RouteState]) -> str:
    """What an open circuit means, and what is next."""
    where = "" if len(states) == 1 else f" of {state.name}"
    check = "the relay check" if state.name == DEFAULT_RELAY else f"the check `relay {state.name}`"
    sent = "nothing is sent, nothing is dropped"
    if state.fallback is not None:
        by = next((each for each in states if each.name == state.fallback), None)
        is_open = by is not None and by.circuit_open
        sent = (
            f"nothing is sent, as that of its fallback {state.fallback} is open too; nothing is dropped"
            if is_open
            else f"its emails leave by {state.fallback} meanwhile"
        )
    elif len(states) > 1:
        sent = "nothing is sent through it, nothing is dropped"
    again = "duepost probe" if len(states) == 1 else f"duepost probe --route {state.name}"
    return (
        f"the circuit{where} is open ({state.circuit_reason}): {sent}; mend what {check} or duepost list says; "
        f"{next_probe(state.probe_at, again)}"
    )


def next_probe(probe_at: object, again: str = "") -> str:
    """When an open circuit is probed next; `again` is the command that does it at once."""
    seconds = seconds_until(probe_at)
    if seconds is not None and seconds <= 0:
        return f"the next probe has been due for {span(-seconds)}: it needs a worker"
    return f"the next probe is at {moment(probe_at)}" + (f", or now with {again}" if again else "")


def _sentences(state: RouteState, name: str) -> Iterator[str]:
    if state.paused_until is not None:
        yield (
            f"{name} has had too much of us ({state.paused_because}): "
            f"nothing is sent before {_moment(state.paused_until)}"
        )
    if state.allowed is not None:
        plural = "" if state.allowed == 1 else "s"
        yield (
            f"{name} allows {state.allowed} connection{plural} "
            f"({state.allowed_because}, learnt at {_moment(state.allowed_at)})"
        )
    if state.ahead_off_at is not None:
        yield (
            f"{name}: pipelining ahead is off since {_moment(state.ahead_off_at)} ({state.ahead_off_because}); "
            f"take ?pipelining=ahead out of {variable_of(state.name)}"
        )


def _moment(when: datetime | None) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S} UTC" if when is not None else "?"
